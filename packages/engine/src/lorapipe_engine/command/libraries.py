"""How torch, diffusers and transformers are imported: quickly, and without what they would load for nothing."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.util import find_spec

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
