"""Plans by the command line: axes to records, without a model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.sampling.axes import KINDS, parse_axis
from lorapipe_engine.sampling.cells import Cell, Hashes, cell_infotext
from lorapipe_engine.sampling.infotext import read_infotext
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile, Shelf, expand_files
from support.commands import run

DATA = Path(__file__).parents[2] / "data"
CASES: list[dict[str, Any]] = json.loads((DATA / "see/axis.json").read_text(encoding="utf-8"))["cases"]
NETWORK = DATA / "networks/full.safetensors"
NAMES = ("mina-000002", "mina-000010", "mina-000001", "mina")
NOT_OURS = ("Nothing", "Prompt order")


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A folder of epochs."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(NETWORK, folder / f"{name}.safetensors")
    return folder


def plan(*words: object) -> tuple[list[dict[str, Any]], str]:
    """The records of a dry run, and what was said."""
    result = run("lora-sample", "--base", "demo", "-n", "--json", *words)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def refused(*words: object) -> str:
    """The one line that a command line is refused with."""
    result: subprocess.CompletedProcess[str] = run("lora-sample", "--base", "demo", "-n", *words)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['axis']}: {case['text']!r}")
def test_every_axis_of_a1111_is_read_or_refused_by_name(case: dict[str, Any]) -> None:
    word = f"{case['axis']}:{case['text']}"
    if case["axis"] in NOT_OURS:
        with pytest.raises(ConfigError, match=f"A1111's axis '{case['axis']}' is not supported"):
            parse_axis(word, "--x")
        return
    # Samplers are looked up with the plan.
    answered = case.get("values") and case["text"] not in ("0-1 (+0.3)", "nan", "inf")
    if not answered and case["axis"] != "Sampler":
        with pytest.raises(ConfigError, match=r"--x, column \d+"):
            parse_axis(word, "--x")
        return
    axis = parse_axis(word, "--x")
    assert axis.kind.name in KINDS
    if case["type"] == "str":
        assert list(axis.values) == case.get("values", [case["text"]])
    else:
        assert axis.values == pytest.approx(case["values"], abs=1e-8)


@pytest.mark.parametrize(
    ("name", "kind", "number"),
    [
        ("AddNet Weight 2", "weight", 2),
        ("weight 2", "weight", 2),
        ("addnet tenc weight 1", "te", 1),
        ("clip-skip", "clip skip", 1),
        ("clip_skip", "clip skip", 1),
        ("CFG Scale", "cfg", 1),
        ("Prompt S/R", "sr", 1),
        ("Schedule type", "schedule", 1),
    ],
)
def test_names_of_axes(name: str, kind: str, number: int) -> None:
    axis = parse_axis(f"{name}:1", "--x")
    assert (axis.kind.name, axis.number) == (kind, number)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--x", "seed:5-1"), "--x, column 6: "),
        (("--y", "cfg:7,x"), "--y, column 7: "),
        (("--x", "seeed:1"), "did you mean 'seed'"),
        (("--x", "Denoising:0.5"), "A1111's axis 'Denoising' is not supported"),
        (("--x", "sampler:Euler, Eular"), "--x, column 16: 'Eular' is no sampler, did you mean 'Euler'"),
        (("--sampler", "eular"), "sampler: 'eular' is no sampler, did you mean 'Euler'"),
        (("--x", "size:512x512,512x510"), "--x, column 14: 512x510: sides are multiples of 8"),
        (("--x", "clip skip:0-2"), "clip skip 0 is not from 1 to 12"),
        (("--x", "weight:1"), "there is no network for the axis weight"),
        (("--x", "seed:1", "--y", "seed:2"), "--y: --x is the axis seed already"),
        (("--x", "prompt"), "write NAME:VALUES"),
        (("--x", "sr:cat,dog"), "'cat' is neither in the prompt"),
        (("--x", "sr:,dog"), "is empty"),
        (("--x", "seed:"), "has no value"),
        (("--x", "file:nowhere/*.x"), "--x, column 6: nowhere/*.x matches no network file"),
        (("nowhere.safetensors",), "no such file or folder"),
        (("--prompt", "<lora:x:1>"), "<lora:x>: there is no such network"),
        (("--prompt", "[a:b:0.5]"), "prompt editing"),
        (("--prompt", "__x__"), "no such wildcard"),
        (("--negative", "<lora:x:1>"), "no effect in a negative prompt"),
        (("--sampler", "Euler", "--eta", "0.5"), "Euler scales no noise"),
        (("--sampler", "ddim", "--schedule", "karras"), "DDIM has a schedule of its own"),
        (("--sampler", "ddim", "--steps", "1"), "no evaluation left"),
        (("--x", "seed:1-1000", "--y", "steps:1-999"), "999,000 cells are more than 100,000"),
        (("--x", "base:demo,nowhere.ckpt"), "nowhere.ckpt: no such file"),
        (("--probe", "wieght"), "did you mean 'weight'"),
        (("--probe", "weight"), "name the networks"),
        (("--probe", "trigger="), "give the words to try"),
        (("--probe", "seeds", "--x", "seed:1"), "--x has no use with --probe"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words: tuple[str, ...], told: str) -> None:
    assert told in refused(*words)


# ---------------------------------------------------------------------------------------------- cells


def test_epochs_against_weights_with_a_base_column(networks: Path) -> None:
    records, told = plan(networks, "--y", "weight:0.7-1.5 [5]", "--prompt", "mina, {beach|forest}")
    assert len(records) == 25
    files = ["None", "mina-000001", "mina-000002", "mina-000010", "mina"]
    assert [record["axes"]["file"] for record in records] == files * 5
    assert list(dict.fromkeys(record["axes"]["weight"] for record in records)) == [0.7, 0.9, 1.1, 1.3, 1.5]
    base = [record for record in records if record["file"] == "None"]
    # The base draws one picture, whatever weight it is compared with.
    assert len({record["path"] for record in base}) == 1
    assert len({record["path"] for record in records}) == 21
    assert "25 cells, 21 pictures (4 of the cells are equal to others): 64x64, 420 evaluations" in told
    assert len({record["prompt"] for record in records}) == 1
    assert records[1]["networks"] == [
        {"path": str(networks / "mina-000001.safetensors"), "name": "mina-000001", "te": 0.7, "unet": 0.7}
    ]


def test_every_value_is_a_number_or_a_text(networks: Path) -> None:
    records, _ = plan(
        *(networks / "mina.safetensors", "--x", "seed:-1--1 [3]", "--y", "te:0,1", "--prompt", "a"),
        *("--z", "sampler:euler a,DPM++ 2M", "--sheet", "size:64x64,64x128", "--sheet", "cfg:7.5"),
    )
    assert len(records) == 3 * 2 * 2 * 2 * 1 * 2
    for record in records:
        assert list(record["axes"]) == ["seed", "te", "sampler", "size", "cfg", "file"]
        assert all(isinstance(value, int | float | str) for value in record["axes"].values())
        assert record["size"] == record["axes"]["size"]
        assert record["schedule"] == {"Euler a": "Automatic", "DPM++ 2M": "Karras"}[record["sampler"]]
    seeds = {record["seed"] for record in records}
    assert len(seeds) == 3
    assert -1 not in seeds
    with_network = next(
        record for record in records if record["file"] == "mina" and record["axes"]["te"] == 0
    )
    assert (with_network["te"], with_network["unet"]) == (0, 1)


def test_seeds_are_drawn_once_and_alike() -> None:
    words = ("--x", "seed:-1--1 [8]", "--y", "steps:10,20", "--prompt", "a {b|c|d|e}")
    records, _ = plan(*words)
    again, _ = plan(*words)
    assert records == again
    first, second = records[:8], records[8:]
    assert [record["seed"] for record in first] == [record["seed"] for record in second]
    assert len({record["seed"] for record in first}) == 8
    # One draw of words for each seed, whatever it is compared with.
    assert [record["prompt"] for record in first] == [record["prompt"] for record in second]
    assert len({record["prompt"] for record in first}) > 1
    other, _ = plan(*words, "--draw-seed", "1")
    assert {record["seed"] for record in other}.isdisjoint(record["seed"] for record in records)


def test_texts_are_replaced_everywhere_before_words_are_drawn() -> None:
    records, _ = plan(
        *(
            "--x",
            "sr:cat,dog,cow",
            "--y",
            "seed:1-4",
            "--prompt",
            "cat, {a|b|c} cat",
            "--negative",
            "cat ears",
        )
    )
    assert records[2]["negative"] == "cow ears"
    for row in range(4):
        cats, dogs, cows = (record["prompt"] for record in records[row * 3 : row * 3 + 3])
        assert cats.count("cat") == 2
        assert dogs == cats.replace("cat", "dog")
        assert cows == cats.replace("cat", "cow")


def test_a_replaced_text_that_another_axis_searches_is_told() -> None:
    words = ("--x", "sr:red cat,blue dog", "--y", "sr:cat,cow", "--prompt", "red cat")
    assert "another axis has replaced it" in refused(*words)


def test_networks_of_prompts_and_of_every_picture(networks: Path) -> None:
    records, _ = plan(
        *("--prompt", "a <lora:mina-000001:0.5:0.2> cat", "--lora-dir", networks, "--x", "weight:0.5,1"),
        *("--network", f"{networks / 'mina.safetensors'}:0.8"),
    )
    # Weight 0 by itself is the base column of a plan without an axis of files.
    assert [record["axes"]["weight"] for record in records] == [0, 0.5, 1]
    assert records[0]["networks"] == records[1]["networks"][1:]
    assert (records[1]["file"], records[1]["file 2"]) == ("mina", "mina-000001")
    assert (records[1]["te 2"], records[1]["unet 2"]) == (0.5, 0.2)
    alone, _ = plan("--network", f"{networks / 'mina.safetensors'}:0.8", "--prompt", "a")
    assert alone[0]["weight"] == 0.8


def test_files_have_names_of_their_own(networks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(NETWORK, other / "mina.safetensors")
    records, _ = plan(networks / "mina.safetensors", other, "--no-base-column", "--prompt", "a")
    assert [record["file"] for record in records] == ["run/mina", "other/mina"]
    together = f"{networks / 'mina.safetensors'} + {other / 'mina.safetensors'}"
    records, _ = plan("--x", f"file:{together}", "--prompt", "a")
    assert [record["file"] for record in records] == ["None", "run/mina + other/mina"]
    assert [row["name"] for row in records[1]["networks"]] == ["run/mina", "other/mina"]
    shelf = Shelf([networks, other])
    with pytest.raises(ConfigError, match="may be"):
        shelf.find("mina", "prompt")
    assert shelf.find("other/mina", "prompt").path == other / "mina.safetensors"


@pytest.mark.parametrize("name", ["None", "none"])
def test_a_network_called_none_is_not_the_base(name: str, tmp_path: Path) -> None:
    """Its label was the base column's, which the network was drawn in the place of."""
    (tmp_path / "run").mkdir()
    file = network_with(tmp_path / "run" / f"{name}.safetensors", {})
    rows, _ = plan("--x", f"file:{file}", "--prompt", "hat")
    assert [row["file"] for row in rows] == ["None", f"run/{name}"]
    assert [len(row.get("networks", ())) for row in rows] == [0, 1]
    assert len({row["path"] for row in rows}) == 2
    for words in (
        ("--network", file, "--prompt", "hat"),
        ("--lora-dir", tmp_path, "--prompt", f"hat <lora:{name}:1>"),
    ):
        rows, _ = plan(*words)
        assert [(row["file"], row["weight"]) for row in rows] == [(f"run/{name}", 1.0)]


