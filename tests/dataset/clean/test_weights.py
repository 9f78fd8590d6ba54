"""Weights of prompts in captions: taken out in every form that training reads, while names and faces stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import run

Clean = Callable[..., Any]
WEIGHTS = [
    ("(smile, (red hat:1.1):1.2), 1girl", "smile, red hat, 1girl"),
    ("((smile, hat)), 1girl", "smile, hat, 1girl"),
    ("[smile, hat], 1girl", "smile, hat, 1girl"),
    ("(v:1.2), 1girl", "v, 1girl"),
    ("((v:1.2), w), [[hat]]", "v, w, hat"),
    ("[smile:1.2], (hat:.5), (scarf: 2)", "smile, hat, scarf"),
    ("a (red:1.2) hat, (smile:1.1) (cat:0.9)", "a red hat, smile cat"),
    ("mayuri, (smile ||| hat:1.2), (cat)", "mayuri, smile ||| hat, cat"),
    ("((mayuri (character):1.2)), hat", "mayuri (character), hat"),
    (r"(mayuri \(character\), hat:1.2)", r"mayuri \(character\), hat"),
    (r"(smile, :(, \(^o^)/, hat:1.2), (^_^:1.2)", r"smile, :(, \(^o^)/, hat, ^_^"),
    ("(smile, ;):1.3), (>:(:1.2)", "smile, ;), >:("),
]
STAY = [
    "mayuri (character), rem (re:zero), saber (fate, stay night)",
    r"mayuri \(character\), \(x\) hat",
    r":(, (o)_(o), :3, ;), >:(, \(^o^)/, (9), (^_^), (;_;)",
    "(:, smile, :)",
    "clock (12:30), (smile, hat",
]


@pytest.mark.parametrize(("caption", "expected"), [*WEIGHTS, *((text, text) for text in STAY)])
def test_weights_go_and_brackets_of_names_stay(
    clean: Clean, tmp_path: Path, caption: str, expected: str
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(caption)
    for _ in range(2):
        assert clean(file, "--strip-weights").code == 0
        assert file.read_text() == expected


def test_nothing_is_left_that_the_check_calls_a_weight(clean: Clean, tmp_path: Path) -> None:
    folder = tmp_path / "1_x"
    folder.mkdir()
    for number, (caption, _) in enumerate(WEIGHTS):
        (folder / f"{number}.png").write_bytes(b"png")
        (folder / f"{number}.txt").write_text(caption)
    words = ("lora-check", tmp_path, "--json", "--no-look", "--only", "prompt-syntax")
    assert json.loads(run(*words).stdout)["findings"]
    assert clean(folder, "--strip-weights").code == 0
    assert json.loads(run(*words).stdout)["findings"] == []


def test_in_sentences_only_numbers_make_weights(clean: Clean, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("(A girl), who (smiles:1.2), in a (red hat, blue coat:1.1).")
    clean(file, "--strip-weights", "--style", "text")
    assert file.read_text() == "(A girl), who smiles, in a red hat, blue coat."


def test_a_trigger_keeps_its_brackets(clean: Clean, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("((smile)), x")
    for _ in range(2):
        assert clean(file, "--strip-weights", "--trigger", "((mira)), (mayu:1.2)").code == 0
        assert file.read_text() == "((mira)), (mayu:1.2), smile, x"
