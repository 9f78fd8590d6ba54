"""--fix and --undo: what is mended, that every byte comes back, and that nothing is lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lorapipe_dataset.check.pictures.scan import read_files, scan
from lorapipe_dataset.check.repairs import mend
from lorapipe_dataset.check.repairs.fix import apply
from lorapipe_dataset.check.repairs.mend import FIXABLE, Repairs, plan_repairs
from lorapipe_dataset.check.rules import CHECKS, RULES
from lorapipe_engine.changes.journal import HIDDEN
from lorapipe_engine.changes.undo import undo
from lorapipe_engine.command.records import Record
from support.quick import examples

SIZE = ["--resolution", 96]


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def root(draw: Any, tmp_path: Path) -> Path:
    for number in range(6):
        draw(f"set/5_mayu/{number}.png", f"mayu, hat {number}, tree, rain")
    return tmp_path / "set"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "5_mayu"


def test_what_is_marked_fixable_can_be_fixed() -> None:
    assert {name for name, rule in RULES.items() if rule.fixable} == FIXABLE
    assert "--fix" in "".join(rule.fix for rule in RULES.values() if rule.fixable)
    assert all("--fix" in rule.fix for rule in RULES.values() if rule.fixable)


@pytest.mark.parametrize("turned", [False, True])
def test_lines_are_joined_before_or_after_another_mend(
    turned: bool, check: Any, folder: Path, root: Path
) -> None:
    (folder / "3.txt").write_text("hat, tree\nrain, sun\n")
    rules = ["several-lines", "no-trigger"]
    words = [word for rule in rules[:: -1 if turned else 1] for word in ("--fix", rule)]
    done = check(root, *SIZE, "--trigger", "mayu", *words)
    assert done.code == 0
    assert (folder / "3.txt").read_text() == "mayu, hat, tree, rain, sun\n"


@pytest.mark.parametrize("words", [["--fix", "no-trigger"], ["--fix", "several-lines", "--dry-run"]])
def test_a_caption_written_after_the_look_is_left_alone(
    words: list[str], check: Any, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are looked at for minutes; what somebody writes meanwhile is not replaced by what was there before."""
    for name in "34":
        (folder / f"{name}.txt").write_text("hat, tree\nrain\n")

    def write_and_plan(*args: Any) -> Repairs:
        (folder / "3.txt").write_text("hat, moon\nrain\n")
        (folder / "4.txt").unlink()
        return plan_repairs(*args)

    monkeypatch.setattr(mend, "plan_repairs", write_and_plan)
    done = check(root, *SIZE, "--trigger", "mayu", *words)
    assert done.code == 1
    for name in "34":
        assert (
            done.err.count(f"{name}.txt: no longer as it was checked, so it is left alone; run this again")
            == 1
        )
    assert (folder / "3.txt").read_text() == "hat, moon\nrain\n"
    assert not (folder / "4.txt").exists()


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("real", [0, 1])
def test_captions_that_are_one_file_by_a_link_are_mended_once(
    real: int, check: Any, folder: Path, root: Path
) -> None:
    first, second = folder / f"{real}.txt", folder / f"{1 - real}.txt"
    first.write_text("tree, rain\n")
    second.unlink()
    second.symlink_to(first.name)
    done = check(root, *SIZE, "--trigger", "mayu", "--fix", "no-trigger")
    assert (done.code, done.err) == (0, "mended: 1 captions rewritten; --undo takes it back\n")
    assert second.is_symlink()
    assert first.read_text() == second.read_text() == "mayu, tree, rain\n"
    check(root, "--undo")
    assert second.read_text() == "tree, rain\n"


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_caption_keeps_its_words_when_the_file_behind_its_link_goes(
    check: Any, folder: Path, root: Path
) -> None:
    (folder / "1.png").unlink()  # its caption is an orphan, and what that of 0.png leads to
    (folder / "0.txt").unlink()
    (folder / "0.txt").symlink_to("1.txt")
    words = "mayu, hat 1, tree, rain\n"
    (folder / "1.txt").write_text(words)
    done = check(root, *SIZE, "--fix", "orphan-caption")
    assert (done.code, (folder / "1.txt").exists()) == (0, False)
    assert (folder / "0.txt").read_text() == words
    assert "captions rewritten, 1 files moved away" in done.err
    check(root, "--undo")
    assert (folder / "1.txt").read_text() == (folder / "0.txt").read_text() == words