def test_epochs_are_in_the_order_of_training(networks: Path) -> None:
    names = [path.stem for path in expand_files(str(networks), "--x")]
    assert names == ["mina-000001", "mina-000002", "mina-000010", "mina"]
    assert [path.stem for path in expand_files(f"{networks}/mina-*.safetensors", "--x")] == names[:3]


def test_a_plan_file_names_folders(tmp_path: Path, networks: Path) -> None:
    wild = tmp_path / "wild"
    wild.mkdir()
    (wild / "place.txt").write_text("beach\n")
    toml = tmp_path / "p.toml"
    toml.write_text(
        f'prompt = "__place__ <lora:mina:0.5>"\noutput_dir = "{tmp_path}/out"\nwildcards = "{wild}"\n'
        f'lora_dir = ["{networks}"]\n',
        encoding="utf-8",
    )
    (record,), _ = plan("--plan", toml)
    assert Path(record["path"]).parent == tmp_path / "out"
    assert record["prompt"].startswith("beach")
    assert record["networks"][0]["name"] == "mina"


def test_a_plan_file_is_overridden_by_the_command_line(tmp_path: Path) -> None:
    toml, json_file = tmp_path / "p.toml", tmp_path / "p.json"
    toml.write_text('prompt = "a, b"\nx = "seed:1-3"\nsheet = ["cfg:5,7"]\nsteps = 30\n', encoding="utf-8")
    json_file.write_text(json.dumps({"prompt": "a, b", "x": "seed:1-3", "z": ["cfg:5,7"], "steps": 30}))
    by_toml, _ = plan("--plan", toml)
    by_json, _ = plan("--plan", json_file)
    assert by_toml == by_json
    assert len(by_toml) == 6
    assert by_toml[0]["steps"] == 30
    changed, _ = plan("--plan", toml, "--steps", "12", "--x", "seed:9")
    assert [record["axes"]["seed"] for record in changed] == [9, 9]
    assert changed[0]["steps"] == 12
    toml.write_text('promt = "a"\n')
    assert "p.toml, line 1: promt: unknown key, did you mean 'prompt'" in refused("--plan", toml)
    toml.write_text('prompt = "a"\nsteps = "x"\n')
    assert "line 2" in refused("--plan", toml)


