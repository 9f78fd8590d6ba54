"""Runs that are interrupted at a moment that does not depend on the clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Ctrl-C comes in every run of this process before the step after so many."""
    from lorapipe_engine.train import loop

    real, count = loop.take_step, 0

    def step(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count > steps:
            raise KeyboardInterrupt
        return real(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        yield
