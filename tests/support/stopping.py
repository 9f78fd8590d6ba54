"""Runs that are interrupted: at a step, or killed at random moments."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
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


def kill_often(words: Sequence[str], *, kills: int, seconds: float) -> None:
    """Run lora-train again and again in ``seconds``, killed so many times, until it ends well (see killing.py)."""
    import torch

    from support import killing

    seed = random.SystemRandom().randrange(10**6)
    done = subprocess.run(
        [sys.executable, killing.__file__, str(seed), str(kills), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    print(f"seed {seed}: {done.stdout}")
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    assert f"after {kills} kills" in done.stdout, f"seed {seed}: {done.stdout}"
