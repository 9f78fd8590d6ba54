"""A dataset as a stranger hands it over, something of the user's beside it, and what looks after both."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support import called

SECRET = "my own secret words"
COMMANDS = {
    "lora-clean": ("lorapipe_dataset.clean.cli", "lora_clean"),
    "lora-check": ("lorapipe_dataset.check.cli", "lora_check"),
    "lora-repeats": ("lorapipe_dataset.repeats.cli", "lora_repeats"),
}
needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


class Result(called.Result[str]):
    """What a run of a command left."""

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are errors; one of them at most names an error that was not foreseen: none."""
        assert "unexpected error" not in self.err
        assert "Traceback" not in self.err
        return [line for line in self.err.splitlines() if "error:" in line]


Tool = Callable[..., Result]


def run_apart(name: str, *words: object, timeout: float = 20, stdin: str = "") -> Result:
    """A command in a process of its own, which must end in time."""
    module, command = COMMANDS[name]
    code = f"from {module} import {command}; {command}.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        input=stdin.encode(),
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def digest(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that lies below a folder, links as links: kind, permissions, bytes, and how many names a file has."""
    rows: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        held = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        rows[str(path.relative_to(root))] = (facts.st_mode, held)
    return rows


@dataclass(frozen=True)
class World:
    """``data`` is the stranger's dataset, ``home`` what is the user's own and nobody's business."""

    data: Path
    home: Path


def fill(folder: Path, count: int = 3) -> Path:
    """A folder of pictures with captions that lora-clean changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in "abcdefgh"[:count]:
        Image.new("RGB", (64, 64), (ord(name), 90, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"cat, cat, {name}\n")
    return folder


def plant(
    folder: Path, *lines: object, run: str = "20260102T030405.000000000-lora-clean-0a1b2c", raw: bytes = b""
) -> str:
    """A journal that came with the dataset; its run."""
    (folder / ".lorapipe").mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f".lorapipe/{run}.jsonl").write_bytes(text.encode() + raw)
    return run


def fingerprint(data: bytes) -> str:
    """The digest that journals have of a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


FLIP = """
import ctypes, os, random, sys, time
library = ctypes.CDLL(None)
one, other = map(os.fsencode, sys.argv[1:3])
print("ready", flush=True)
while os.getppid() == int(sys.argv[3]):
    library.renameat2(-100, one, -100, other, 2)
    time.sleep(random.random() * float(sys.argv[4]))
"""


@contextmanager
def flipping(path: Path, link_to: Path, *, every: float = 0.002) -> Iterator[None]:
    """While the block lasts another process puts a link to ``link_to`` into the place of ``path`` and back, within
    ``every`` seconds each."""
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("names cannot be exchanged in one step here")
    other = path.with_name(f".flip-{path.name.lstrip('.')}")
    other.symlink_to(link_to)
    words = [sys.executable, "-c", FLIP, str(path), str(other), str(os.getpid()), str(every)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if path.is_symlink():
            path.unlink()
            other.rename(path)
        elif other.is_symlink():
            other.unlink()
