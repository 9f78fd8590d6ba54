"""Broken and odd files: one line, status 2, little time and memory; names are only ever shown escaped."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "data" / "inspect" / "malformed"
VERDICTS = json.loads((FOLDER / "verdicts.json").read_text())
REJECTED = sorted(name for name, verdict in VERDICTS.items() if verdict["official"] == "rejected")
ACCEPTED = sorted(set(VERDICTS) - set(REJECTED))


def test_all_files_have_a_verdict() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(VERDICTS)


@pytest.mark.parametrize("command", ["zeros", "keys", "meta", "hash", "check"])
@pytest.mark.parametrize("name", REJECTED)
def test_rejected(inspect: Any, name: str, command: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    done = inspect(command, path)
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith(f"lora-inspect {command}: error: {path}: ")
    assert done.err.count("\n") == 1
    # Through a pipe it is the same, if it can be told from a list of paths; a path that is none is no less an error.
    done = inspect(command, "-", stdin=path.read_bytes())
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(inspect: Any, name: str) -> None:
    path = FOLDER / f"{name}.safetensors"
    for command in ("zeros", "keys", "meta", "hash", "check"):
        done = inspect(command, path)
        assert (done.code, done.err) == (0, "")
    record = json.loads(inspect("keys", path, "--json").out)
    assert sorted(tensor["name"] for tensor in record["tensors"]) == sorted(VERDICTS[name]["keys"])


def test_control_characters_are_escaped(inspect: Any, tmp_path: Path) -> None:
    source = FOLDER / "key_with_newline_and_escape.safetensors"
    path = tmp_path / "a\x1b[31mb.safetensors"
    path.write_bytes(source.read_bytes())
    for command in ("zeros", "keys", "meta", "hash", "check"):
        done = inspect(command, path)
        assert b"\x1b" not in done.out
        assert b"a\\x1b[31mb.safetensors" in done.out
    assert "a\\n\\x1b[31mred" in inspect("keys", path).lines[-1]
    done = inspect("zeros", tmp_path / "none\x1b.safetensors")
    assert "\x1b" not in done.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units")
@pytest.mark.parametrize("name", ["deep_json", "header_len_max_u64", "shape_overflow", "beyond_eof"])
def test_little_time_and_memory(name: str) -> None:
    runs = [(measure(name), measure("ok_plain")) for _ in range(3)]
    # 0.15 s for either on a quiet machine; compared in CPU seconds, as others may be at work.
    assert min(bad for (bad, _), _ in runs) < 1.5 * min(good for _, (good, _) in runs) + 0.05
    # A child of a large process is charged with that one's pages until it starts its own program.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert all(kib < max(50_000, own + 1_000) for (_, kib), _ in runs)


def measure(name: str) -> tuple[float, int]:
    """CPU seconds and peak KiB of ``zeros`` on a file, in a process of its own."""
    tool = Path(sys.executable).with_name("lora-inspect")
    process = subprocess.Popen(
        [tool, "zeros", FOLDER / f"{name}.safetensors"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == (0 if name.startswith("ok_") else 2)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss
