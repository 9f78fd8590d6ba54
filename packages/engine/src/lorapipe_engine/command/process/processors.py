"""The processors that a program may use, and how its threads wait for one another.

torch's threads meet after every operation, thousands of times a second. Whoever comes first waits in a loop that keeps
its core busy, and beside other work the thread that is waited for then queues behind those that wait. Threads that
sleep at once do better there, but on some machines waking them takes longer than most operations. So they wait awake
for a moment first (docs/benchmarks.md).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

WAITING = "OMP_WAIT_POLICY"
AWAKE, MOMENT = "GOMP_SPINCOUNT", "3000"  # turns before a thread sleeps; libgomp's own, so Linux alone
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may run on: those it is bound to, or fewer where a container has a smaller share."""
    count = _bound_to()
    share = processor_share()
    return count if share is None else min(count, max(1, math.ceil(share)))


def share_processors() -> None:
    """Have the OpenMP threads of this process sleep where they wait for long, and be no more than a container's share
    allows.

    Call it at the start of a program of our own, since torch reads the environment when it is loaded. Programs that
    this one starts have the same. What the user has set stays.
    """
    if WAITING not in os.environ:
        os.environ[WAITING] = "PASSIVE"
        os.environ.setdefault(AWAKE, MOMENT)
    # Where no share is smaller torch itself counts best: cores, where processors are two to a core.
    if processors() < _bound_to() and not any(name in os.environ for name in COUNTS):
        os.environ[COUNTS[0]] = str(processors())


def use_one_blas_thread() -> None:
    """Have linear algebra run in one thread, in tools that spread modules over threads of their own.

    On factors two BLAS threads are slower than one: an SVD of SD 1.5 at dim 64 takes 1.4 s with two, 1.0 s with one.
    Call it before numpy is imported. What the user has set stays.
    """
    for name in ("OPENBLAS_NUM_THREADS", *COUNTS):
        os.environ.setdefault(name, "1")


def processor_share() -> float | None:
    """The processors' time that Linux's control groups (version 2) leave this process, such as 1.5; None: no limit.

    ``docker run --cpus 2`` on 64 processors leaves 2, and 64 threads would mostly wait for one another.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    place = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if place is None:
        return None
    folder = GROUPS / place.strip("/")
    shares = [share for group in (folder, *folder.parents) if (share := _share_of(group)) is not None]
    return min(shares, default=None)


def _bound_to() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share_of(group: Path) -> float | None:
    """What one group allows: ``cpu.max`` holds microseconds of work, or ``max``, and those of the period."""
    try:
        allowed, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
