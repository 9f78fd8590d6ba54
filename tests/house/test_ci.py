"""CI runs what a developer runs, on the systems and Pythons that the pages promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorapipe_engine.doctor.tested import NEWEST_PYTHON, OLDEST_PYTHON

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]


def test_ci_runs_the_demo_and_all_checks_everywhere() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    plan = yaml.safe_load(text)
    assert set(plan[True]) == {"push", "pull_request"}  # YAML reads the word on as a truth
    (job,) = plan["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    low, high = OLDEST_PYTHON[1], NEWEST_PYTHON[1]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high + 1)]
    lines = [step["run"] for step in job["steps"] if "run" in step]
    assert lines == ["python tools/dev.py demo", "python tools/dev.py test"]
    words = [line.split()[-1] for line in lines]
    usage = (ROOT / "tools/dev.py").read_text(encoding="utf-8")
    assert all(f"python tools/dev.py {word}" in usage for word in words)
    # What is written into a shell's line comes from the file alone.
    assert all("${{" not in line for line in lines)
