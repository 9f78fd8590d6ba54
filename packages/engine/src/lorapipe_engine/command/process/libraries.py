"""What is imported, and how: never a module of the current folder, which may be a stranger's; torch, diffusers and
transformers quickly, and without what they would load for nothing.

Every command begins here, its help too, so this imports little itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar

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
    import logging
    from importlib.util import find_spec

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


# As texts: path objects are a tenth of what a help costs.
_OWN = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))  # noqa: PTH118, PTH120


def leave_current_folder() -> None:
    """Take the current folder off the places that modules are imported from.

    ``python -m`` and an empty part of PYTHONPATH put it there. A folder that PYTHONPATH names whole stays, and so does
    that of this package.
    """
    try:
        here = os.path.realpath(os.getcwd())  # noqa: PTH109
    except OSError:  # it was deleted
        return
    words = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = {os.path.realpath(word) for word in words if _whole(word)}
    if here in named or here == _OWN:
        sys.path[:] = [entry for entry in sys.path if _whole(entry)]
        return
    sys.path[:] = [entry for entry in sys.path if _whole(entry) and os.path.realpath(entry) != here]


def _whole(entry: str) -> bool:
    return os.path.isabs(entry)  # noqa: PTH117
