"""Every command block of the pages does on the demo base what the page says."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pty")

from lorapipe_demo.recipe import SHORT
from support.page_home import copy_home, make_home, run_block
from support.pages import (
    COMMANDS,
    OTHERS,
    REASONS,
    Block,
    blocks_of,
    ends_otherwise,
    every_page,
    fences_of,
    missing_line,
    pages_to_run,
    renewed,
)

ROOT = Path(__file__).resolve().parents[2]
EVERY = [str(page.relative_to(ROOT)) for page in every_page(ROOT)]
PAGES = [str(page.relative_to(ROOT)) for page in pages_to_run(ROOT)]
HIDDEN = re.compile(
    r"\$ |(lora-[a-z]+|python3?|git|pip|torchrun|py) "
)  # a command in a block of another kind


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of a run of the tests: who comes first makes it, the others wait."""
    common = (
        tmp_path_factory.getbasetemp().parent
        if "PYTEST_XDIST_WORKER" in os.environ
        else tmp_path_factory.getbasetemp()
    )
    made, making = common / "pages-home", common / "pages-home.making"
    try:
        making.mkdir()
    except FileExistsError:
        for _ in range(600):
            if made.exists():
                return made
            time.sleep(0.5)
        pytest.fail("the other process made no home for the pages")
    make_home(making)
    making.rename(made)
    return made


def faults(block: Block, folder: Path) -> list[str]:
    """What goes otherwise than the page says, with the line of the page."""
    told = []
    for command, done in run_block(block, folder):
        if ends_otherwise(command, block.marks, done.status):
            told.append(
                f"line {command.line}: {command.text}: ended with {done.status}\n"
                + "\n".join(done.lines[-8:])
            )
        elif (line := missing_line(command.printed, done.lines)) is not None:
            told.append(
                f"line {command.line}: {command.text}: not printed: {line}\n" + "\n".join(done.lines[:40])
            )
    return told


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_says(page: str, home: Path, tmp_path: Path) -> None:
    folder = copy_home(home, tmp_path / "home", ROOT / page)
    told = [
        fault
        for block in blocks_of(ROOT / page)
        if "not run" not in block.marks
        for fault in faults(block, folder)
    ]
    assert not told, "\n".join(told)


def test_the_russian_guide_has_the_commands_of_the_english_one() -> None:
    """So what was run of one was run of the other."""
    english, russian = (
        [
            (b.marks, [c.text for c in b.commands], [c.printed for c in b.commands])
            for b in blocks_of(ROOT / "docs" / page)
        ]
        for page in ("guide.md", "ru/guide.md")
    )
    assert english == russian
    assert len(english) > 20


@pytest.mark.parametrize("page", EVERY)
def test_every_block_of_a_page_is_run_or_says_why_not(page: str) -> None:
    """No block is left out for a language, a place or a mark that nobody reads."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    fences = [number for number, line in enumerate(lines, 1) if line.lstrip().startswith("```")]
    read = list(fences_of(ROOT / page))
    assert fences[::2] == [fence.line for fence in read]
    assert [fence.line for fence in read if fence.language not in (*COMMANDS, *OTHERS)] == []
    hidden = [f for f in read if f.language in OTHERS and any(HIDDEN.match(line) for line in f.inside)]
    assert [fence.line for fence in hidden] == []
    comments = [line.strip() for line in lines if line.lstrip().startswith("<!--")]
    above = [f"<!-- {mark}: {words} -->" for fence in read for mark, words in fence.marks.items()]
    assert comments == above
    assert [block.line for block in blocks_of(ROOT / page) if not block.commands] == []
    marks = [block.marks["not run"] for block in blocks_of(ROOT / page) if "not run" in block.marks]
    assert [mark for mark in marks if not mark.startswith(REASONS)] == []


def test_most_blocks_are_run() -> None:
    """So that a mark stays the exception."""
    blocks = [block for page in EVERY for block in blocks_of(ROOT / page)]
    run = [block for block in blocks if "not run" not in block.marks]
    assert len(blocks) > 130
    assert len(run) > 0.75 * len(blocks)


def test_the_demos_training_by_hand_is_the_demos() -> None:
    """README shows the command; what it says is what the recipe has."""
    (line,) = (
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if "demo-run/dataset --base demo" in line and "conv_dim" in line
    )
    given = {name: value for name, _, value in (option.partition(" ") for option in line.split(" --")[1:])}
    wanted = {**SHORT.options, "max_train_epochs": str(SHORT.epochs)}
    own = {name: value for name, value in given.items() if name not in ("base", "output_dir", "output_name")}
    assert own == {name: value for name, value in wanted.items() if name != "resolution"}


def test_words_are_compared_and_figures_are_not() -> None:
    lines = ["note: 8 pictures", "lora: rank 8, 0.65 MB", "path.safetensors"]
    assert missing_line(("note: 9 pictures", "lora: rank 4, 1 MB", "path.safetensors"), lines) is None
    assert missing_line(("...", "path.safetensors"), lines) is None
    assert missing_line(("note: ... pictures",), lines) is None
    assert missing_line(("...", "OUT08 2 %"), ["OUT03 1 %", "OUT08 3 %"]) is None
    assert missing_line(("mirelune-000002",), ["mirelune-000001"]) == "mirelune-000002"
    assert missing_line(("path.safetensors",), lines) == "path.safetensors"
    assert missing_line(("note: 8 images",), lines) == "note: 8 images"
    assert missing_line(("...", "more"), lines) == "more"


def test_a_renewed_line_has_new_figures_and_what_the_page_leaves_out() -> None:
    shown = "lora: rank 8, 0.65 MB, error 1.2 %"
    assert renewed(shown, "lora:  rank 16, 1.3 MB, error 3e-07 %") == "lora:  rank 16, 1.3 MB, error 3e-07 %"
    assert renewed("base: ...demo.safetensors (8 x)", "base: /tmp/a/demo.safetensors (9 x)") == (
        "base: ...demo.safetensors (9 x)"
    )
    assert renewed("AutoV3 dbc7a82552e3 ...", "AutoV3 0bc7a82552e9 and more") == "AutoV3 0bc7a82552e9 ..."
    # What is of the machine and the day alone stays.
    assert renewed("trained in 20 s", "trained in 3.1 s") == "trained in 20 s"
    run = "taking back run 20261126T125313.497483899-lora-clean-a052e5 of 2026-11-26 12:53:13 UTC in imgs"
    assert renewed(run, run.replace("1126", "1127").replace("a052e5", "f1b2c3")) == run
