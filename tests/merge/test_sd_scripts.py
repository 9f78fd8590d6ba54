"""sd-scripts' own lines do what they ask for, and what would be ignored is refused with the line to write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_merge.sd_scripts import translated
from support.commands import run

PEOPLE = Path(__file__).parents[1] / "data" / "people"
PAIR = ["r4.safetensors", "lora_unet_only.safetensors"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            ["--sd_model", "sd1_base.safetensors", "--models", *PAIR, "--ratios", "0.4", "-0.6"],
            ["sd1_base.safetensors", f"{PAIR[0]}:0.4", f"{PAIR[1]}:-0.6"],
        ),
        (
            ["--models", *PAIR, "--ratios", "0.4", "0.6", "--concat"],
            ["--networks", f"{PAIR[0]}:0.4", f"{PAIR[1]}:0.6"],
        ),
        (
            ["--models", *PAIR, "--ratios", ".4", ".6", "--concat", "--shuffle"],
            ["--networks", f"{PAIR[0]}:0.4", f"{PAIR[1]}:0.6", "--shuffle", "0"],
        ),
        (
            [
                "--models",
                *PAIR,
                "--ratios",
                ".4",
                ".6",
                "--new_rank",
                "3",
                "--new_conv_rank",
                "2",
                "--device",
                "cuda",
            ],
            [
                "--networks",
                f"{PAIR[0]}:0.4",
                f"{PAIR[1]}:0.6",
                "--mode",
                "svd",
                "--new-rank",
                "3",
                "--conv-rank",
                "2",
            ],
        ),
    ],
)
def test_a_line_of_theirs_is_one_of_ours(theirs: list[str], ours: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    done = run("lora-merge", *theirs, "--save_precision", "float", "--save_to", one, cwd=PEOPLE)
    assert done.returncode == 0, done.stderr
    assert "note: sd-scripts' line, here: lora-merge " in done.stderr
    assert run("lora-merge", *ours, "--save_precision", "fp32", "-o", two, cwd=PEOPLE).returncode == 0
    with open_tensors(one) as first, open_tensors(two) as second:
        assert first.tensors.keys() == second.tensors.keys()
        assert all(bytes(first.raw(key)) == bytes(second.raw(key)) for key in first.tensors)


def test_block_weights_and_endings() -> None:
    theirs = ["--models", "a", "b", "--ratios", "1", "2", "--lbws", "1,0", "1,0", "--save_to", "o"]
    assert translated(theirs) == ["--networks", "a:1", "b:2", "--blocks", "1,0", "--save_to", "o"]
    for words in (["--output", "o"], ["--output=o"]):
        own = translated(["--models", "a", "b", "--ratios", ".5", ".5", *words])
        assert own is not None
        assert own[-1].endswith("o.safetensors")


@pytest.mark.parametrize(
    "words",
    [
        ["--models", "a", "b", "-o", "x"],
        ["--models", "a", "b", "--output", "x", "--ratio", "0.3"],
        ["--models", "a", "b", "--ratio", "0.3", "-o", "x"],
        ["--models", "a", "b", "--ratio=0.3", "-o", "x"],
        ["--models", "a", "--ratio", "0.3", "-o", "x"],
        ["--models", "--ratio", "0.3", "a", "b", "-o", "x"],
        ["--models", "a", "b", "--ratio", "0.3", "c", "-o", "x"],
        ["--networks", "a", "b", "--ratio", "0.3"],
        ["base", "a:0.3", "-o", "x"],
    ],
)
def test_lines_of_ours_stay(words: list[str]) -> None:
    assert translated(words) is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--models", "a", "b", "--ratios", "1", "2", "--lbws", "1,1", "1,0"],
            "put each network's into it first: lora-merge --networks LORA --blocks 1,1 -o",
        ),
        (["--models", "a", "b", "--ratios", "1", "2", "3"], "--models has 2 networks and --ratios 3 numbers"),
        (["--sd_model", "c", "--models", "a", "b", "--ratios", "1"], "--models has 2 networks"),
        (
            ["--sd_model", "c", "--models", "a", "--ratios", "1", "--vae", "v"],
            "--vae: is no option of sd-scripts'",
        ),
    ],
)
def test_lines_with_faults(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        translated(words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--networks", *PAIR, "--ratio", ".8", "--ratio", ".5"], "--ratio is given twice"),
        (["sd1_base.safetensors", *PAIR, "--ratio=.8", "--ratios=.5"], "--ratio is given twice"),
        (["--networks", f"{PAIR[0]}:.5", "--ratio", ".8"], "each network has a ratio of its own"),
        (["--models", "sd1_base.safetensors:0.7", "sd1_base.safetensors"], "say it with --ratio"),
        (["--models", "sd1_base.safetensors:0.5", "sd1_base.safetensors:0.3"], "say it with --ratio"),
        (
            ["--models", "sd1_base.safetensors", "sd1_base.safetensors:0.3", "--ratio", "1"],
            "give the ratio once",
        ),
        (["sd1_base.safetensors", PAIR[0], "--lbws", "1,1"], "use --blocks"),
    ],
)
def test_ratios_that_would_be_ignored(words: list[str], text: str, tmp_path: Path) -> None:
    done = run("lora-merge", *words, "-o", tmp_path / "o.safetensors", cwd=PEOPLE)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_ignored_option_takes_one_word(tmp_path: Path) -> None:
    words = ["sd1_base.safetensors", "--device", "cuda", *PAIR, "-o", tmp_path / "o.safetensors"]
    done = run("lora-merge", *words, cwd=PEOPLE)
    assert done.returncode == 0
    assert "merged 20 of 20 modules" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("lora-merge", ["sd1_base.safetensors", "r4.safetensors"]),
        ("lora-merge", ["--networks", "r4.safetensors"]),
        ("lora-merge", ["--models", "sd1_base.safetensors", "sd1_base.safetensors"]),
        ("lora-convert", ["r4.safetensors", "--to", "diffusers"]),
        ("lora-resize", ["r4.safetensors", "--new-rank", 2]),
        ("lora-inspect", ["delta", "r4.safetensors"]),
        ("lora-inspect", ["meta", "r4.safetensors", "--set", "a=b"]),
    ],
)
@pytest.mark.parametrize("name", ["o.ckpt", "o.PT", "o.pth", "o.bin"])
def test_no_weights_under_another_formats_name(
    command: str, words: list[object], name: str, tmp_path: Path
) -> None:
    done = run(command, *words, "-o", tmp_path / name, cwd=PEOPLE)
    assert done.returncode == 2, done.stderr
    assert "would hold safetensors under another format's name; call it o.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


BASES = ["sd1_base.safetensors", "other.safetensors", "third.safetensors"]


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    """Three checkpoints of one shape, of different numbers."""
    with open_tensors(PEOPLE / BASES[0]) as file:
        for factor, name in enumerate(BASES, start=1):
            scaled = {
                key: (file.read(key) * (factor if info.dtype == "F16" else 1)).astype(file.read(key).dtype)
                for key, info in file.tensors.items()
            }
            write_tensors(tmp_path / name, scaled, file.metadata)
    return tmp_path


def test_several_ratios_of_checkpoints(bases: Path) -> None:
    """merge_models.py's line: each model times its ratio."""
    words = ["--models", *BASES, "--output", "m.safetensors", "--ratios", "0.5", "0.3", "0.2"]
    done = run("lora-merge", *words, "--device", "cuda", "--saving_precision", "float", cwd=bases)
    assert done.returncode == 0, done.stderr
    assert "--method average --save_precision float --output m.safetensors" in done.stderr
    assert "ratios 0.5 0.3 0.2" in done.stderr
    equal = ["--models", *BASES, "--output", "e.safetensors", "--saving_precision", "float", "--show_skipped"]
    assert run("lora-merge", *equal, cwd=bases).returncode == 0
    with open_tensors(bases / BASES[0]) as base:
        for name, factor in (("m.safetensors", 0.5 + 2 * 0.3 + 3 * 0.2), ("e.safetensors", 2.0)):
            with open_tensors(bases / name) as merged:
                key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
                assert merged.tensors[key].dtype == "F32"
                assert np.allclose(merged.read(key), factor * base.read(key).astype(np.float64), rtol=2e-3)
    with open_tensors(bases / "m.safetensors") as merged:
        recipe = json.loads(merged.metadata["lora_merge.recipe"])
    assert [model["ratio"] for model in recipe["models"]] == [0.5, 0.3, 0.2]


