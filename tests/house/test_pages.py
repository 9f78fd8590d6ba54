"""Every command block of the pages does on the demo base what the page says."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pty")

from lorapipe_demo.concept import draw_concept
from lorapipe_demo.recipe import SHORT
from lorapipe_engine.models.bases import demo_base
from support.pages import REASONS, Block, blocks_of, missing_line, run_in_terminal, shortened

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *(
                "guide",
                "merge",
                "resize",
                "convert",
                "extract",
                "inspect",
                "grid",
                "sampling",
                "tagging",
                "cleaning",
            ),
            *("repeats", "checking"),
        )
    ),
]
TRAIN = (
    "lora-train --base demo --train_data_dir dataset --output_dir run --output_name mirelune --network_dim 8 "
    "--train_batch_size 4 --max_train_steps 8 --save_every_n_epochs 1 --seed 1"
)


def make_home(home: Path) -> None:
    """What pages speak of: bare pictures, a dataset of them, a network trained for eight steps, and the base."""
    draw_concept(home, "mirelune", pictures=8, repeats=2, seed=1)
    (home / "2_mirelune").rename(home / "imgs")
    shutil.copytree(home / "imgs", home / "dataset/2_mirelune")
    for caption in (home / "imgs").glob("*.txt"):
        caption.unlink()
    shutil.copy(demo_base(), home / "base.safetensors")
    done = run_in_terminal(TRAIN, home, home)
    assert done.status == 0, done.lines
    shutil.copy(home / "run/mirelune.safetensors", home / "mirelune.safetensors")
    for name in ("maid", "nekochan"):
        (home / "pictures" / name).mkdir(parents=True, exist_ok=True)
    for number in range(92):
        os.link(
            home / "imgs/000.png",
            home / "pictures" / ("maid" if number < 16 else "nekochan") / f"{number}.png",
        )
    # The networks of the pages on files: SD 1.5's layers, dim 64; a broken one; one of convolutions.
    script = ROOT / "tools/bench/make_weights.py"
    done = run_in_terminal(f"python {script} style.safetensors lora sd1 64 0 0", home, home)
    assert done.status == 0, done.lines
    shutil.copy(ROOT / "tests/data/inspect/sample.safetensors", home)
    shutil.copy(ROOT / "tests/data/formats/sd1/kohya.safetensors", home / "mina.safetensors")


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
    for command in block.commands:
        done = run_in_terminal(shortened(command.text, block.marks.get("run with", "")), folder, folder)
        fails = any(" error: " in line for line in command.printed)
        wanted = int(block.marks.get("ends with", 0))
        if (done.status == 0) == fails if fails else done.status != wanted:
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
    shutil.copytree(home, tmp_path / "home", copy_function=os.link)
    told = [
        fault
        for block in blocks_of(ROOT / page)
        if "not run" not in block.marks
        for fault in faults(block, tmp_path / "home")
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


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    marks = [block.marks["not run"] for block in blocks_of(ROOT / page) if "not run" in block.marks]
    assert [mark for mark in marks if not mark.startswith(REASONS)] == []


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
    assert missing_line(("path.safetensors",), lines) == "path.safetensors"
    assert missing_line(("note: 8 images",), lines) == "note: 8 images"
    assert missing_line(("...", "more"), lines) == "more"