@pytest.mark.parametrize(
    ("rule", "before", "after", "words"),
    [
        ("no-trigger", "tree, Rain", "mayu, tree, Rain", ["--trigger", "mayu"]),
        ("trigger-not-first", "tree, Mayu, rain", "mayu, tree, rain", ["--trigger", "mayu"]),
        ("duplicate-tag", "mayu, Red_Hat, red hat, tree", "mayu, Red_Hat, tree", []),
        ("several-lines", "mayu, hat\r\n\r\ntree, sun\r\n", "mayu, hat, tree, sun", []),
        ("rating-mix", "mayu, rating:safe, tree, explicit", "mayu, tree", []),
        ("misspelt-tag", "mayu, lnog_hair, tree", "mayu, long_hair, tree", ["--tags", "tags.csv"]),
        (
            "alias",
            "mayu, miku \\(old\\), tree",
            "mayu, hatsune miku \\(vocaloid\\), tree",
            ["--aliases", "old.txt"],
        ),
        ("invariant-tag", "mayu, tree, rain, lamp", "mayu, lamp", []),
        (
            "duplicate-tag",
            "mayu, a tree, a tree\nsecond line, second line",
            "mayu, a tree\nsecond line, second line",
            [],
        ),
    ],
)
def test_captions_are_mended(
    check: Any, folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rule: str, before: str, after: str, words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("tags.csv").write_text("name,category,count\nmayu,0,1\nlong_hair,0,9\ntree,0,9\nrain,0,9\n")
    Path("old.txt").write_text("miku (old), hatsune miku (vocaloid)\n")
    (folder / "0.txt").write_bytes(b"\xef\xbb\xbf" + before.encode())
    was = tree(root)
    words = ["set", *map(str, SIZE), "--fix", rule, *words]
    done = check(*words, "--dry-run")
    assert (done.code, tree(root)) == (0, was)
    assert f"-{before.splitlines()[0]}" in done.err
    assert f"+{after.splitlines()[0]}" in done.err
    assert check(*words).code == 0
    assert (folder / "0.txt").read_bytes() == after.encode() + b"\n"
    assert check(*words).err == "nothing to mend\n"
    assert check("set", "--undo").code == 0
    assert tree(root) == was


def test_files_are_mended(check: Any, draw: Any, folder: Path, root: Path) -> None:
    for name in ("gone.txt", "gone.npz", "gone-masklabel.png", "broken.png"):
        (folder / name).write_bytes(b"x")
    (folder / "broken.txt").write_text("mayu, of a broken one")
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    with Image.open(folder / "2.png") as picture:
        picture.resize((64, 64)).save(folder / "less.png")
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "2.bmp")
    (folder / "2_2.png").write_bytes((folder / "5.png").read_bytes())
    draw("set/5_mayu/A.png", "mayu, capital, tree, sun"), draw("set/5_mayu/a.png", "mayu, small, tree, sun")
    was = tree(root)
    files = ["unreadable", "orphan-caption", "orphan-cache", "orphan-mask", "duplicate", "near-duplicate"]
    words = [word for rule in files for word in ("--fix", rule)]
    assert check(root, *SIZE, *words).code == 0
    gone = {name.split("/")[1] for name in was.keys() - tree(root).keys()}
    assert gone == {
        "gone.txt",
        "gone.npz",
        "gone-masklabel.png",
        "broken.png",
        "broken.txt",
        "copy.png",
        "less.png",
        "2_2.png",
    }
    assert check(root, *SIZE, "--fix", "stem-clash", "--fix", "case-clash").code == 0
    assert (folder / "2.bmp").exists()
    assert (folder / "2_2.png").read_bytes() == was["5_mayu/2.png"]
    assert (folder / "2_2.txt").read_bytes() == was["5_mayu/2.txt"]
    assert (folder / "a_2.txt").read_text() == "mayu, small, tree, sun"
    assert not (folder / "a.png").exists()
    assert check(root, *SIZE, "--json", "--only", "stem-clash", "--only", "case-clash").json["findings"] == []
    assert check(root, "--undo", "--dry-run").code == 0
    assert check(root, "--undo").code == 0
    assert check(root, "--undo").code == 0
    assert tree(root) == was
    done = check(root, "--undo")
    assert (done.code, "no run of lora-check to undo there" in done.err) == (2, True)


def test_small_pictures_are_moved_away(check: Any, draw: Any, folder: Path, root: Path) -> None:
    draw("set/5_mayu/s.png", "mayu, tree, cat, dog", size=(48, 48))
    was = tree(root)
    assert check(root, *SIZE, "--fix", "small", "--no-look").code == 0
    assert not (folder / "s.png").exists()
    assert not (folder / "s.txt").exists()
    assert check(root, *SIZE, "--json").json["pictures"] == 6
    check(root, "--undo")
    assert tree(root) == was


def test_what_was_changed_since_is_left(check: Any, folder: Path, root: Path) -> None:
    (folder / "0.txt").write_text("tree, rain, mayu, cat")
    (folder / "1.txt").write_text("tree, rain, mayu, dog")
    check(root, *SIZE, "--trigger", "mayu", "--fix", "trigger-not-first")
    (folder / "0.txt").write_text("mine")
    done = check(root, "--undo")
    assert done.code == 1
    assert "0.txt: changed since, left alone" in done.err
    assert (folder / "0.txt").read_text() == "mine"
    assert (folder / "1.txt").read_text() == "tree, rain, mayu, dog"
    assert (folder / HIDDEN).exists()


