"""What may be imported: never a module of the current folder, which may be a stranger's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_OWN = Path(__file__).resolve().parents[2]


def leave_current_folder() -> None:
    """Take the current folder off the places that modules are imported from.

    ``python -m`` and an empty part of PYTHONPATH put it there. A folder that PYTHONPATH names whole stays, and so does
    that of this package.
    """
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was deleted
        return
    named = {
        Path(word).resolve() for word in os.environ.get("PYTHONPATH", "").split(os.pathsep) if _whole(word)
    }
    if here in named or here == _OWN:
        sys.path[:] = [entry for entry in sys.path if _whole(entry)]
        return
    sys.path[:] = [entry for entry in sys.path if _whole(entry) and Path(entry).resolve() != here]


def _whole(entry: str) -> bool:
    return Path(entry).is_absolute()
