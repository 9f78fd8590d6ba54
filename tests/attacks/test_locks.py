"""Locks that somebody else holds, and lock files in a folder that is shared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.hostile import Tool, World, needs_links

HOLD = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="another kind of lock there")
def test_what_is_waited_for_is_said(tool: Tool, world: World) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(world.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    release = threading.Timer(2.6, holder.stdin.close)
    release.start()
    start = time.monotonic()
    done = tool("lora-clean", world.data, "--text")
    assert 2.4 < time.monotonic() - start < 10
    holder.wait()
    holder.stdout.close()
    assert done.code == 0
    line = done.err.splitlines()[0]
    assert str(world.data) in line
    assert "waiting for" in line
    if sys.platform == "linux" and "FLOCK" in Path("/proc/locks").read_text():
        assert f"process {holder.pid}" in line


@needs_links
@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard", "folder", "pipe"])
def test_lock_files_are_nobody_elses(world: World, kind: str) -> None:
    from lorapipe_engine.errors import OutputError
    from lorapipe_engine.files.writing.locking import open_lock_file

    path = world.data / "x.lock"
    if kind == "hard":
        os.link(world.home / "secret.txt", path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        target = {"symlink": world.home / "secret.txt", "dangling": world.home / "x", "folder": world.home}[
            kind
        ]
        path.symlink_to(target)
    with pytest.raises(OutputError, match="not a file that these tools made"):
        open_lock_file(path)
    assert not (world.home / "x").exists()
    path.unlink()
    first, again = open_lock_file(path), open_lock_file(path)
    assert os.fstat(first).st_ino == os.fstat(again).st_ino
    os.close(first)
    os.close(again)