def test_nothing_is_drawn_without_what_it_needs() -> None:
    result = run("lora-sample", "--prompt", "a")
    assert result.returncode == 2
    assert "no base model" in result.stderr


# ---------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("name", "axes", "cells"),
    [
        ("weight", ["file", "weight"], 25),
        ("seeds", ["file", "seed"], 40),
        ("leak", ["file", "prompt", "seed"], 120),
        ("text-encoder", ["file", "prompt", "te"], 75),
        ("headroom", ["weight", "seed", "file"], 180),
        ("resize", ["file", "seed"], 20),
        ("merge", ["file", "seed"], 24),
    ],
)
def test_probes_are_plans(name: str, axes: list[str], cells: int, networks: Path) -> None:
    extra = ("--trigger", "mina") if name == "leak" else ()
    files = [networks / f"{stem}.safetensors" for stem in sorted(NAMES, reverse=True)]
    records, _ = plan("--probe", name, *files, "--prompt", "mina, 1girl", *extra)
    assert list(records[0]["axes"]) == axes
    assert len(records) == cells
    assert any(record["file"] == "None" for record in records)


def test_the_leak_probe_takes_the_trigger_out(networks: Path) -> None:
    words = (
        "--probe",
        "leak",
        networks / "mina.safetensors",
        "--prompt",
        "1girl, mina, smile",
        "--trigger",
        "mina",
    )
    records, _ = plan(*words)
    kinds = {record["prompt"]: record["kind"] for record in records}
    assert kinds["1girl, mina, smile"] == "trigger"
    assert kinds["1girl, smile"] == "same"
    assert list(kinds.values()) == [kind for kind in ("trigger", "same", "other") for _ in range(2)]
    # As many pictures of the concept as lora-grid --best asks for, of every network.
    asking = [record["file"] for record in records if record["kind"] == "trigger"]
    assert {name: asking.count(name) for name in asking} == {"None": 8, "mina": 8}
    assert "is not in the prompt" in refused(*words[:-1], "nina")
    assert "is not in the prompt" in refused(*words[:-1], "smil")


