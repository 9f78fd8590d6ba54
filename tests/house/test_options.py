"""Every option of every tool in every mode: it has a use there, or the command line is refused.

The table is made of what the commands declare, so an option or a mode that is added is in it.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from lorapipe_engine.command.modes import Mode, modes_of
from lorapipe_engine.command.options import Field
from lorapipe_engine.command.tool import ToolCommand

ROOT = Path(__file__).resolve().parents[2]
PAGE = runpy.run_path(str(ROOT / "tools/options_page.py"))
# Their options are plain ones, for each of them does one thing. lora-train has one set of options too: --print_config
# and --plot_lr show what the run that they describe would be.
OF_ONE_MODE = {
    "lora-extract",
    "lora-train",
    *(f"lora-inspect {name}" for name in ("zeros", "keys", "norms", "ranks", "hash", "diff")),
    *(f"lora-inspect {name}" for name in ("compat", "delta", "check")),
}
# Words that ask for a mode which no single option names.
ASKED_BY_FUNCTION = {"-o FILE.toml": ["-o", "x.toml"], "--set, --unset or --strip": ["--strip"]}


COMMANDS = {str(command.name): command for command in PAGE["commands"]()}
WITH_MODES = {name: command for name, command in COMMANDS.items() if modes_of(command)}
# Words that come past the reading of options and end with 2.
AND_NOTHING_TO_DO = {
    "lora-train": [],
    "lora-merge": ["-o", "x.safetensors", "--", "nowhere", "nowhere"],
    "lora-resize": ["-o", "x.safetensors", "--", "nowhere"],
    "lora-tag": ["--model", "nowhere", "--", "nowhere"],
    "lora-clean": ["--", "nowhere"],
    "lora-check": ["--", "nowhere"],
    "lora-repeats": ["--", "nowhere"],
}


def words_of(field: Field, value: str | None = None) -> list[str]:
    """The option on a command line, with a value that it takes."""
    flag = field.facts.flags[-1] if field.facts.flags else f"--{field.name}"
    if field.type is bool:
        return [flag]
    if value is None:
        number = str(int(field.facts.min or 1) or 1)
        value = str(field.facts.choices[-1]) if field.facts.choices else number
    is_pair = field.is_list and "tuple[str, str]" in str(field.type)
    return [flag, value, value] if is_pair else [flag, value]


def words_for(mode: Mode) -> list[str]:
    """What asks for a mode."""
    if mode.by is None:
        return []
    return words_of(mode.fields()[mode.by]) if isinstance(mode.by, str) else ASKED_BY_FUNCTION[mode.name]


def without_a_use() -> Iterator[Any]:
    """(command, mode, option) of all options that other modes of the command have."""
    for name, command in WITH_MODES.items():
        modes = modes_of(command)
        everything = {field.name: field for mode in modes for field in mode.fields().values()}
        for mode in modes:
            for field in everything.values():
                asks = [other for other in modes if other.by == field.name or callable(other.by)]
                named = isinstance(mode.by, str) or not any(
                    other.is_asked_for({field.name: "x"}) for other in asks
                )
                if field.name not in mode.fields() and named:
                    yield pytest.param(command, mode, field, id=f"{name}, {mode.name}: {field.label}")


def run(command: ToolCommand, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        command.main(words, prog_name=command.name)
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(("command", "mode", "field"), list(without_a_use()))
def test_options_of_other_modes_are_refused(
    command: ToolCommand, mode: Mode, field: Field, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run(command, ["nowhere", *words_for(mode), *words_of(field)], capsys)
    assert status == 2
    assert "exclude each other" in told or "has no use with" in told
    assert field.label in told or f"--{field.name}" in told
    assert told.count("\n") == 1


def needing() -> Iterator[Any]:
    for name, command in WITH_MODES.items():
        for mode in modes_of(command):
            for field in mode.fields().values():
                if field.facts.needs:
                    yield pytest.param(command, mode, field, id=f"{name}, {mode.name}: {field.label}")


@pytest.mark.parametrize(("command", "mode", "field"), list(needing()))
def test_options_that_need_another_are_refused_alone(
    command: ToolCommand, mode: Mode, field: Field, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the other option's default is what is needed, it is given another value."""
    unmet: list[str] = []
    for need in field.facts.needs:
        name, _, wanted = need.partition("=")
        other = mode.fields()[name.rstrip("!")]
        if not name.endswith("!") and str(other.default) in (wanted or "True").split("|"):
            choices = [choice for choice in other.facts.choices or () if str(choice) not in wanted.split("|")]
            value = next(iter(choices), None)
            unmet += [f"--{other.facts.opposite}"] if other.default is True else words_of(other, value)
    status, told = run(command, ["nowhere", *words_for(mode), *unmet, *words_of(field)], capsys)
    assert status == 2
    assert "has a use only with" in told
    assert told.count("\n") == 1


def test_every_option_belongs_to_a_mode() -> None:
    for name, command in COMMANDS.items():
        if name in OF_ONE_MODE:
            assert not modes_of(command), name
            continue
        fields = {field for mode in modes_of(command) for field in mode.fields()}
        assert {option.name for option in PAGE["options_of"](command)} == fields, name


def test_a_name_is_one_option_in_all_modes() -> None:
    for command in WITH_MODES.values():
        rows: dict[str, Field] = {}
        for mode in modes_of(command):
            for field in mode.fields().values():
                assert rows.setdefault(field.name, field) == field


@cache
def names_read(package: str) -> set[str]:
    """What the lines of a package read as attributes, or name in quotes."""
    read = set[str]()
    for path in ROOT.glob(f"packages/*/src/{package}/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    return read


@pytest.mark.slow
def test_every_option_is_read() -> None:
    """A field that no line reads, as an attribute or by a name in quotes, would be an option that is ignored."""
    for name, command in WITH_MODES.items():
        package = str(command.callback.__module__).partition(".")[0]  # type: ignore[union-attr]
        for mode in modes_of(command):
            assert mode.fields().keys() - {mode.by} <= names_read(package), (name, mode.name)


def test_what_shows_a_run_shows_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = run(COMMANDS["lora-train"], ["--print_config", "--plot_lr"], capsys)
    assert status == 2
    assert "give one of them" in told


def foreign() -> list[Any]:
    """Hidden options are those of other programs that a command knows."""
    return [
        pytest.param(command, param, id=f"{name}: {param.name}")
        for name, command in COMMANDS.items()
        for param in command.params
        if isinstance(param, click.Option) and param.hidden
    ]


@pytest.mark.table
@pytest.mark.parametrize(("command", "option"), foreign())
def test_options_of_other_programs_are_never_passed_by(
    command: ToolCommand, option: click.Option, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused, or gets one note; what is asked for beside it cannot be done, so the status is 2 anyway."""
    words = [option.opts[0]] if option.is_flag else [option.opts[0], "x"]
    status, told = run(command, [*words, *AND_NOTHING_TO_DO[str(command.name)]], capsys)
    assert status == 2
    lines = [line for line in told.splitlines() if str(option.name) in line]
    assert len(lines) == 1
    assert "note: " in lines[0] or "error: " in lines[0]