def test_ratios_whose_sum_is_not_1_are_said(bases: Path) -> None:
    words = ["--models", *(f"{name}:0.5" for name in BASES), "--method", "average", "-o", "m.safetensors"]
    done = run("lora-merge", *words, cwd=bases)
    assert done.returncode == 0, done.stderr
    assert "note: the ratios' sum is 1.5" in done.stderr


def test_the_unet_alone(bases: Path) -> None:
    words = ["--models", *BASES[:2], "--output", "m.safetensors", "--ratios", "0.75", "0.25", "--unet_only"]
    done = run("lora-merge", *words, "--saving_precision", "fp16", cwd=bases)
    assert done.returncode == 0, done.stderr
    with open_tensors(bases / BASES[0]) as base, open_tensors(bases / "m.safetensors") as merged:
        for key in base.tensors:
            factor = 1.25 if key.startswith("model.diffusion_model.") else 1.0
            assert np.allclose(
                merged.read(key), factor * base.read(key).astype(np.float64), rtol=2e-3, atol=1e-4
            ), key


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--models", "a", "b", "--output", "o", "--ratios", "1", "2", "3"],
            "has 2 checkpoints and --ratios 3",
        ),
        (["--models", "a", "b", "c", "--output", "o", "--unet_only"], "is done for two models"),
        (
            ["--models", "a", "b", "--output", "o", "--unet_only", "--ratios", "1", "1"],
            "is done for two models",
        ),
        (
            ["--models", "a", "b", "--output", "o", "--ratios", "1", "1", "--lbw", "1"],
            "--lbw: is no option of sd-scripts' merge_models.py",
        ),
    ],
)
def test_lines_of_merge_models_with_faults(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        translated(words)


def test_an_average_has_all_ratios_or_none(bases: Path) -> None:
    done = run(
        "lora-merge", "--models", f"{BASES[0]}:1", BASES[1], "--method", "average", "-o", "m", cwd=bases
    )
    assert done.returncode == 2
    assert "give every model a ratio of its own, or none" in done.stderr
