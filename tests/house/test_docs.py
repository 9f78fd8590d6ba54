"""Options in the docs are options of the commands, and the other way round."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lorapipe_engine.command.shared import further_names
from lorapipe_engine.command.tool import ToolCommand
from lorapipe_engine.train.sample.prompts import LETTERS

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/options_page.py"))
COMMANDS: dict[str, ToolCommand] = {str(command.name): command for command in TOOL["commands"]()}
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
]
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
SPAN = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Other people's programs, with the options that the pages show.
OTHER_PROGRAMS = {
    "tensorboard": {"--logdir"},
    "torchrun": {"--nproc_per_node", "--standalone"},
    "pip": {"--upgrade"},
    "activate": {"--system-site-packages"},
}


def plain(option: str) -> str:
    """Dashes and underscores are one spelling."""
    return option.lstrip("-").replace("-", "_")


def spellings(command: ToolCommand, *, hidden: bool = True) -> set[str]:
    """All names of all options; hidden ones are those of sd-scripts, which pages may name too."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    shown = [option for option in options if hidden or not option.hidden]
    further = {plain(name) for name, _ in further_names(command.params)}
    return (
        {plain(name) for option in shown for name in (*option.opts, *option.secondary_opts)}
        | further
        | {"help"}
    )


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, its words) of all command lines in a text, each part of a pipe by itself."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ").strip()
        for part in re.split(r"\s[|;]\s|&&|\$\(|[()]", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                words = part.split()
            for at, word in enumerate(words):
                name = word.rpartition("/")[2]
                if name.startswith("lora-") and (name in COMMANDS or name in ("lora-inspect",)):
                    two = " ".join([name, *words[at + 1 : at + 2]])
                    yield (two if two in COMMANDS else name), words[at + 1 :]
                    break


def shown_lines(page: Path) -> list[tuple[str, list[str]]]:
    """The command lines of a page: in its blocks, and in its code spans. One that is shown for its error is not."""
    text = page.read_text(encoding="utf-8")
    blocks = re.sub(r"^\$ .*\n.*error: no option", "", "\n".join(BLOCK.findall(text)), flags=re.MULTILINE)
    return [*command_lines(blocks), *command_lines("\n".join(SPAN.findall(BLOCK.sub("", text))))]


def options_of_scripts(text: str) -> set[str]:
    """The options of our own scripts that a page names, and of other people's programs."""
    found = {option for program, options in OTHER_PROGRAMS.items() if program in text for option in options}
    for name in set(re.findall(r"tools/[\w/]+\.py", text)):
        found |= set(OPTION.findall((ROOT / name).read_text(encoding="utf-8")))
    return {plain(option) for option in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_have_options_of_their_command(page: Path) -> None:
    wrong = [
        f"{command} {word}"
        for command, words in shown_lines(page)
        for word in words
        if OPTION.match(word) and plain(word.split("=")[0]) not in spellings(COMMANDS[command])
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_are_of_a_command_of_the_page(page: Path) -> None:
    """An option in a sentence or a table belongs to a command that the page shows or names."""
    text = page.read_text(encoding="utf-8")
    named = {name for name in COMMANDS if name in text}
    if "lora-inspect" in text:
        named |= {name for name in COMMANDS if name.startswith("lora-inspect")}
    known = {option for name in named for option in spellings(COMMANDS[name])}
    known |= options_of_scripts(text)
    known |= set(LETTERS) if "--sample_prompts" in text else set()  # of a line in a prompt file
    # A span that begins with a word is a command line, which may be any program's.
    spans = [span for span in SPAN.findall(BLOCK.sub("", text)) if span.startswith("-")]
    wrong = {option for span in spans for option in OPTION.findall(span) if plain(option) not in known}
    assert wrong == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_a_page(name: str) -> None:
    """By one of its spellings, in the options' page under the command's heading."""
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    named = {plain(option) for option in OPTION.findall(section)}
    for option in TOOL["options_of"](COMMANDS[name]):
        assert named & {plain(spelling) for spelling in option.opts}, option.name


def test_the_options_page_is_what_the_commands_declare() -> None:
    assert (ROOT / "docs/options.md").read_text(encoding="utf-8") == TOOL["page"](), (
        "python tools/options_page.py writes it anew"
    )


def test_pip_lines_name_what_pip_can_find() -> None:
    """No index has our packages yet, so they are installed from their folders."""
    sources = [*PAGES, *ROOT.glob("packages/*/src/**/*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"""pip install (-\S+ )*["']?lorapipe-|["']lorapipe-\w+\[""", line)
    ]
    assert wrong == []


def test_each_page_ends_with_its_next_step() -> None:
    pages = [
        ROOT / "README.md",
        *(page for page in (ROOT / "docs").rglob("*.md") if page.name != "README.md"),
    ]
    last = {str(page.relative_to(ROOT)): page.read_text().rstrip().rpartition("\n\n")[2] for page in pages}
    assert [page for page, text in last.items() if not re.match(r"\*\*(Next|Дальше):\*\* .*\]\(", text)] == []


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    assert [page for page in (ROOT / "docs").rglob("*.md") if page not in linked | {index}] == []


def test_the_guide_goes_from_the_clone_to_a_grid_and_to_ones_own_network() -> None:
    """On one page, in this order; tests/house/test_pages.py runs it on bare pictures, with nothing else at hand."""
    text = (ROOT / "docs/guide.md").read_text()
    steps = (
        *(
            "\ngit clone",
            "\npython tools/dev.py demo",
            "demo-run/grid.html",
            "$ lora-tag imgs/",
            "$ lora-clean imgs/",
        ),
        *("$ lora-repeats imgs/", "$ lora-check train/", "$ lora-train train/", "$ lora-sample out/"),
        *("$ lora-grid cells/", "$ lora-inspect zeros out/", "$ lora-resize out/", "$ lora-merge demo out/"),
    )
    places = [text.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)
