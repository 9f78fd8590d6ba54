"""Prompt files in kohya's forms."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.train.sample.prompts import Prompt, parse_line, read_prompts

DEFAULT = Prompt(text="", width=64, height=64)


def test_a_line_with_options() -> None:
    found = parse_line("a girl, 1girl --n bad --w 100 --h 72 --d 7 --s 12 --l 4.5 --ss euler_a", DEFAULT)
    assert found == Prompt(
        text="a girl, 1girl",
        negative="bad",
        width=96,
        height=72,
        seed=7,
        steps=12,
        scale=4.5,
        sampler="euler_a",
    )


def test_a_prompt_that_begins_with_n_is_no_negative() -> None:
    assert parse_line("n girl --d 1", DEFAULT).text == "n girl"


def test_text_file_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeff# comment\n\nfirst\nsecond --d 3\n", encoding="utf-8")
    assert [(p.text, p.seed) for p in read_prompts(path, DEFAULT)] == [("first", None), ("second", 3)]


def test_toml_and_json(tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    toml.write_text(
        '[prompt]\nwidth = 72\n[[prompt.subset]]\nprompt = "a"\n[[prompt.subset]]\nprompt = "b"\nseed = 2\n'
    )
    assert [(p.text, p.width, p.seed) for p in read_prompts(toml, DEFAULT)] == [("a", 72, None), ("b", 72, 2)]
    json = tmp_path / "p.json"
    json.write_text('[{"prompt": "a", "sample_steps": 4}]')
    assert read_prompts(json, DEFAULT)[0].steps == 4


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a --w x", "number"),
        ("a --zz 1", "--zz"),
        ("a --w 4", "too small"),
        ("a \u2013n bad", "long dash.*write --n"),
        ("a, b \u2014ss euler_a", "long dash.*write --ss"),
        ("Negative prompt: bad", "write them behind the prompt"),
        ("Steps: 20, Sampler: Euler a", "write them behind the prompt"),
    ],
)
def test_bad_lines_say_where(tmp_path: Path, line: str, word: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(f"good\n{line}\n")
    with pytest.raises(ConfigError, match=f"p.txt:2.*{word}"):
        read_prompts(path, DEFAULT)


def test_what_is_like_an_option_and_none_is_the_prompts() -> None:
    text = "a \u2013 b, long\u2014n, steps: 3"
    assert parse_line(text, DEFAULT) == Prompt(text=text, width=64, height=64)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.toml", '[[prompts]]\nprompt = "a"\n', "prompts: unknown key"),
        ("p.toml", '[prompt]\nprompt = "a"\n[[subset]]\nprompt = "b"\n', "subset: unknown key"),
        ("p.toml", "[prompt]\nwidth = 64\n", "prompt 1: has no 'prompt'"),
        ("p.json", '[{"prompt": "a"}, {"negative_prompt": "b"}]', "prompt 2: has no 'prompt'"),
    ],
)
def test_no_prompt_is_lost_and_none_is_empty(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises((ConfigError, InputError), match=said):
        read_prompts(path, DEFAULT)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="no prompt"):
        read_prompts(tmp_path / "empty.txt", DEFAULT)
    with pytest.raises(InputError, match=r"missing\.txt"):
        read_prompts(tmp_path / "missing.txt", DEFAULT)
