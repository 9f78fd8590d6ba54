"""Results of long calls, a JSON line each as soon as it is there: the same call, given again, does what is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines that are there, without one that a killed call left half written."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            rows.append(dict(json.loads(line)))
    return rows


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line."""
    before = path.read_bytes() if path.exists() else b""
    with path.open("ab") as file:
        file.write(b"\n" * (bool(before) and not before.endswith(b"\n")))
        file.write(json.dumps(row).encode() + b"\n")
