"""Options from flags, TOML and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.command import tool_command
from lorapipe_engine.config import build_settings, option, print_config, settings_options
from lorapipe_engine.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Shape:
    size: tuple[int, int] = option((512, 512), "Size.")
    depth: int | None = option(None, "Depth.", min=1, max=9)
    kind: str = option("plain", "Kind.", choices=("plain", "fancy"))


@dataclass(frozen=True, kw_only=True)
class Work:
    rate: float = option(0.5, "Rate.", min=0)
    words: tuple[str, ...] = option((), "Words.")
    loud: bool = option(False, "Loud.", alias="noisy")
    place: Path | None = option(None, "Place.")
    note: str = option("", "Note.")


PARTS = (Shape, Work)


def from_toml(tmp_path: Path, text: str) -> tuple[list[Any], dict[str, str]]:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    return build_settings(PARTS, {}, path)


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[a]\nrate = 1\nsize = [64, 32]\n[b]\nnoisy = true\n")
    (shape, work), origin = build_settings(PARTS, {"rate": "2.5", "words": ()}, path)
    assert (shape.size, work.rate, work.loud, work.words) == ((64, 32), 2.5, True, ())
    assert (origin["rate"], origin["size"], origin["kind"]) == ("flag", "file", "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ndepht = 3", r"x\.toml: a\.depht: unknown key, did you mean 'depth'\?"),
        ("[a]\ndepth = 3\n[b]\ndepth = 4", r"b\.depth: given twice"),
        ("depth = '3x'", r"depth: expected a whole number, got '3x' \(.*x\.toml\)"),
        ("depth = 2.5", "depth: expected a whole number, got 2.5"),
        ("depth = 0", "depth: 0 is below 1"),
        ("depth = 10", "depth: 10 is above 9"),
        ("rate = true", "rate: expected a number, got true"),
        ("rate = nan", "rate: nan is not a usable number"),
        ("loud = 1", "loud: expected true or false, got 1"),
        ("kind = 'odd'", "kind: 'odd' is none of plain, fancy"),
        ("size = [1, 2, 3]", "size: expected one number or two"),
        ("depth = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_toml(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml"):
        build_settings(PARTS, {}, tmp_path / "none.toml")


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(Shape, size=st.tuples(st.integers(), st.integers()), depth=st.none() | st.integers(1, 9)),
    st.builds(Work, rate=st.floats(0, 1e9), words=st.lists(TEXTS).map(tuple), loud=st.booleans(), note=TEXTS),
)
def test_what_is_printed_reads_back_the_same(tmp_path_factory: Any, shape: Shape, work: Work) -> None:
    path = tmp_path_factory.mktemp("config") / "x.toml"
    path.write_text(print_config((shape, work), {}), encoding="utf-8", newline="")
    (shape_again, work_again), _ = build_settings(PARTS, {}, path)
    assert (shape_again, work_again) == (shape, work)


def run_toy(*words: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @tool_command("toy")
    @settings_options(*PARTS)
    @click.argument("rest", nargs=-1)
    def toy(config_file: Path | None, print_only: bool, rest: tuple[str, ...], **flags: Any) -> None:
        parts, _ = build_settings(PARTS, flags, config_file)
        seen.update(shape=parts[0], work=parts[1], rest=rest)

    with pytest.raises(SystemExit) as stop:
        toy.main(list(words))
    assert stop.value.code == 0
    return seen


def test_the_command_line() -> None:
    seen = run_toy(
        "--size", "64", "--words", "a=1", "b=2", "--rate=3", "--words", "c", "--noisy", "--place", "x y"
    )
    assert seen["shape"].size == (64, 64)
    assert seen["work"].words == ("a=1", "b=2", "c")
    assert (seen["work"].rate, seen["work"].loud, seen["work"].place) == (3.0, True, Path("x y"))
    assert run_toy("--noisy", "--no-loud")["work"].loud is False