def test_a_caption_that_another_program_changes_is_not_touched(root: Path, folder: Path) -> None:
    path = folder / "0.txt"
    repairs = Repairs(
        {path: (b"what was read", "new"), folder / "1.txt": ((folder / "1.txt").read_bytes(), "new")}
    )
    path.write_text("theirs")
    assert apply(repairs, dry_run=False) == 1
    assert (path.read_text(), (folder / "1.txt").read_text()) == ("theirs", "new")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["set", "--fix", "blurred"], 2, "cannot be mended by itself; get sharp ones"),
        (["set", "--fix", "orphan"], 2, "no rule 'orphan', did you mean 'orphan-mask'?"),
        (["set", "--undo"], 2, "no run of lora-check to undo there"),
        (["set", "--undo", "--fix", "duplicate"], 2, "exclude each other"),
    ],
)
def test_errors_take_one_line(
    check: Any, root: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, text: str
) -> None:
    monkeypatch.chdir(root.parent)
    was = tree(root)
    done = check(*words)
    assert (done.code, len(done.err.splitlines()), tree(root)) == (code, 1, was)
    assert text in done.err


def test_a_folder_that_cannot_be_written_to(check: Any, root: Path, folder: Path) -> None:
    (folder / "0.txt").write_text("tree, rain, mayu, cat")
    # The test may run as root, whom permissions do not stop; a file in the journal's place does.
    (folder / HIDDEN).touch()
    done = check(root, *SIZE, "--trigger", "mayu", "--fix", "trigger-not-first")
    assert (done.code, len(done.err.splitlines())) == (1, 2)
    assert "its files cannot be changed" in done.err
    assert "nothing was changed" in done.err
    assert (folder / "0.txt").read_text() == "tree, rain, mayu, cat"


@pytest.mark.slow
def test_an_interrupted_run_can_be_taken_back(root: Path, folder: Path) -> None:
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"tree, rain, mayu, {number}")
    was = tree(root)
    code = (
        "import os, sys\n"
        "from lorapipe_dataset.check.cli import lora_check\n"
        "from lorapipe_engine.changes.journal import Folder\n"
        "step, count = Folder._replace, [0]\n"
        "def replace(self, *args):\n"
        "    count[0] += 1\n"
        "    if count[0] == 4: os.kill(os.getpid(), 9)\n"
        "    step(self, *args)\n"
        "Folder._replace = replace\n"
        "lora_check.main(sys.argv[1:])\n"
    )
    words = [str(root), "--trigger", "mayu", "--fix", "trigger-not-first", "--no-look"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert done.returncode == -9
    now = tree(root)
    new = {name for name in was if now[name] != was[name]}
    assert len(new) == 3
    assert all(now[name].startswith(b"mayu, tree") for name in new)
    assert undo([root], "lora-check").failures == []
    assert tree(root) == was


TAG = st.sampled_from(
    ["mayu", "tree", "Tree", "red_hat", "red hat", "rating:safe", "explicit", "1girl", "a\\(b\\)", ""]
)
CAPTION = st.one_of(
    st.lists(TAG, max_size=6).map(", ".join),
    st.tuples(
        st.lists(TAG, max_size=3).map(",".join), st.sampled_from(["\r\n", "\n\n"]), st.text(max_size=12)
    ).map("".join),
)
TEXT_RULES = [
    "several-lines",
    "no-trigger",
    "trigger-not-first",
    "duplicate-tag",
    "rating-mix",
    "invariant-tag",
]


@pytest.mark.slow
@settings(
    max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    captions=st.lists(CAPTION, min_size=1, max_size=6),
    rules=st.lists(st.sampled_from(TEXT_RULES), min_size=1, max_size=4, unique=True),
)
def test_undoing_restores_every_byte(tmp_path: Path, captions: list[str], rules: list[str]) -> None:
    from lorapipe_dataset.check.options import Options
    from lorapipe_engine.settings import DataSettings

    root = tmp_path / os.urandom(6).hex()
    (root / "5_x").mkdir(parents=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 8)).save(root / f"5_x/{number}.bmp")
        (root / f"5_x/{number}.txt").write_bytes(caption.encode("utf-8", "replace"))
    was = tree(root)
    options = Options(data=DataSettings(), trigger="mayu", look=False)

    def mend() -> Repairs:
        dataset = scan([Record(root)], ".txt")
        read_files(dataset)
        findings = [
            finding
            for one in CHECKS
            if {rule.id for rule in one.rules} & set(TEXT_RULES)
            for finding in one.find(dataset, options)
        ]
        return plan_repairs(dataset, findings, rules)

    first = mend()
    assert apply(first, dry_run=False) == 0
    if first:
        undo([root], "lora-check")
    assert tree(root) == was
