"""Figures on drawn cells whose training is known, the choice, and which words a base knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapipe_inspect.grid.judge import constants
from lorapipe_inspect.grid.judge.choose import choose
from lorapipe_inspect.grid.judge.encoders import vendi
from lorapipe_inspect.grid.judge.figures import Figures, headroom
from lorapipe_inspect.grid.judge.pairs import Pairs, prompt_tags
from lorapipe_inspect.grid.looks import distance, measure, to_lab
from support.cells import GOOD, OVERCOOKED, PROMPTS, TRIGGER, UNDERCOOKED, Plan, Training, draw, write_records
from support.commands import run

THREE = {"mina-000002": UNDERCOOKED, "mina-000004": GOOD, "mina": OVERCOOKED}


def best(listed: Path, *words: object) -> tuple[dict[str, Any], str, int]:
    """The record of --best, what was said, the status."""
    done = run("lora-grid", listed, "--best", "--json", *words)
    return (json.loads(done.stdout) if done.stdout else {}), done.stderr, done.returncode


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("three"), Plan(THREE, (0.7, 1.0)))


# -------------------------------------------------------------------------------- formulas


def test_lab_of_known_colours() -> None:
    """Values of the sRGB primaries, as colour tables have them (D65)."""
    lab = to_lab(np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]], dtype=np.uint8))[0]
    assert lab == pytest.approx(
        np.array([[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]]), abs=0.05
    )


def test_distance_and_measures_of_plain_pictures() -> None:
    black, white = (measure(np.full((40, 60, 3), level, np.uint8)) for level in (0, 255))
    assert distance(black, white) == pytest.approx(100, abs=0.01)
    assert (black.clipped, black.edges, white.chroma < 0.02, white.size) == (1.0, 0.0, True, (60, 40))
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 100
    assert measure(stripes).edges == pytest.approx(50, abs=0.1)  # 100 across, 0 down


def test_vendi_counts_different_vectors() -> None:
    assert vendi(np.eye(8, dtype=np.float32)) == pytest.approx(8)
    assert vendi(np.ones((8, 3), dtype=np.float32)) == pytest.approx(1)
    assert vendi(np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)) == pytest.approx(2)


def test_tags_of_a_prompt() -> None:
    assert prompt_tags(r"1girl, (green_hair:1.2), ((Park)), saber \(fate\) BREAK hat, ") == [
        "1girl", "green hair", "park", "saber (fate)", "hat",
    ]  # fmt: skip


def test_headroom_is_the_bend() -> None:
    def pairs_of(moves: dict[float, float]) -> dict[Any, float]:
        networks = {("m", weight): [0] for weight in moves}
        pairs = Pairs([], [], [], [], networks, ("file", "weight"))
        return headroom(pairs, {("m", weight): Figures(1, move) for weight, move in moves.items()})

    assert pairs_of({0.5: 5, 1.0: 10, 1.5: 11, 2.0: 12}) == {("m",): 0.0}
    assert pairs_of({0.5: 5, 1.0: 10, 1.5: 15, 2.0: 40}) == {("m",): 0.5}
    assert pairs_of({0.5: 5, 1.0: 10, 1.5: 15, 2.0: 20}) == {}  # straight
    assert pairs_of({1.0: 10}) == {}


# -------------------------------------------------------------------------------- three trainings


@pytest.mark.slow
def test_three_trainings_are_told_apart(three: Path) -> None:
    record, _, status = best(three, "--trigger", TRIGGER)
    assert status == 0
    assert record["best"]["name"] == "mina-000004, weight 1"
    by_name = {row["name"]: row for row in record["networks"]}
    little, good, burnt = (by_name[f"{name}, weight 1"] for name in THREE)
    assert little["move"] < 2 < good["move"] < burnt["move"]
    assert little["selectivity"] < 1 < 3 < good["selectivity"]
    assert burnt["selectivity"] < 2
    assert good["leak_u"] < burnt["leak_u"] / 10
    assert good["leak_o"] < burnt["leak_o"] / 10
    assert little["spread"] == pytest.approx(1, abs=0.05)
    assert good["spread"] == pytest.approx(1, abs=0.2)
    assert burnt["spread"] < 0.6
    assert max(map(abs, good["burn"].values())) < constants.MOST_MADS < max(burnt["burn"].values())
    assert list(record["best"]["failed"]) == ["mina, weight 0.7", "mina, weight 1"]
    assert record["best"]["pictures"] == 8
    low, high = record["best"]["interval"]
    assert low <= good["selectivity"] <= high


@pytest.mark.slow
def test_the_verdict_in_words(three: Path) -> None:
    done = run("lora-grid", three, "--best", "--trigger", TRIGGER)
    assert "take mina-000004, weight 1: selectivity" in done.stdout
    assert "90 % interval of the highest" in done.stdout
    assert "runner-up: mina-000004, weight 0.7" in done.stdout
    assert "does not pass: mina, weight 1: " in done.stdout
    assert "not tested: unasked tags" in done.stdout


@pytest.mark.slow
def test_cells_that_cannot_tell(tmp_path: Path) -> None:
    few = write_records(tmp_path / "few", Plan(THREE, seeds=range(4)))
    record, _, status = best(few, "--trigger", TRIGGER)
    assert (status, record["best"]["network"]) == (1, None)
    assert record["best"]["reason"] == "4 pictures of the concept for each network, fewer than 8"
    same = write_records(tmp_path / "same", Plan({"a-000001": GOOD, "a-000002": GOOD}))
    record, _, status = best(same, "--trigger", TRIGGER)
    assert (status, record["best"]["ties"]) == (1, ["a-000001", "a-000002"])
    assert "all 2 that pass" in record["best"]["reason"]
    burnt = write_records(tmp_path / "burnt", Plan({"a-000001": OVERCOOKED, "a-000002": OVERCOOKED}))
    record, _, status = best(burnt, "--trigger", TRIGGER)
    assert (status, record["best"]["reason"]) == (1, "no network passes every gate")


@pytest.mark.slow
def test_advice(tmp_path: Path) -> None:
    rising = {"m-000001": UNDERCOOKED, "m-000002": Training(0.4, 0.05), "m": Training(0.6, 0.05)}
    late = write_records(tmp_path / "late", Plan(rising, (0.5, 1.0)))
    assert "train longer" in run("lora-grid", late, "--best", "--trigger", TRIGGER).stdout
    early = write_records(tmp_path / "early", Plan({"m-000001": GOOD}, (0.5, 1.0), parts=("T",)))
    seen_low = tag_records(
        early, lambda row: {"1girl": 0.9, **({"green_hair": 0.9} if row.get("weight") == 0.5 else {})}
    )
    record, _, _ = best(seen_low)
    assert record["best"]["name"] == "weight 0.5"
    assert any(line.startswith("stop earlier") for line in record["lines"])


@pytest.mark.slow
def test_without_a_base_or_a_trigger(tmp_path: Path) -> None:
    listed = write_records(tmp_path, Plan(THREE))
    lines = [line for line in listed.read_text().splitlines() if '"file": null' not in line]
    listed.write_text("\n".join(lines))
    record, told, status = best(listed, "--trigger", TRIGGER)
    assert (status, record) == (2, {})
    assert "no base cells: render the prompts and seeds without a network too" in told
    assert run("lora-grid", listed).returncode == 0


@pytest.mark.slow
def test_a_cell_that_is_missing_takes_its_seed_from_all(three: Path, tmp_path: Path) -> None:
    """Networks are compared on the prompts and seeds that all of them have."""
    lines = three.read_text().splitlines()
    mine = [
        line
        for line in lines
        if '"seed": 3' not in line or "mina-000004" not in line or PROMPTS["T"] not in line
    ]
    assert len(mine) == len(lines) - 2
    (three.parent / "fewer.jsonl").write_text("\n".join(mine))
    record, _, status = best(three.parent / "fewer.jsonl", "--trigger", TRIGGER)
    assert (status, record["best"]["pictures"]) == (1, 7)


@pytest.mark.slow
def test_networks_of_a_few_pictures_leave_the_choice_to_the_others(tmp_path: Path) -> None:
    """A row of weights for one prompt and seed beside the pictures by which epochs are compared."""
    listed = write_records(tmp_path, Plan(THREE))
    row = write_records(tmp_path / "row", Plan(THREE, (0.7, 1.3), seeds=(0,), parts=("T",)))
    more = [json.loads(line) for line in row.read_text().splitlines() if '"file": null' not in line]
    rows = [json.dumps(one | {"path": f"row/{one['path']}"}) + "\n" for one in more]
    listed.write_text(listed.read_text() + "".join(rows))
    record, _, status = best(listed, "--trigger", TRIGGER)
    assert (status, record["best"]["name"], record["best"]["pictures"]) == (0, "mina-000004, weight 1", 8)
    assert sorted(record["best"]["few"]) == sorted(
        f"{name}, weight {weight}" for name in THREE for weight in (0.7, 1.3)
    )
    assert any(
        line.startswith("not compared, for too few pictures: mina-000002, weight 0.7;")
        for line in record["lines"]
    )


def test_ties_go_to_the_earliest_and_the_weight_nearest_1() -> None:
    lucks = [float(luck) for luck in np.random.default_rng(1).normal(0, 0.1, 12)]
    names = [(f"e{epoch}", weight) for epoch in (1, 2, 3) for weight in (0.7, 1.0, 1.3)]
    levels = {"e1": 0.1, "e2": 0.5, "e3": 0.52}
    rows: list[float | None] = []
    networks: dict[Any, list[int]] = {}
    keys: list[Any] = []
    for file, weight in names:
        networks[file, weight] = list(range(len(rows), len(rows) + 12))
        rows += [levels[file] + luck for luck in lucks]
        keys += [(seed,) for seed in range(12)]
    pairs = Pairs([None] * len(rows), keys, keys, [None] * len(rows), networks, ("file", "weight"))
    order = {name: (float(name[0][1:]), name[1]) for name in names}
    choice = choose(pairs, "recall", rows, {}, order)
    assert choice.network == ("e2", 1.0)
    assert {name for name, _ in choice.ties} == {"e2", "e3"}
    refused = choose(pairs, "recall", rows, {("e2", 1.0): ["burnt"]}, order)
    assert refused.network in (("e2", 0.7), ("e2", 1.3))


# -------------------------------------------------------------------------------- a tagger's records


def tag_records(listed: Path, see: Any) -> Path:
    """The records as lora-tag passes them on: ``see`` gives the tags of a record."""
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    for row in rows:
        row |= {
            "size": [96, 96],
            "model": "wd",
            "rating": {"general": 0.9},
            "general": see(row),
            "character": {},
        }
    tagged = listed.with_name("tagged.jsonl")
    tagged.write_text("\n".join(map(json.dumps, rows)))
    return tagged


def seen(row: dict[str, Any]) -> dict[str, float]:
    """The good network draws what the prompt asks for; the burnt one draws the dataset's hat everywhere too."""
    tags = {"1girl": 0.99, "park": 0.8}
    name = (row["file"] or "").removeprefix("run/").removesuffix(".safetensors")
    if name in ("mina-000004", "mina") and "green hair" in row["prompt"]:
        tags["green_hair"] = 0.95
    if name == "mina":
        tags["hat"] = 0.9
    return tags


