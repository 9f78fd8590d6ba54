"""The date that a file made of others carries: not the clock's, so that equal inputs give equal bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lorapipe_engine.errors import ConfigError


def date_of_inputs(inputs: Sequence[Path]) -> datetime:
    """SOURCE_DATE_EPOCH if it is set, else the newest input's time of change. Raises ConfigError."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        newest = max((path.stat().st_mtime for path in inputs if path.exists()), default=0.0)
        return datetime.fromtimestamp(int(newest), UTC)
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"SOURCE_DATE_EPOCH={text!r} is not a number of seconds") from None
