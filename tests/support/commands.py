"""Commands as their users run them: their words in, their status and what they print out.

They run in this process: to start Python and numpy takes longer than most of what a test asks of a command. What is of
the process itself (its start, its end by a signal, its memory, a terminal) is tested where a process is started.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

TARGETS = {
    "lora-convert": "lorapipe_merge.convert.cli:lora_convert",
    "lora-merge": "lorapipe_merge.cli:lora_merge",
    "lora-train": "lorapipe_engine.cli:lora_train",
    "lora-sample": "lorapipe_engine.sample_cli:lora_sample",
    "lora-resize": "lorapipe_resize.cli:lora_resize",
    "lora-extract": "lorapipe_resize.extract.cli:lora_extract",
    "lora-inspect": "lorapipe_inspect.cli:lora_inspect",
    "lora-grid": "lorapipe_inspect.grid.cli:lora_grid",
    "lora-tag": "lorapipe_tagger.cli:lora_tag",
    "lora-clean": "lorapipe_dataset.clean.cli:lora_clean",
    "lora-check": "lorapipe_dataset.check.cli:lora_check",
    "lora-repeats": "lorapipe_dataset.repeats.cli:lora_repeats",
}


def run(
    command: str,
    *words: object,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command with its words; what it printed and its status. ``env``: beside the environment that is there."""
    module, _, name = TARGETS[command].partition(":")
    main = getattr(import_module(module), name).main
    given = [str(word) for word in words]
    with _own(cwd, env or {}, stdin.encode()) as (out, err):
        # What it sets for itself, as how much it says, is of its context alone.
        status = contextvars.copy_context().run(_status, main, given)
    return subprocess.CompletedProcess([command, *given], status, _text(out), _text(err))


def _status(main: Any, words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a command ends with its status")


@contextlib.contextmanager
def _own(cwd: Path | None, env: Mapping[str, str], given: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Streams, a folder and an environment for a while, as of a process of its own."""
    out, err = io.BytesIO(), io.BytesIO()
    streams, environment, here = (sys.stdin, sys.stdout, sys.stderr), dict(os.environ), Path.cwd()
    sys.stdin = io.TextIOWrapper(io.BytesIO(given), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace", write_through=True)
    try:
        os.chdir(cwd or here)
        os.environ.update(env)
        yield out, err
        sys.stdout.flush()
    finally:
        os.chdir(here)
        # Who is in the middle of something else may keep the streams; closed they would take the bytes along.
        sys.stdout.detach()
        sys.stderr.detach()
        sys.stdin, sys.stdout, sys.stderr = streams
        os.environ.clear()
        os.environ.update(environment)


def _text(stream: io.BytesIO) -> str:
    return stream.getvalue().decode().replace(os.linesep, "\n")