@pytest.mark.slow
def test_recall_and_unasked_tags(three: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "imgs"
    dataset.mkdir()
    for number in range(4):
        (dataset / f"{number}.txt").write_text("mina, 1girl, green hair, hat")
    tagged = tag_records(three, seen)
    record, _, status = best(tagged, "--trigger", TRIGGER, "--dataset", dataset)
    assert (status, record["best"]["figure"], record["best"]["name"]) == (
        0,
        "recall",
        "mina-000004, weight 1",
    )
    assert record["best"]["untested"] == []
    by_name = {row["name"]: row for row in record["networks"]}
    assert next(iter(by_name["mina, weight 1"]["unasked"].items())) == ("hat", pytest.approx(0.9))
    assert any("unasked tags" in reason for reason in record["best"]["failed"]["mina, weight 1"])
    cell = next(
        row for row in record["cells"] if row["values"].get("file", "").endswith("mina-000004.safetensors")
    )
    # Of 1girl, green hair and park the base has two; mina is no tag of this tagger.
    assert cell["figures"]["recall"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_a_vocabulary_counts_tags_that_no_cell_has(three: Path, tmp_path: Path) -> None:
    tagged = tag_records(three, lambda row: {"1girl": 0.9, **({"park": 0.9} if row["file"] else {})})
    known = tmp_path / "selected_tags.csv"
    known.write_text("tag_id,name,category,count\n1,1girl,0,9\n2,park,0,9\n3,green_hair,0,9\n")
    record, _, _ = best(tagged, "--trigger", TRIGGER, "--vocabulary", known)
    assert recalls(record) == {None, 0.3333}
    record, _, _ = best(tagged, "--trigger", TRIGGER)
    assert recalls(record) == {None, 0.5}


def recalls(record: dict[str, Any]) -> set[float | None]:
    """Of the cells with the trigger; None is the base's."""
    cells = [cell for cell in record["cells"] if PROMPTS["T"] in cell["values"]["prompt"]]
    found = [cell["figures"].get("recall") for cell in cells]
    return {None if value is None else round(value, 4) for value in found}


# -------------------------------------------------------------------------------- which words a base knows


def word_records(tmp_path: Path, tags: dict[str, dict[str, float]], pictures: int = 4) -> Path:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = [
        {"path": "a.png", "trigger": word, "seed": seed, "general": found, "character": {}, "rating": {}}
        for word, found in tags.items()
        for seed in range(pictures)
    ]
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_words_that_the_base_half_knows(tmp_path: Path) -> None:
    common = {"1girl": 0.9, "solo": 0.8}
    listed = word_records(
        tmp_path,
        {
            "ohwx": common,
            "mayuri": {**common, "green_hair": 0.7, "hat": 0.6},
            "sks": {**common, "gun": 0.5},
            "zwx": common,
        },
    )
    done = run("lora-grid", listed)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == (
        "the base half knows mayuri (green hair, hat); sks (gun); it does not know ohwx, zwx"
    )
    # What comes without a word is no word's doing, though other words suppress it.
    bare = word_records(
        tmp_path, {"": {"no_humans": 1.0}, "ohwx": {"no_humans": 1.0}, "hat": common, "mina": common}
    )
    assert run("lora-grid", bare).stdout.splitlines()[-1].endswith("does not know ohwx")
    named = word_records(tmp_path, {"hat": {"hat": 0.9}, "ohwx": common})
    assert "hat (the tagger names it: hat)" in run("lora-grid", named).stdout
    few = word_records(tmp_path, {"mayuri": {"hat": 0.9}, "ohwx": common}, pictures=2)
    assert (
        "cannot tell with fewer than 4 pictures of a word: mayuri (2), ohwx (2)"
        in run("lora-grid", few).stdout
    )


def test_drawn_pictures_differ_as_they_are_meant_to() -> None:
    base = draw("T", 1, None)
    assert draw("T", 1, GOOD, 0.0).tobytes() == base.tobytes()
    assert draw("T", 1, GOOD).tobytes() != base.tobytes()
