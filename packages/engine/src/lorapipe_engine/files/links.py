"""Links: whether a path leaves a folder by one."""

from __future__ import annotations

import os
from pathlib import Path


def leads_out(path: Path | str, root: Path | str) -> Path | None:
    """Where a path leads that leaves the folder ``root`` by a link, at its end or in its middle; None where it stays.

    ``root`` itself may be a link, since the user named it. Hard links cannot be told from plain files.
    """
    real, top = (os.path.normcase(os.path.realpath(one)) for one in (path, root))
    if real == top or real.startswith(os.path.join(top, "")):  # noqa: PTH118
        return None
    return Path(os.path.realpath(path))
