"""``pytest --quick``: what it leaves out, what it says of it, and that all tests can be collected for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The markers and places of pyproject.toml, with the rules of this folder's own conftest.py.
CONFTEST = """
from support.quick import QuickLane

def pytest_configure(config):
    config.pluginmanager.register(QuickLane())
"""
TESTS = """
import subprocess, sys
import pytest

SPIN = "import time\\nwhile time.process_time() < 0.7: pass"

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.table
@pytest.mark.parametrize("number", range(9))
def test_table(number): pass

@pytest.mark.parametrize("number", range(9))
def test_others(number): pass

def test_torch(): pytest.importorskip("torch")

def test_long(): subprocess.run([sys.executable, "-c", SPIN], check=True)
"""


def pytest_in(folder: Path, *words: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two processes"])
def test_what_is_left_out_and_what_takes_long_is_said(processes: list[str], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "test_b.py").write_text('import pytest\npytest.importorskip("torch")\n')
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {ROOT / 'tests'}\nmarkers =\n slow:\n table:\n"
    )
    status, lines = pytest_in(tmp_path, "-r", "fE", *processes)
    assert status == 0, lines
    said = [line for line in lines if line.startswith("quick: ")]
    assert said[0] == (
        "quick: left out 1 test marked slow, 6 cases of long tables, and 1 file and 1 test that need torch; "
        "without --quick all are run"
    )
    assert said[1].startswith("quick: of 14 tests these take more than 0.25 s of the processor (1)")
    assert lines[lines.index(said[1]) + 1].endswith(" s  test_a.py::test_long")
    assert lines[-1].startswith("13 passed, 2 skipped")


@pytest.mark.slow
def test_all_tests_are_collected_without_torch() -> None:
    status, lines = pytest_in(ROOT, "--quick", "--collect-only", "-r", "fE")
    assert status == 0, [line for line in lines if "::" not in line]
    assert "passed" not in lines[-1]
    assert int(lines[-1].partition("/")[0]) > 4000
