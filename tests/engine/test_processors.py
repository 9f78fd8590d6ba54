"""How many threads a program of ours starts, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorapipe_engine.command.process import processors
from lorapipe_engine.command.process.processors import AWAKE, COUNTS, WAITING

# lora-train's start, and then torch: OpenMP says what it has read when it is loaded.
PROGRAM = """
import sys
from lorapipe_engine.{module} import {name}_main
sys.argv = ["lora-{name}", "--version"]
try:
    {name}_main()
finally:
    import torch
"""
MODULES = {"train": "cli", "sample": "sample_cli"}


def settings_of_openmp(tool: str, **settings: str) -> dict[str, str]:
    """How threads wait, by OpenMP's own word."""
    environment = {name: value for name, value in os.environ.items() if name not in (WAITING, AWAKE, *COUNTS)}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **settings}
    words = [sys.executable, "-c", PROGRAM.format(module=MODULES[tool], name=tool)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=True)
    pairs = [line.split("=", 1) for line in done.stderr.splitlines() if "=" in line]
    return {name.split()[-1]: value.strip().strip("'") for name, value in pairs}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("tool", "given", "policy", "turns"),
    [
        ("train", {}, "PASSIVE", "3000"),
        ("sample", {}, "PASSIVE", "3000"),
        ("train", {AWAKE: "7"}, "PASSIVE", "7"),
        ("train", {WAITING: "PASSIVE"}, "PASSIVE", "0"),
        ("train", {WAITING: "ACTIVE"}, "ACTIVE", "30000000000"),
    ],
)
def test_threads_wait_awake_for_a_moment_unless_the_user_says_how(
    tool: str, given: dict[str, str], policy: str, turns: str
) -> None:
    pytest.importorskip("torch")
    found = settings_of_openmp(tool, **given)
    assert (found[WAITING], found[AWAKE]) == (policy, turns)


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ({}, None),
        ({"a/b": "max 100000"}, None),
        ({"a/b": "150000 100000"}, 1.5),
        ({"a/b": "max 100000", "a": "200000 50000", "": "800000 100000"}, 4.0),
        ({"a/b": "nonsense"}, None),
    ],
)
def test_the_share_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], share: float | None
) -> None:
    in_groups(tmp_path, monkeypatch, limits)
    assert processors.processor_share() == share


def test_no_share_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "OWN_GROUPS", tmp_path / "nothing")
    assert processors.processor_share() is None


@pytest.mark.parametrize(
    ("limit", "given", "count"),
    [
        ("50000 100000", None, "1"),
        ("150000 100000", None, "2"),
        ("50000 100000", "7", "7"),
        ("max 100000", None, None),
    ],
)
def test_threads_are_no_more_than_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, given: str | None, count: str | None
) -> None:
    in_groups(tmp_path, monkeypatch, {"a/b": limit})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)), raising=False)
    for name in (WAITING, AWAKE, *COUNTS):
        monkeypatch.setenv(name, given or "")  # so that it is put back
        if name != COUNTS[0] or given is None:
            monkeypatch.delenv(name)
    processors.share_processors()
    assert os.environ.get("OMP_NUM_THREADS") == count
    assert os.environ[WAITING] == "PASSIVE"


def in_groups(folder: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str]) -> None:
    """Have this process in the group a/b, under the limits of some groups."""
    own, groups = folder / "own", folder / "groups"
    own.write_text("12:cpu:/elsewhere\n0::/a/b\n")
    (groups / "a/b").mkdir(parents=True)
    for group, text in limits.items():
        (groups / group / "cpu.max").write_text(text)
    monkeypatch.setattr(processors, "OWN_GROUPS", own)
    monkeypatch.setattr(processors, "GROUPS", groups)
