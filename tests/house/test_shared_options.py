"""One word for one thing: what an option is called in one tool, it is called in all, and it means the same."""

from __future__ import annotations

import re
import runpy
from collections import defaultdict
from pathlib import Path

import click
import pytest

from lorapipe_engine.command.shared import SHARED, further_names, plain, row_of, shown_names
from lorapipe_engine.command.tool import ToolCommand

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/options_page.py"))
COMMANDS: dict[str, ToolCommand] = {str(command.name): command for command in TOOL["commands"]()}
# Of each row of the table, by its first long name, the commands that have it.
WRITERS = {
    *("lora-clean", "lora-repeats", "lora-check", "lora-train", "lora-sample", "lora-grid", "lora-merge"),
    *("lora-convert", "lora-resize", "lora-extract", "lora-tag"),
    *("lora-inspect meta", "lora-inspect delta", "lora-inspect curves"),
}
# Each takes a folder's files; lora-inspect curves takes all of a run's folder, and those below it, in any case.
FILES = {
    f"lora-inspect {name}" for name in ("check", "compat", "zeros", "ranks", "norms", "keys", "hash", "meta")
}
HAVE = {
    "--output": WRITERS,
    "--force": WRITERS,
    "--json": {*COMMANDS},
    "--recursive": {
        *("lora-clean", "lora-repeats", "lora-check", "lora-check buckets", "lora-tag", "lora-resize"),
        *FILES,
    },
    "--dry-run": WRITERS - {"lora-grid", "lora-inspect curves"},
    "--ext": {"lora-clean", "lora-repeats", "lora-check", "lora-train", "lora-tag"},
    "--drop": {"lora-clean", "lora-tag"},
    "--drop-file": {"lora-clean", "lora-tag"},
    "--overlap": {"lora-clean", "lora-tag"},
    "--tokenizer-dir": {"lora-clean", "lora-check", "lora-train", "lora-sample"},
    "--max-tokens": {"lora-clean", "lora-check", "lora-train"},
    "--separator": {"lora-clean", "lora-train", "lora-tag"},
    "--html": {"lora-check", "lora-grid", "lora-tag"},
    "--new-rank": {"lora-merge", "lora-resize", "lora-extract"},
    "--new-conv-rank": {"lora-merge", "lora-resize", "lora-extract"},
}


MOST_WITHOUT_HEADINGS = 8
MOST_UNDER_A_HEADING = 28
# Without their ends, as the test takes words.
SMALL = "a an th of to in is i are for with by or it thi that be on at from where which what one each not"
SMALL_WORDS = frozenset(re.findall("[a-z]+", SMALL))


def first_long(names: tuple[str, ...]) -> str:
    return next(name for name in names if name.startswith("--"))


def taken(command: ToolCommand) -> dict[str, object]:
    """What the command's parser makes of each spelling: the option that it belongs to."""
    with click.Context(command, **command.context_settings) as ctx:
        parser = command.make_parser(ctx)
    return {name: option.obj for name, option in {**parser._short_opt, **parser._long_opt}.items()}


PARSED = {name: taken(command) for name, command in COMMANDS.items()}


@pytest.mark.parametrize("row", SHARED, ids=lambda row: first_long(row.names))
def test_every_tool_takes_all_names_of_a_shared_option(row: object) -> None:
    names = [plain(name) for name in row.names]  # type: ignore[attr-defined]
    having = set()
    for command, options in PARSED.items():
        long = [name for name in names if name.startswith("--")]
        if any(name in options for name in long):
            having.add(command)
            own = {id(options[name]) for name in long}
            assert len(own) == 1, f"{command}: {names} are several options"
            letters = [name for name in names if not name.startswith("--")]
            assert all(id(options[name]) in own for name in letters), command
            # The help shows the one word that all tools have.
            assert re.search(rf"(?m)^  .*{first_long(row.names)}\b", help_of(command).replace("_", "-"))  # type: ignore[attr-defined]
    assert having == HAVE[first_long(row.names)]  # type: ignore[attr-defined]


def test_a_letter_that_is_shown_means_one_thing() -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for command in COMMANDS.values():
        with click.Context(command, **command.context_settings) as ctx:
            for param in command.get_params(ctx):
                record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
                if record is None or not isinstance(param, click.Option):
                    continue
                shown = shown_names(record[0], param)
                letters = [
                    word for word in shown.replace(",", " ").split() if len(word) == 2 and word[0] == "-"
                ]
                row = row_of(param)
                for letter in letters:
                    meanings[letter].add(first_long(row.names) if row else str(param.name))
    assert {letter: names for letter, names in meanings.items() if len(names) > 1} == {}
    assert meanings["-r"] == {"--recursive"}


@pytest.mark.parametrize("name", ["lora-merge", "lora-extract"])
def test_a_letter_that_was_a_rank_is_refused_with_the_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        COMMANDS[name].main(["a.safetensors", "b.safetensors", "-r", "32", "-o", "c.safetensors"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no option -r, did you mean --" in said
    assert "rank" in said.partition("did you mean")[2]


def test_a_number_behind_the_letter_of_folders_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        COMMANDS["lora-resize"].main(["a.safetensors", "-r", "32", "-o", "c.safetensors"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "-r looks into folders' folders" in said
    assert "--new-rank 32" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_first_and_headings(name: str) -> None:
    command, text = COMMANDS[name], help_of(name)
    options = [one for one in TOOL["options_of"](command) if getattr(one, "section", "")]
    sections = {one.section for one in options}
    if command.examples:
        first = min(text.index(f"\n{title}:") for title in {*sections, "Options"} if f"\n{title}:" in text)
        assert text.index("\nExamples:") < first
    # Of a long list none stands without a heading, and none under a heading of too many.
    every = TOOL["options_of"](command)
    if len(every) > MOST_WITHOUT_HEADINGS:
        assert [one.opts for one in every if not getattr(one, "section", "")] == []
    for title in sections:
        assert sum(one.section == title for one in options) <= MOST_UNDER_A_HEADING, title


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_more_than_the_options_name(name: str) -> None:
    """In words that stand alone: who looks for one option does not read the one above it."""
    for option in TOOL["options_of"](COMMANDS[name]):
        text = re.sub(r"\[default.*", "", option.help, flags=re.DOTALL)
        named = {
            _stem(word)
            for spelling in (*option.opts, *option.secondary_opts)
            for word in re.split("[-_]+", spelling.lower())
        }
        new = {_stem(word) for word in re.findall("[a-z]+", text.lower())} - named - SMALL_WORDS
        assert len(new) >= 2, f"{option.opts[0]}: {text}"
        assert not re.match("(Its?|Their|The same (?!as --))\\b|How strongly\\.", text), (
            f"{option.opts[0]}: {text}"
        )


def _stem(word: str) -> str:
    return re.sub("(s|ing|ed|e)$", "", word)


def help_of(name: str) -> str:
    command = COMMANDS[name]
    with click.Context(command, info_name=name, **command.context_settings) as ctx:
        return command.get_help(ctx)


def test_further_names_are_taken_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "1_a").mkdir()
    (tmp_path / "1_a" / "a.caption").write_text("red hat, hat, cat")
    with pytest.raises(SystemExit) as ended:
        COMMANDS["lora-clean"].main(
            [str(tmp_path / "1_a"), "--caption_extension", ".caption", "--exclude", "cat", "--drop-overlap"]
        )
    assert ended.value.code == 0
    assert (tmp_path / "1_a" / "a.caption").read_text() == "red hat"
    assert ("--json", "--jsonl") in list(further_names(COMMANDS["lora-clean"].params))
