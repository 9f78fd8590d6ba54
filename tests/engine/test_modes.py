"""Modes of a tool: which is meant, what it has, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from lorapipe_engine.command.modes import Chosen, Mode, flag, mode_options, read_mode
from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """The work"""

    order: Literal["keep", "by-name"] = flag("keep", "Order.")
    descending: bool = flag(False, "The other way round.", needs="order!=keep")
    seed: int = flag(0, "Seed.", needs=("order=by-name", "shuffle"))
    shuffle: bool | None = flag(None, "Shuffle.", opposite="leave")
    places: tuple[Path, ...] = flag((), "Places.", "--place")
    pairs: tuple[tuple[str, str], ...] = flag((), "Pairs.", "--pair", metavar="A B")
    share: float = flag(0.5, "Share.", above=0)
    check: bool = flag(False, "Check.", needs="dry_run=False")


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """Every mode"""

    output: str | None = flag(None, "The file.", "-o", "--output", metavar="OUT")
    dry_run: bool = flag(False, "Write nothing.", "-n", "--dry-run")


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Instead"""

    undo: bool = flag(False, "Take it back.")


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """A table"""

    wide: bool = flag(False, "Wide.")


MODES = (
    Mode("working", (WorkSettings, ResultSettings)),
    Mode("--undo", (UndoSettings, ResultSettings), by="undo"),
    Mode(
        "-o FILE.csv", (TableSettings, ResultSettings), by=lambda flags: str(flags["output"]).endswith(".csv")
    ),
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a tool with these modes: what was chosen, or the status and what was said."""
    chosen: list[Chosen] = []

    @tool_command("lora-x", examples="lora-x")
    @mode_options(*MODES)
    def tool(**flags: Any) -> None:
        chosen.append(read_mode(MODES, flags))

    def call(*words: str) -> Any:
        chosen.clear()
        with pytest.raises(SystemExit) as end:
            tool.main(words)
        said = capsys.readouterr()
        return chosen[0] if chosen else (end.value.code, said.err or said.out)

    return call


def test_values(run: Callable[..., Any]) -> None:
    chosen = run(
        "--order", "by_name", "--place", "~", "--place", "b", "--pair", "a", "b", "--leave", "--seed", "3"
    )
    work = chosen[WorkSettings]
    assert (chosen.mode.name, work.order, work.seed, work.shuffle) == ("working", "by-name", 3, False)
    assert work.places == (Path.home(), Path("b"))
    assert work.pairs == (("a", "b"),)
    assert set(chosen.given) == {"order", "places", "pairs", "shuffle", "seed"}
    assert chosen[UndoSettings] == UndoSettings()  # which this mode does not have


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ((), "working"),
        (("--undo", "-n"), "--undo"),
        (("-o", "a.csv", "--wide"), "-o FILE.csv"),
        (("-o", "a"), "working"),
    ],
)
def test_which_mode(run: Callable[..., Any], words: tuple[str, ...], mode: str) -> None:
    assert run(*words).mode.name == mode


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--undo", "--order", "keep"), "--order has no use with --undo; it belongs to working"),
        (("--wide",), "--wide has no use with working; it belongs to -o FILE.csv"),
        (("--descending",), "--descending has a use only with another --order than keep"),
        (("--descending", "--order", "keep"), "--descending has a use only with another --order than keep"),
        (("--seed", "0"), "--seed has a use only with --order by-name or with --shuffle"),
        (("--seed", "0", "--leave"), "--seed has a use only with --order by-name or with --shuffle"),
        (("--check", "-n"), "--check has a use only without --dry-run"),
        (("--share", "0"), "--share: 0.0 is not above 0"),
        (("--share", "1x"), "--share: expected a number, got '1x'; give above 0, as"),
        (("--seed", "1,", "--leave"), "--seed: expected a whole number, got '1,'; give"),
        (("--share", "nan"), "--share: nan is not a usable number"),
        (("--order", "x"), "'x' is not one of"),
        (("--place", ""), "--place: expected a path, got an empty text"),
    ],
)
def test_refused(run: Callable[..., Any], words: tuple[str, ...], told: str) -> None:
    status, said = run(*words)
    assert status == 2
    assert told in said
    assert said.count("\n") == 1


def test_help_has_a_heading_for_each_class(run: Callable[..., Any]) -> None:
    status, said = run("--help")
    assert status == 0
    places = [said.index(text) for text in ("The work:", "Instead:", "A table:", "Every mode:", "\nOptions:")]
    assert places == sorted(places)
    assert "[keep|by-name]" in said
    assert "[default: 0]" in said


def test_two_modes_by_name() -> None:
    modes = (*MODES, Mode("--again", (TableSettings,), by="wide"))
    with pytest.raises(ConfigError, match="--undo and --wide exclude each other"):
        read_mode(modes, {"undo": True, "wide": True, "output": None})
