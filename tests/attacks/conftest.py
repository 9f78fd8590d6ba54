"""What the attacks have in common: a dataset that a stranger made, and the tools that are run on it."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from support.called import caller
from support.hostile import COMMANDS, SECRET, Result, Tool, World, fill


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for until it is on the disk: attacks are on names, and power failures are tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    if hasattr(os, "sync"):
        monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Tool:
    """A command, in this process: ``tool("lora-clean", "imgs")``."""

    def run(name: str, *words: object, stdin: str = "") -> Result:
        module, command = COMMANDS[name]
        call = caller(getattr(import_module(module), command), Result, monkeypatch, capfdbinary, text=True)
        return call(*words, stdin=stdin)

    return run


@pytest.fixture
def world(tmp_path: Path) -> World:
    home, data = tmp_path / "home", tmp_path / "data"
    (home / "inner").mkdir(parents=True)
    for name in ("secret.txt", "a.txt", "b.txt", "work.tmp", "00112233445566aa.tmp", "inner/a.txt"):
        (home / name).write_text(f"{SECRET}, {name}\n")
    (home / "a.txt").chmod(0o600)
    fill(data)
    return World(data, home)
