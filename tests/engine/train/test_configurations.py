"""Configurations of real users: each passes ``--print-config``, and trains or is refused with key, reason and mend.

The files in tests/data/train_configs hold values as people published them; DATA, OUT, WORK and CFG stand for folders.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.cli import lora_train
from support.configurations import FOREIGN, LEFT_OPEN, NAMES, Place, make_place

# Those that print, and are refused when they are to train: they contradict themselves, ask for what their kind of
# network has not, or for buckets of 256 pixels that no picture of this test has.
CONTRADICTIONS = {
    "c000": "Prodigy has no argument 'scale_parameter'",
    "c018": "text_encoder_lr: trains the text encoders, whose outputs are cached",
    "c052": "smaller than one bucket step of 256",
    "c069": "dim_from_weights: takes the ranks of network_weights",
    "c084": "AdamW has no argument 'scale_parameter'",
    "c090": "smaller than one bucket step of 256",
    # The GUI warns, and Prodigy then takes one rate for both.
    "lora_scripts.toml": "estimates one step size for all, so their rates must be equal",
}
IN_SHORT = ("c007", "c003", "c016", "c025", "c027", "c060", "c072", "c114", "c078", "c088", "c106", "c111")
# An 8-bit optimizer, which needs a card, in its plain form.
PLAIN = {"adamw8bit": "AdamW", "pagedadamw8bit": "AdamW", "lion8bit": "Lion"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("configurations"), side=80)
    for path in (place.root / "CFG").glob("*.toml"):  # sizes of datasets override the command line's
        path.write_text(re.sub(r"(?m)^resolution = \d+$", "resolution = 64", path.read_text()))
    return place


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place.root)
    yield
    shutil.rmtree(place.root / "OUT", ignore_errors=True)


def run(*words: str) -> Result:
    return CliRunner().invoke(lora_train, list(words))


def last_line(result: Result) -> str:
    return result.stderr.strip().splitlines()[-1] if result.stderr.strip() else ""


def test_all_configurations_are_read(place: Place) -> None:
    refused = {}
    for name in NAMES:
        result = run(*place.words(name), "--print-config")
        if result.exit_code:
            refused[name] = str(result.exception) if result.exception else last_line(result)
    assert len(NAMES) == 77
    assert refused == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_of_one_is_the_same_run(name: str, place: Place, tmp_path: Path) -> None:
    printed = run(*place.words(name), "--print-config").stdout
    path = tmp_path / "printed.toml"
    path.write_text(printed)
    again = run("--config_file", str(path), "--print-config").stdout
    assert options(again) == options(printed)


def options(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def train(name: str, place: Place) -> None:
    """Train two steps of a configuration, small and without 8-bit optimizers; or see why it cannot be."""
    train_words(name, place.words(name), place)


def train_words(name: str, words: list[str], place: Place) -> None:
    printed = run(*words, "--print-config").stdout
    optimizer = next(line for line in options(printed) if line.startswith("optimizer_type")).split('"')[1]
    small = [
        "--mixed_precision",
        "no",
        "--resolution",
        "64",
        "--max_train_steps",
        "2",
        "--max_train_epochs",
        "",
    ]
    small += LEFT_OPEN.get(name, [])
    small += ["--no_full_bf16", "--no_full_fp16", "--log_with", "tensorboard", "--device", "cpu"]
    plain = PLAIN.get(optimizer.lower())
    result = run(*words, *small, *(["--optimizer_type", plain] if plain else []))
    if name in CONTRADICTIONS:
        assert (result.exit_code, CONTRADICTIONS[name] in result.stderr) == (2, True), result.stderr
        return
    if "pip install" in last_line(result):
        pytest.skip(f"its package is not installed: {last_line(result)}")
    assert result.exit_code == 0, last_line(result)
    assert list(place.root.glob("OUT/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FOREIGN.iterdir()))
def test_files_of_other_programs_train(name: str, place: Place) -> None:
    path = place.root / "CFG" / name
    path.write_text(re.sub(r"(?m)^resolution = .*$", "resolution = 64", (FOREIGN / name).read_text()))
    train_words(name, ["--config_file", str(path)], place)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_SHORT)
def test_a_dozen_train(name: str, place: Place) -> None:
    train(name, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_SHORT])
def test_the_others_train(name: str, place: Place) -> None:
    train(name, place)
