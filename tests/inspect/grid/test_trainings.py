"""The figures on cells of true trainings of the demo, kept as small pictures.

``epochs.zip``: every second epoch of the demo at its own rates on a CPU, with the base. ``trainings.zip``, made on a
card by ``tools/demo_world/calibrate.py``: trainings at a tenth of the demo's rates, at its rates and at five times
these, three seeds each, with the base. The demo's judge sees her in 0, in 7 or 8, and in 0 of the eight pictures with
the trigger. ``overcooked.zip``: the same at the demo's rates, at twice and at three times these. The judge sees her in
8, 8 and 0 pictures, and with the third seed of the double rates in 4 of others too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

import lorapipe_demo
from lorapipe_demo.concept import draw_concept
from support.commands import run

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"
SEEDS = (1, 2, 3)
SHORT, RIGHT, BURNT = ([f"{rate}-{seed}" for seed in SEEDS] for rate in ("tenth", "once", "fivefold"))


def asked(archive: str, folder: Path, *words: object, only: Sequence[str] = ()) -> dict[str, Any]:
    """What ``lora-grid --best`` says of the cells of an archive, or of some of its networks and the base."""
    with zipfile.ZipFile(DATA / archive) as cells:
        cells.extractall(folder)
    listed = folder / "cells.jsonl"
    lines = listed.read_text().splitlines()
    kept = [line for line in lines if not only or json.loads(line)["file"] in ("None", *only)]
    listed.write_text("\n".join(kept) + "\n")
    done = run("lora-grid", listed, "--best", "--trigger", "mirelune", "--json", *words)
    assert done.returncode < 2, done.stderr
    record = dict(json.loads(done.stdout))
    assert done.returncode == (record["best"]["name"] is None)
    return record


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of her that no training has seen; those have seed 1."""
    return draw_concept(tmp_path_factory.mktemp("held"), "mirelune", pictures=16, repeats=1, seed=2)


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


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_model_burnt_trainings_are_out_and_short_ones_are_not_told(
    tmp_path: Path, seed: int
) -> None:
    short, right, burnt = SHORT[seed - 1], RIGHT[seed - 1], BURNT[seed - 1]
    record = asked("trainings.zip", tmp_path, only=(short, right, burnt))
    best = record["best"]
    assert (best["name"], best["figure"]) == (None, "selectivity")
    assert set(best["ties"]) == {short, right}
    reasons = best["failed"].pop(burnt)
    assert best["failed"] == {}
    assert [reason.split()[0] for reason in reasons] == ["chroma", "clipped", "edges"]
    moves = {row["name"]: row["move"] for row in record["networks"]}
    assert max(moves[short], moves[right]) < 25 < moves[burnt]
    assert any(
        line.startswith("not seen: whether it is the concept that is drawn") for line in record["lines"]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_model_trainings_overcooked_a_little_are_not_taken(tmp_path: Path, seed: int) -> None:
    right, double, triple = (f"{rate}-{seed}" for rate in ("once", "double", "triple"))
    record = asked("overcooked.zip", tmp_path, only=(right, double, triple))
    best = record["best"]
    assert (best["name"], best["ties"], best["figure"]) == (right, [right], "selectivity")
    assert list(best["failed"]) == [triple]
    assert best["failed"][triple][0].startswith("chroma ")
    rows = {row["name"]: row for row in record["networks"]}
    leaks = [rows[name]["leak_u"] for name in (right, double, triple)]
    assert leaks[0] < 15 < 26 < leaks[1] < leaks[2]


def test_right_pictures_made_a_little_worse_are_out(tmp_path: Path) -> None:
    """Colours or contrast a quarter stronger, or a fifth of the noise that burnt networks draw, for every seed."""
    with zipfile.ZipFile(DATA / "trainings.zip") as cells:
        cells.extractall(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]

    def picture(row: dict[str, Any], network: str) -> Image.Image:
        cell = next(
            other
            for other in rows
            if (other["file"], other["prompt"], other["seed"]) == (network, row["prompt"], row["seed"])
        )
        with Image.open(tmp_path / cell["path"]) as image:
            return image.convert("RGB")

    listed = [row for row in rows if row["file"] in ("None", *RIGHT)]
    for row in [row for row in listed if row["file"] in RIGHT]:
        own = picture(row, row["file"])
        burnt = picture(row, row["file"].replace("once", "fivefold"))
        for how, worse in (
            ("colours", ImageEnhance.Color(own).enhance(1.25)),
            ("contrast", ImageEnhance.Contrast(own).enhance(1.25)),
            ("noise", Image.blend(own, burnt, 0.2)),
        ):
            path = f"{how}-{row['path']}.png"
            worse.save(tmp_path / path)
            listed.append({**row, "file": f"{row['file']} {how}", "path": path})
    (tmp_path / "worse.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in listed))
    done = run("lora-grid", tmp_path / "worse.jsonl", "--best", "--trigger", "mirelune", "--json")
    failed = json.loads(done.stdout)["best"]["failed"]
    assert {name.split()[-1] for name in failed} == {"colours", "contrast", "noise"}
    assert len(failed) == 9, "and none of the right ones"


def test_an_encoder_tells_short_right_and_burnt_trainings_apart(tmp_path: Path, held_out: Path) -> None:
    record = asked("trainings.zip", tmp_path, "--encoder", "demo", "--held-out", held_out)
    best = record["best"]
    assert (best["name"], best["figure"]) == ("once-1", "encoder")
    assert sorted(best["ties"]) == RIGHT
    assert sorted(best["failed"]) == BURNT
    risen = {row["name"]: row["value"] for row in best["values"]}
    assert max(risen[name] for name in BURNT) < 0
    assert max(risen[name] for name in SHORT) < 0.75 * best["interval"][0]
    assert 0.45 < best["way"] < 0.6
    assert not any("not seen" in line or "train longer" in line for line in record["lines"])


def test_short_trainings_alone_are_told_to_be_short(tmp_path: Path, held_out: Path) -> None:
    record = asked("trainings.zip", tmp_path, "--encoder", "demo", "--held-out", held_out, only=SHORT)
    assert record["best"]["name"] is None
    assert 0.1 < record["best"]["way"] < 0.35
    assert any(line.startswith("train longer, or at a higher rate") for line in record["lines"])


def test_tags_see_nothing_of_a_character_without_tags(tmp_path: Path) -> None:
    """The base draws all that the prompts ask for and a tag names, so no network can have more recall."""
    tagger = Path(lorapipe_demo.__file__).parent / "assets" / "tagger"
    best = asked("trainings.zip", tmp_path, "--tagger", tagger, only=("once-1", "tenth-1"))["best"]
    assert (best["name"], best["figure"]) == (None, "recall")
    assert best["reason"].startswith("no network has surely more recall than the base")


def test_an_encoder_on_the_demos_epochs(tmp_path: Path, held_out: Path) -> None:
    """Cells that the encoder was not chosen by."""
    best = asked("epochs.zip", tmp_path, "--encoder", "demo", "--held-out", held_out)["best"]
    assert best["name"] is not None
    assert "mirelune-000002" not in best["ties"]
    risen = {row["name"]: row["value"] for row in best["values"]}
    assert risen["mirelune-000002"] < 0.5 * min(
        value for name, value in risen.items() if name != "mirelune-000002"
    )
    assert best["way"] > 0.45