def test_the_trigger_probe_draws_with_the_base_alone(networks: Path) -> None:
    records, _ = plan("--probe", "trigger=mina, mayuri", "--prompt", "TRIGGER, 1girl")
    # The base without a word is what the words are compared with.
    assert {record["axes"]["trigger"] for record in records} == {"", "mina", "mayuri"}
    assert {record["prompt"] for record in records} == {", 1girl", "mina, 1girl", "mayuri, 1girl"}
    assert {record["file"] for record in records} == {"None"}
    assert "base alone" in refused("--probe", "trigger=a", networks)


def test_the_merge_probe_puts_the_parts_into_one_picture(networks: Path) -> None:
    names = [networks / f"{stem}.safetensors" for stem in ("mina-000001", "mina-000002", "mina")]
    records, _ = plan("--probe", "merge", *names, "--prompt", "mina")
    labels = list(dict.fromkeys(record["file"] for record in records))
    assert labels == ["None", "mina-000001", "mina-000002", "mina-000001 + mina-000002", "mina"]


# ---------------------------------------------------------------------------------------------- parameters


def test_a_cells_parameters_repeat_it(tmp_path: Path) -> None:
    file = NetworkFile(tmp_path / "mina.safetensors", "mina")
    style = NetworkFile(tmp_path / "style.safetensors", "style")
    cell = Cell(
        prompt="a <lora:style:0.5> cat",
        text="a  cat",
        negative="bad",
        networks=(Loaded(file, 0.8, 0.8), Loaded(style, 0.5, 0.5, True)),
        **{"seed": 7, "steps": 20, "sampler": "DDIM", "schedule": "Automatic", "cfg": 7.0, "eta": 0.5},
        **{"width": 512, "height": 768, "clip_skip": 2, "base": "/models/my base.safetensors", "vae": None},
    )
    text = cell_infotext(cell, Hashes("0123456789", None, {file.path: "a" * 12, style.path: "b" * 12}))
    info = read_infotext(text)
    assert info.prompt == "a <lora:style:0.5> cat <lora:mina:0.8>"
    assert info.negative == "bad"
    assert info.pairs == {
        "Steps": "20",
        "Sampler": "DDIM",
        "Schedule type": "Automatic",
        "CFG scale": "7.0",
        "Seed": "7",
        "Size-1": "512",
        "Size-2": "768",
        "Model hash": "0123456789",
        "Model": "my base",
        "Clip skip": "2",
        "RNG": "CPU",
        "Eta DDIM": "0.5",
        "Lora hashes": "mina: aaaaaaaaaaaa, style: bbbbbbbbbbbb",
        "Version": "lorapipe 0.1.0",
    }


