"""Runs ``lora-train`` again and again and kills it at random moments, until it comes to its end.

python killing.py SEED KILLS WORDS...

Everything is imported once; each run is a fork of this process. Prints how many runs were killed, and in which steps.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import lorapipe_engine.train.loop
import lorapipe_engine.train.queue
import lorapipe_engine.train.session  # noqa: F401  imported for the forks
from lorapipe_engine.cli import lora_train


def steps_done(out: Path) -> int:
    """Of all runs that write to a folder."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*.metrics.jsonl"))


def child(words: list[str]) -> None:
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    with contextlib.suppress(BaseException):
        try:
            lora_train.main(words)
        except SystemExit as end:
            status = int(end.code or 0)
    os._exit(status)


def main() -> None:
    seed, kills, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    out = Path(words[words.index("--output_dir") + 1])
    draw = random.Random(seed)
    killed: list[int] = []
    for _ in range(kills + 1):
        before = steps_done(out)
        process = os.fork()
        if not process:
            child(words)
        last = len(killed) == kills
        # One or two steps further than the last one came, then a moment more: in a step, a state, a saved file.
        until = time.monotonic() + 60
        goal = before + draw.choice([0, 1, 1, 2])
        while not last and steps_done(out) < goal and time.monotonic() < until:
            time.sleep(0.002)
        if not last:
            time.sleep(draw.uniform(0, 0.15))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            print(
                f"ended with {os.waitstatus_to_exitcode(status)} after {len(killed)} kills, in steps {killed}"
            )
            sys.exit(os.waitstatus_to_exitcode(status))
        killed.append(steps_done(out))


if __name__ == "__main__":
    main()
