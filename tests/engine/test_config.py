"""Options from flags, TOML and defaults."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.command.modes import flag
from lorapipe_engine.command.options import WORDS_FOR_NOTHING, build_settings, option, settings_options
from lorapipe_engine.command.printed import print_config
from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Shape:
    size: tuple[int, int] = option((512, 512), "Size.", min=1)
    depth: int | None = option(None, "Depth.", min=1, max=9)
    kind: str = option("plain", "Kind.", choices=("plain", "fancy"))


@dataclass(frozen=True, kw_only=True)
class Work:
    rate: float = option(0.5, "Rate.", min=0)
    words: tuple[str, ...] = option((), "Words.")
    loud: bool = option(False, "Loud.", alias="noisy")
    place: Path | None = option(None, "Place.")
    note: str = option("", "Note.")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    rates: tuple[float, ...] = flag((), "Rates.", above=0)
    any: int | None = option(None, "Any.")
    width: float | None = option(None, "Width.", min=0.1, max=0.3)


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
    assert (origin["rate"], origin["size"], origin["kind"]) == (
        "from the command line",
        f"from {path}, line 3",
        "default",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ndepht = 3", r"x\.toml, line 2: a\.depht: unknown key, did you mean 'depth'\?"),
        ("[a]\nnoizy = true", r"unknown key, did you mean 'noisy'\?"),
        ("[a]\nzzz = 3", r"x\.toml, line 2: a\.zzz: unknown key$"),
        ("[a]\ndepth = 3\n[b]\ndepth = 4", r"x\.toml: depth: given twice, as a\.depth and b\.depth"),
        ("[a]\nloud = true\n[b]\nnoisy = false", r"loud: given twice, as a\.loud and b\.noisy"),
        (
            "\n# depth = 1\ndepth = '3x'",
            r"depth: expected a whole number, got '3x' \(from .*x\.toml, line 3\)",
        ),
        ('note = """\ndepth = 1"""\ndepth = \'3x\'', r"got '3x' \(from .*x\.toml\)"),
        ("x.'depth'='3x'", r"got '3x' \(from .*x\.toml, line 1\)"),
        ("depth = '1_0'", "depth: expected a whole number, got '1_0'"),
        ("depth = 1e999", "depth: expected a whole number, got Infinity"),
        ("rate = '１'", "rate: expected a number, got '１'"),
        ("place = [1]", r"place: expected a text, got \[1\]"),
        ("words = [[1]]", "words: expected a list of texts"),
        ("size = [512, 0]", "size: 0 is below 1"),
        ("size = '5/5'", "size: expected a whole number, got '5/5'"),
        ("depth = 2.5", "depth: expected a whole number, got 2.5"),
        ("depth = 0", "depth: 0 is below 1"),
        ("depth = 10", "depth: 10 is above 9"),
        ("rate = true", "rate: expected a number, got true"),
        ("rate = nan", "rate: nan is not a usable number"),
        ("loud = 2", "loud: expected true or false, got 2"),
        ("kind = 'odd'", "kind: 'odd' is none of plain, fancy"),
        ("size = [1, 2, 3]", "size: expected one number or two"),
        ("depth = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_toml(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        *(("loud = 1", "loud", True), ("loud = 0", "loud", False), ("loud = 'True'", "loud", True)),
        *(("place = ''", "place", None), ("place = false", "place", None), ("loud = ''", "loud", False)),
        *(("words = ''", "words", ()), ("words = ['']", "words", ()), ("words = ['', 'a']", "words", ("a",))),
        *(("rate = false", "rate", 0.5), ("rate = ''", "rate", 0.5)),
        ("[a]\nloud = true\n[b]\nnoisy = true", "loud", True),
    ],
)
def test_what_is_empty_is_not_given_and_switches_may_be_numbers(
    tmp_path: Path, text: str, option: str, value: Any
) -> None:
    (_, work), _ = from_toml(tmp_path, text)
    assert getattr(work, option) == value


def test_what_is_empty_on_the_command_line_takes_the_file_back(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("place = 'here'\ndepth = 3\nwords = ['a']\n")
    flags = {"place": "", "depth": "", "words": ("",)}
    (shape, work), origin = build_settings(PARTS, flags, path)
    assert (shape.depth, work.place, work.words) == (None, None, ())
    assert origin["place"] == "from the command line"


def test_a_path_in_double_quotes_says_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('depth = 3\nplace = "D:\\kohya\\img"\n')
    with pytest.raises(ConfigError, match=r"write / for each \\, or put it in single quotes: 'D:\\folder'"):
        build_settings(PARTS, {}, path)
    path.write_text("depth = \n")
    with pytest.raises(ConfigError, match=r"line 1, column 9\)$"):
        build_settings(PARTS, {}, path)


def test_a_file_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"shape": {"depth": 3},\n "noisy": true, "place": null}')
    (shape, work), origin = build_settings(PARTS, {}, path)
    assert (shape.depth, work.loud, work.place) == (3, True, None)
    assert origin["loud"] == f"from {path}, line 2"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected an object with options as its keys"):
        build_settings(PARTS, {}, path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_file_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    """PowerShell 5 makes UTF-16 of what a command prints."""
    path = tmp_path / "x.toml"
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    path.write_bytes(f"{mark}note = 'größe'\r\ndepth = 3\r\n".encode(encoding))
    (shape, work), origin = build_settings(PARTS, {}, path)
    assert (shape.depth, work.note, origin["depth"]) == (3, "größe", f"from {path}, line 2")
    path.write_bytes(b"\xff\xfea\x00b")
    with pytest.raises(InputError, match=r"x\.toml: not UTF-16 \(byte 4\)"):
        build_settings(PARTS, {}, path)


def test_a_value_of_json_that_is_there_twice_is_none(tmp_path: Path) -> None:
    """As in TOML: of two values nobody knows which one is meant."""
    path = tmp_path / "run.json"
    path.write_text('{"depth": 1, "depth": 2}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.json: depth is given twice, with different values"):
        build_settings(PARTS, {}, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        build_settings(PARTS, {}, tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"a = 1\xff")
    with pytest.raises(InputError, match=r"x\.toml: not UTF-8 \(byte 5\)"):
        build_settings(PARTS, {}, tmp_path / "x.toml")


WHOLE = st.integers(1, 2**63 - 1)  # what a configuration can hold


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_taken_or_refused(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", newline="")
    with contextlib.suppress(ConfigError):
        build_settings(PARTS, {}, path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"depth": "3x2"}, "^depth: expected a whole number, got '3x2'; give 1 to 9, as 4$"),
        ({"size": "0,5"}, "^size: 0 is below 1$"),
        ({"size": "1x2x3"}, "^size: expected one number or two, as 512 or 512,768; got '1x2x3'$"),
        ({"size": "512x"}, "^size: expected one number or two, as 512 or 512,768; got '512x'$"),
        ({"size": ",512"}, "^size: expected one number or two, as 512 or 512,768; got ',512'$"),
        (
            {"size": "big"},
            "^size: expected a whole number, got 'big'; give one number or two, as 512 or 512,768$",
        ),
        ({"rate": "1x"}, "^rate: expected a number, got '1x'; give 0 or more, as 0.5$"),
        (
            {"rates": ("1", "2,,3")},
            "^--rates: expected a number, got ''; give numbers with commas between them, each above 0, as 0.5 or 1e-4$",
        ),
        ({"width": "x"}, "^width: expected a number, got 'x'; give 0.1 to 0.3, as 0.2$"),
        ({"any": "x"}, "^any: expected a whole number, got 'x'; give one as 4$"),
        ({"rate": "-1"}, "^rate: -1.0 is below 0$"),
    ],
)
def test_mistakes_in_flags_are_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings((*PARTS, Numbers), flags)


@pytest.mark.parametrize("text", ["512,768", "512x768", "512 × 768", "[512, 768]", "(512 768)"])
def test_two_sides_as_people_write_them(text: str) -> None:
    (shape, _), _ = build_settings(PARTS, {"size": text})
    assert shape.size == (512, 768)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
WORDS = st.lists(TEXTS.filter(bool)).map(tuple)  # an empty word is none


@given(
    st.builds(Shape, size=st.tuples(WHOLE, WHOLE), depth=st.none() | st.integers(1, 9)),
    st.builds(
        Work,
        rate=st.floats(0, 1e9),
        words=WORDS,
        loud=st.booleans(),
        # No option comes to hold another program's word for nothing.
        note=TEXTS.filter(lambda text: text.lower() not in WORDS_FOR_NOTHING),
    ),
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
