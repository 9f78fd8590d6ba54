"""Runs that are interrupted: at a step, or killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.warm import warm_folder


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
    """Run lora-train again and again, kill it so many times at random moments, let it end in ``seconds``."""
    import torch

    seed = random.SystemRandom().randrange(10**6)
    draw, out = random.Random(seed), Path(words[words.index("--output_dir") + 1])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed: list[int] = []
    until = time.monotonic() + seconds
    while len(killed) <= kills:
        before = steps_done(out)
        process = subprocess.Popen(
            [warm_folder() / "lora-train", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if len(killed) == kills:
            break
        # One or two steps further than the last one came, then a moment more: in a step, a state, a saved file.
        goal = before + draw.choice([0, 1, 1, 2])
        while steps_done(out) < goal and process.poll() is None:
            assert time.monotonic() < until, f"seed {seed}, killed in steps {killed}"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        _, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}, killed in steps {killed}: {told}"
        killed.append(steps_done(out))
    _, told = process.communicate(timeout=until - time.monotonic())
    print(f"seed {seed}, killed in steps {killed}")
    assert process.returncode == 0, f"seed {seed}, killed in steps {killed}: {told}"


def steps_done(out: Path) -> int:
    """Of all runs that write to a folder."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*.metrics.jsonl"))
