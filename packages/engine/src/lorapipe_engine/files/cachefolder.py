"""The user's folders for these tools: what can be made again, and what cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder for what can be made again: latents, scores of taggers, hashes of large files.

    It follows the habit of the system; XDG_CACHE_HOME moves it on Linux.
    """
    return _folder("XDG_CACHE_HOME", ".cache", "Caches")


def state_folder() -> Path:
    """The folder for what cannot be made again: which runs changed which dataset, so that they can be undone.

    It follows the habit of the system; XDG_STATE_HOME moves it on Linux.
    """
    return _folder("XDG_STATE_HOME", ".local/state", "Application Support")


def _folder(variable: str, linux: str, mac: str) -> Path:
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / mac
    else:
        root = Path(os.environ.get(variable) or Path.home() / linux)
    return root / "lorapipe"
