"""The long comparison of trainings: what ended well is kept line by line, and the same call does what is left."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "demo_world"
# In the place of a training of minutes: seed 43 fails as long as there is no file "mended".
STUB = """
import json, sys
from pathlib import Path
out, (name, seed) = Path(sys.argv[1]), sys.argv[-2:]
with (out / "begun.txt").open("a") as file:
    file.write(f"{name} {seed}\\n")
if seed == "43" and not (out / "mended").exists():
    sys.exit("no luck")
figures = dict.fromkeys(("base", "with the trigger", "without the trigger", "other people"), 0.5)
row = {"name": name, "seed": int(seed), "figures": figures, "loss": 0.1, "steps": 4, "seconds": 1.0}
folder = out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
(folder / "result.json").write_text(json.dumps({**row, "epochs": [0.1], "losses": [0.1]}))
"""


@pytest.fixture
def variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("variants", FOLDER / "variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "variants", module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "stub.py"))
    return module


def begun(out: Path) -> list[str]:
    lines = (out / "begun.txt").read_text().splitlines()
    (out / "begun.txt").write_text("")
    return lines


@pytest.mark.slow
def test_the_same_call_does_what_is_left(
    variants: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(
        out=tmp_path, jobs=1, device="cpu", epochs=None, v_base=None, flow_base=None, dataset=None
    )
    jobs = [("alone", 42), ("alone", 43), ("held, every step", 42)]

    def left() -> list[tuple[str, int]]:
        done = variants.done_before(jobs, options)
        return [job for job in jobs if job not in done]

    assert left() == jobs
    rows = variants.run_all(left(), options, math.inf)
    assert rows["alone", 43]["error"] == "no luck"
    assert begun(tmp_path) == ["alone 42", "alone 43", "held, every step 42"]
    told = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in told] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "min left: held, every step, seed 42: with the trigger 50.0%" in told[2]
    # A line that a killed call left half written is none.
    with (tmp_path / "variants.jsonl").open("a") as file:
        file.write('{"name": "alone", "se')
    (tmp_path / "mended").touch()
    assert left() == [("alone", 43)]
    variants.run_all(left(), options, math.inf)
    assert begun(tmp_path) == ["alone 43"]
    assert left() == []
    row = json.loads((tmp_path / "variants.jsonl").read_text().splitlines()[-1])
    assert (row["name"], row["seed"]) == ("alone", 43)
    # What was asked for otherwise is another run.
    options.epochs = 3
    assert left() == jobs
