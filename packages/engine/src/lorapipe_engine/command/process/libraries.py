"""What is imported, and how: never a module of the current folder, which may be a stranger's; torch, diffusers and
transformers quickly, and without what they would load for nothing."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path

# Packages that diffusers and transformers load where they find them, seconds each, for ways that nothing here takes:
# weights quantized by diffusers, LoRA by PEFT, and measures of generated text.
UNUSED = ("bitsandbytes", "peft", "sklearn")

# Whether this process is a program of ours alone. In one that is shared, other code may want those ways.
OWN_PROCESS: ContextVar[bool] = ContextVar("OWN_PROCESS", default=False)


@contextlib.contextmanager
def library_imports() -> Iterator[None]:
    """For imports of large libraries. In an OWN_PROCESS they do not see what is UNUSED; it can be imported
    afterwards as ever. A warning of bitsandbytes stays off the screen of machines without a GPU.
    """
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    unused = UNUSED if OWN_PROCESS.get() else ()
    hidden = [name for name in unused if name not in sys.modules and find_spec(name)]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it fails
    try:
        with uncollected():
            yield
    finally:
        for name in hidden:
            del sys.modules[name]
        logger.setLevel(before)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For imports: thousands of objects are made, none is garbage, and looking for it takes a fifth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_OWN = Path(__file__).resolve().parents[3]


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
