"""Runs lora-train and looks every 50 ms where its main thread is: what a start is spent on.

    python tools/bench/phases.py SAMPLES.jsonl --base demo --train_data_dir dataset ... --max_train_steps 1

Used by startup.py --where. :func:`phases` reads the file: stretches of time by the engine's own function that was
running, or by what it was importing.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05  # seconds
OWN = "lorapipe_"


@dataclass(frozen=True)
class Phase:
    """From ``start`` seconds after the first look, for ``seconds``."""

    start: float
    seconds: float
    what: str


def watch(samples: Path) -> None:
    """Write the main thread's label, again and again."""
    main = threading.main_thread().ident
    began = time.monotonic()
    with samples.open("w") as out:
        while True:
            frame = sys._current_frames().get(main or 0)
            names: list[tuple[str, str, str]] = []
            while frame is not None:
                module = str(frame.f_globals.get("__name__"))
                names.append((frame.f_code.co_filename, frame.f_code.co_name, module))
                frame = frame.f_back
            out.write(json.dumps([round(time.monotonic() - began, 3), label(names)]) + "\n")
            out.flush()
            time.sleep(EVERY)


def label(frames: Sequence[tuple[str, str, str]]) -> str:
    """What runs, by its frames (file, function, module), the innermost first."""
    own = next((place for place, (file, _, _) in enumerate(frames) if OWN in file), None)
    if own is None:
        return "the interpreter"
    above = frames[:own]
    if any(file.startswith("<frozen importlib") for file, _, _ in above):
        imported = [module for _, name, module in above if name == "<module>"]
        return "import " + ".".join(imported[-1].split(".")[:2] if imported else ["?"])
    file, name, _ = frames[own]
    return f"{Path(file).stem}.{name}"


def phases(samples: Path, least: float = 0.2) -> Iterator[Phase]:
    """The stretches of at least ``least`` seconds, in order; neighbours of one label are one."""
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    start, what = 0.0, None
    for at, seen in [*rows, [rows[-1][0] if rows else 0.0, None]]:
        if seen == what:
            continue
        if what is not None and at - start >= least:
            yield Phase(start, round(at - start, 2), what)
        start, what = at, seen


if __name__ == "__main__":
    place, *words = sys.argv[1:]
    threading.Thread(target=watch, args=(Path(place),), daemon=True).start()
    sys.argv = ["lora-train", *words]
    runpy.run_module("lorapipe_engine", run_name="__main__", alter_sys=True)