# ---------------------------------------------------------------------------------------------- clip skip


def network_with(path: Path, metadata: dict[str, str]) -> Path:
    with open_tensors(NETWORK) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    write_tensors(path, tensors, metadata)
    return path


def test_clip_skip_of_the_networks_where_it_is_asked_for(tmp_path: Path) -> None:
    two = network_with(tmp_path / "two.safetensors", {"ss_clip_skip": "2"})
    also = network_with(tmp_path / "also.safetensors", {"ss_clip_skip": "2"})
    silent = network_with(tmp_path / "silent.safetensors", {"ss_clip_skip": "None"})
    rows, _ = plan(two)
    assert {row["clip_skip"] for row in rows} == {1}
    rows, said = plan(two, silent, also, "--network-clip-skip")
    # The base beside them too, so that it can be compared.
    assert {row["clip_skip"] for row in rows} == {2}
    assert "note: clip skip: the networks say 2" in said
    rows, said = plan(silent, "--network-clip-skip", "--clip-skip", "3")
    assert {row["clip_skip"] for row in rows} == {3}
    assert "note: clip skip: no network says one, so 3 is taken" in said


def test_clip_skips_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    two = network_with(tmp_path / "two.safetensors", {"ss_clip_skip": "2"})
    one = network_with(tmp_path / "one.safetensors", {"ss_clip_skip": "1"})
    said = refused(one, two, "--network-clip-skip")
    assert "one.safetensors was trained with 1, two.safetensors with 2" in said
    assert "an axis has the clip skip already" in refused(two, "--network-clip-skip", "--y", "clip skip:1,2")
