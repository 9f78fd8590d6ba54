"""The figures on cells of true trainings of the demo, kept as small pictures.

``epochs.zip``: every second epoch of the demo at its own rates on a CPU, with the base.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from support.commands import run

DATA = Path(__file__).parents[2] / "data"


def asked(archive: str, folder: Path, *words: str) -> dict[str, Any]:
    """What ``lora-grid --best`` says of the cells of an archive."""
    with zipfile.ZipFile(DATA / archive) as cells:
        cells.extractall(folder)
    done = run("lora-grid", folder / "cells.jsonl", "--best", "--trigger", "mirelune", "--json", *words)
    return dict(json.loads(done.stdout))


def test_an_epoch_that_has_not_learned_is_not_taken(tmp_path: Path) -> None:
    """The demo's judge sees her in 0, 7, 5, 8 and 8 of the eight pictures with the trigger."""
    record = asked("epochs.zip", tmp_path)
    best = record["best"]
    assert best["name"] in ("mirelune-000006", "mirelune-000008", "mirelune")
    assert best["failed"] == {}
    assert "mirelune-000002" not in best["ties"]
    selectivity = {row["name"]: row["selectivity"] for row in record["networks"]}
    assert selectivity["mirelune-000002"] < selectivity["mirelune-000004"] < 1.6
    assert min(selectivity[name] for name in ("mirelune-000006", "mirelune-000008", "mirelune")) > 1.8
