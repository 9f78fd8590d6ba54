"""For tests of what strangers hand over: what stands around a command, and a command that is held to bounds."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SECRET = b"what only the user has\n"
TOOLS = Path(sys.executable).parent
LINKS = ("link", "dangling", "hard link", "link to a folder")


def digest(root: Path, *left_out: Path) -> dict[str, str]:
    """Every file, link and folder below ``root`` by name, with what it holds; ``left_out`` are not looked at."""
    found = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if Path(parent, name) not in left_out]
        for name in (*folders, *names):
            path = Path(parent, name)
            if path in left_out:
                continue
            if path.is_symlink():
                value = f"link to {path.readlink()}"
            elif path.is_file():
                value = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                value = "a folder" if path.is_dir() else "something else"
            found[str(path.relative_to(root))] = value
    return found


def plant(kind: str, place: Path, victim: Path) -> None:
    """Put a link of one of LINKS (or "foreign": a file of its own) where a command is going to write; ``victim`` is a
    file that it leads to."""
    place.parent.mkdir(parents=True, exist_ok=True)
    victim.parent.mkdir(parents=True, exist_ok=True)
    if not victim.exists() and kind != "dangling":
        victim.write_bytes(SECRET)
    if kind == "hard link":
        os.link(victim, place)
    elif kind == "foreign":
        shutil.copy(victim, place)
    else:
        place.symlink_to(victim.parent if kind == "link to a folder" else victim)


@dataclass(frozen=True)
class Done:
    """What came of a command; ``seconds`` it took."""

    code: int
    out: str
    err: str
    seconds: float

    def assert_one_line(self) -> None:
        """It failed as commands should: with one line, and no traceback."""
        assert self.code in (1, 2), (self.code, self.err[-2000:])
        assert "Traceback" not in self.err, self.err[-2000:]
        assert "unexpected error" not in self.err, self.err[-2000:]
        lines = re.findall(r"^lora-[a-z]+(?: [a-z]+)?: error: .*", self.err, re.MULTILINE)
        assert len(set(lines)) == 1, self.err[-2000:]
        assert len(self.err) < 5000


def run_tool(
    words: Iterable[str | Path],
    folder: Path,
    *,
    memory: int = 6 << 30,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Done:
    """Run a command (``lora-merge ...``) in a folder, in ``memory`` bytes of address space and ``timeout`` seconds."""
    name, *rest = map(str, words)
    start = time.monotonic()
    done = subprocess.run(
        [str(TOOLS / name), *rest],
        cwd=folder,
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        preexec_fn=None if os.name == "nt" else (lambda: _bound(memory)),
    )
    seconds = time.monotonic() - start
    return Done(
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
        seconds,
    )


def _bound(memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
