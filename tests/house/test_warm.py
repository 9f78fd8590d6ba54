"""Programs that start warm end as cold ones do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.warm import warm_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def start(code: str) -> subprocess.Popen[str]:
    words = [str(warm_folder() / "warm-python"), "-c", code]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("print(1)", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('too bad')", 1, "too bad\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_the_program_ends_as_its_run(code: str, status: int, told: str) -> None:
    process = start(code)
    assert process.communicate(timeout=60)[1] == told
    assert process.returncode == status


def test_an_error_that_nobody_caught_is_told() -> None:
    process = start("raise ValueError('x')")
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert told.startswith("Traceback")
    assert told.endswith("ValueError: x\n")


def test_a_program_may_be_killed_at_any_moment() -> None:
    """Also before its run is there, and while that ends."""
    draw = random.Random(1)
    for _ in range(60):
        process = start("print(1)")
        time.sleep(draw.uniform(0, 0.12))
        process.kill()
        told = process.communicate(timeout=60)[1]
        assert (process.returncode, told) in ((-signal.SIGKILL, ""), (0, ""))
    after = start("print(1)")
    assert after.communicate(timeout=60) == ("1\n", "")
