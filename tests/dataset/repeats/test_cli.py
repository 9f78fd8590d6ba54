"""lora-repeats as users call it: folders, lists, links, and everything that can go wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapipe_engine.pictures.layout import repeat_folders
from support.commands import run as command_of


def tree(root: Path) -> dict[str, bytes]:
    """The files there, journals left out."""
    paths = [p for p in sorted(root.rglob("*")) if p.is_file() and ".lorapipe" not in p.parts]
    return {str(p.relative_to(root)): p.read_bytes() for p in paths}


def names(root: Path) -> list[str]:
    """What lies there, journals left out."""
    return sorted(path.name for path in root.iterdir() if path.name != ".lorapipe")


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.mark.slow
def test_the_guides_folders(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("nekochan", 76), draw("maid", 16)
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--kind", "character")
    assert (done.code, done.out) == (0, f"{tmp_path / 'set'}\n")
    assert names(tmp_path / "set") == ["12_maid", "3_nekochan"]
    folders = repeat_folders(tmp_path / "set")
    assert [(f.repeats, f.concept) for f in folders] == [(12, "maid"), (3, "nekochan")]
    for text in ("46%", "54%", "420 steps an epoch, 10 epochs"):
        assert text in done.err
    before = tree(tmp_path / "pictures/maid")
    assert tree(tmp_path / "set/12_maid") == before
    assert len(before) == 32


def test_numbers_alone(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("nekochan", 76), draw("maid", 16)
    done = repeats(tmp_path / "pictures")
    assert (done.code, done.err) == (0, "")
    assert "nekochan      76        3     228    54%" in done.out
    found = json.loads(
        repeats(tmp_path / "pictures", "--json", "--repeats", "nekochan=1", "--repeats", "maid=6").out
    )
    assert found["images_per_epoch"] == 172
    assert [row["folder"] for row in found["concepts"]] == ["6_maid", "1_nekochan"]
    assert "172 pictures an epoch are below 200 to 600: more repeats" in found["warnings"]


def test_a_folder_of_repeats_alone_has_an_unnamed_concept(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("3_", 4)
    found = json.loads(repeats(tmp_path / "pictures", "--json", "--repeats", "5").out)
    assert [(row["concept"], row["folder"]) for row in found["concepts"]] == [("concept", "5_concept")]


@pytest.mark.slow
def test_amounts_are_judged(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("few", 12)
    done = repeats(tmp_path / "pictures", "--kind", "character")
    assert "warning: 12 pictures are few for a character (50 to 100): it overtrains sooner" in done.err
    assert "few" not in repeats(tmp_path / "pictures", "--kind", "concept").err
    draw("one", 1)
    done = repeats(tmp_path / "pictures/one", "--kind", "character", "--repeats", "one=1")
    assert "warning: 1 picture is few for a character (50 to 100)" in done.err
    assert "warning: 1 picture an epoch is below" in done.err
    draw("many", 160)
    done = repeats(tmp_path / "pictures/many", "--kind", "style")
    assert "160 pictures are many for a style (75 to 150): it has to train longer" in done.err
    draw("huge", 620)
    done = repeats(tmp_path / "pictures/huge", "--kind", "style")
    assert "huge: 620 pictures are more than an epoch should have (600) even once each" in done.err


def test_weights(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("a", 40), draw("{3}b", 10)
    found = json.loads(repeats(tmp_path / "pictures", "--json").out)
    assert {row["concept"]: row["wished"] for row in found["concepts"]} == {"a": 0.25, "b": 0.75}
    found = json.loads(repeats(tmp_path / "pictures", "--json", "--weight", "a=9").out)
    assert {row["concept"]: row["wished"] for row in found["concepts"]} == {"a": 0.75, "b": 0.25}
    found = json.loads(repeats(tmp_path / "pictures", "--json", "--by", "sqrt").out)
    assert {row["concept"]: row["wished"] for row in found["concepts"]} == {"a": 0.6667, "b": 0.3333}
    done = repeats(tmp_path / "pictures", "--weight", "c=2")
    assert (done.code, "no concept 'c'; there are a, b" in done.err) == (2, True)


def test_steps_count_the_short_batches(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("wide", 5, (64, 32)), draw("tall", 5, (32, 64))
    words = [tmp_path / "pictures", "--concept", "x", "--repeats", 1, "--json"]
    assert json.loads(repeats(*words).out)["steps_per_epoch"] == 10
    # Two buckets of five: two whole batches and a short one each.
    assert json.loads(repeats(*words, "--train-batch-size", 2).out)["steps_per_epoch"] == 6
    found = json.loads(repeats(*words, "--train_batch_size", 2, "--gradient_accumulation_steps", 4).out)
    assert found["steps_per_epoch"] == 2


def test_captions_come_from_the_records(draw: Any, repeats: Any, tmp_path: Path) -> None:
    first, second, third = draw("raw", 3)
    third.with_suffix(".txt").rename(third.with_suffix(".caption"))
    list_of = lines(
        {"path": str(first), "caption": "shiina mayuri, hat", "general": {"hat": 0.9}},
        {"path": str(second)},
        {"path": str(third), "caption": ""},
    )
    done = repeats("-o", tmp_path / "set", "--concept", "shiina mayuri", "--repeats", 10, stdin=list_of)
    folder = tmp_path / "set/10_shiina mayuri"
    assert done.code == 0
    assert (folder / "000.txt").read_text() == "shiina mayuri, hat\n"
    assert (folder / "001.txt").read_text() == "a, b, 1\n"
    assert (folder / "002.caption").read_text() == "a, b, 2\n"
    assert first.with_suffix(".txt").read_text() == "a, b, 0\n"


def test_concepts_come_from_the_records(draw: Any, repeats: Any, tmp_path: Path) -> None:
    pictures = draw("raw", 4)
    words = [{"trigger": "mayu"}, {"concept": "okabe", "trigger": "mayu"}, {}, {"concept": " "}]
    list_of = lines(*({"path": str(p), **word} for p, word in zip(pictures, words, strict=True)))
    found = json.loads(repeats("--json", "--repeats", 1, stdin=list_of).out)
    assert {row["concept"]: row["images"] for row in found["concepts"]} == {"mayu": 1, "okabe": 1, "raw": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trigger", "folder"),
    [
        ("shiina mayuri", "2_shiina mayuri"),
        ("mayu, school uniform", "2_mayu"),
        ("-re:zero/ä😀.", "2_-re_zero_ä😀"),
        ("x" * 400, "2_" + "x" * 200),
    ],
)
def test_cleaned_records_are_named_after_their_trigger(
    draw: Any, repeats: Any, tmp_path: Path, trigger: str, folder: str
) -> None:
    draw("raw", 1)
    clean = [sys.executable, "-c", "from lorapipe_dataset.clean.cli import main; main()"]
    list_of = subprocess.run(
        [*clean, tmp_path / "pictures/raw", f"--trigger={trigger}", "--jsonl"],
        capture_output=True,
        check=True,
    ).stdout
    done = repeats("-o", tmp_path / "set", "--repeats", 2, stdin=list_of)
    assert (done.code, names(tmp_path / "set")) == (0, [folder])
    assert (tmp_path / "set" / folder / "000.txt").read_text() == f"{trigger}, a, b, 0\n"
    repeats("-o", tmp_path / "by hand", "--repeats", 2, "--name", "hand", stdin=list_of)
    assert names(tmp_path / "by hand") == ["2_hand"]


def test_what_cannot_be_taken_is_told_and_passed_by(draw: Any, repeats: Any, tmp_path: Path) -> None:
    (picture,) = draw("raw", 1)
    gif = tmp_path / "a.gif"
    gif.write_bytes(b"GIF89a")
    list_of = lines(
        {"path": "gone\n.png"},
        {"path": str(gif)},
        {"path": "x.png", "error": "cut short"},
        {"path": str(picture)},
    )
    done = repeats("-o", tmp_path / "set", "--repeats", 2, stdin=list_of)
    assert (done.code, names(tmp_path / "set/2_raw")) == (1, ["000.png", "000.txt"])
    assert "error: gone\\n.png: no such file" in done.err
    assert f"error: {gif}: not a picture that is trained (.gif)" in done.err
    assert "error: x.png: cut short" in done.err


def test_same_names_are_kept_apart(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("a", 2), draw("b", 2, caption="other")
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--concept", "x", "--repeats", 1)
    assert done.code == 0
    folder = tmp_path / "set/1_x"
    assert names(folder) == [f"00{n}{s}" for n in "01" for s in (".png", ".txt", "_2.png", "_2.txt")]
    assert (folder / "000_2.txt").read_text() == "other, 0\n"
    assert "2 pictures get a number behind their name" in done.err


@pytest.mark.parametrize("how", ["hard", "symlink", "move"])
def test_other_ways_than_copying(draw: Any, repeats: Any, tmp_path: Path, how: str) -> None:
    pictures = draw("raw", 2)
    before = tree(tmp_path / "pictures/raw")
    words = ["--move"] if how == "move" else ["--link", how]
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--repeats", 3, *words)
    assert done.code == 0
    assert tree(tmp_path / "set/3_raw") == before
    placed = tmp_path / "set/3_raw/000.png"
    if how == "move":
        assert tree(tmp_path / "pictures") == {}
    else:
        assert placed.is_symlink() == (how == "symlink")
        assert placed.samefile(pictures[0])
        assert not placed.with_suffix(".txt").samefile(pictures[0].with_suffix(".txt"))
        assert tree(tmp_path / "pictures/raw") == before


def test_nothing_is_replaced_without_force(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("raw", 2)
    words = [tmp_path / "pictures", "-o", tmp_path / "set", "--repeats"]
    repeats(*words, 3)
    (tmp_path / "set/3_raw/mine.txt").write_text("mine")
    before = tree(tmp_path / "set")
    done = repeats(*words, 5)
    assert (done.code, tree(tmp_path / "set")) == (1, before)
    assert "is not empty; give --force" in done.err
    done = repeats(*words, 5, "--force")
    assert (done.code, names(tmp_path / "set")) == (0, ["5_raw"])
    assert (tmp_path / "set/5_raw/mine.txt").read_text() == "mine"
    assert "1 file from before is still there" in done.err
    # Another concept's folder has nothing to do with it.
    draw("../other/maid", 1)
    done = repeats(tmp_path / "other", "-o", tmp_path / "set", "--repeats", 2, "--force")
    assert (done.code, names(tmp_path / "set")) == (0, ["2_maid", "5_raw"])
    assert "from before" not in done.err


def test_what_is_added_gives_way_to_what_is_there(draw: Any, repeats: Any, tmp_path: Path) -> None:
    (first,) = draw("a/mai", 1, caption="first")
    (second,) = draw("b/mai", 1, caption="second")
    one, two = first.read_bytes(), second.read_bytes()
    words = ["-o", tmp_path / "set", "--repeats", 5]
    repeats(tmp_path / "pictures/a", *words)
    before = tree(tmp_path / "set")
    done = repeats(tmp_path / "pictures/b", *words, "--force", "--dry-run")
    assert (done.code, tree(tmp_path / "set")) == (0, before)
    assert "1 picture gets a number behind its name" in done.err
    done = repeats(tmp_path / "pictures/b", *words, "--force")
    both = {"000.png": one, "000.txt": b"first, 0\n", "000_2.png": two, "000_2.txt": b"second, 0\n"}
    assert (done.code, tree(tmp_path / "set/5_mai")) == (0, both)
    # What was edited there stays, and the same command again adds nothing.
    (tmp_path / "set/5_mai/000_2.txt").write_text("mine")
    words[-1] = 6
    done = repeats(tmp_path / "pictures/b", *words, "--force", "--dry-run")
    assert f"would rename {tmp_path / 'set/5_mai'} -> 6_mai" in done.err
    done = repeats(tmp_path / "pictures/b", *words, "--force")
    assert (done.code, tree(tmp_path / "set")) == (
        0,
        {f"6_mai/{k}": v for k, v in {**both, "000_2.txt": b"mine"}.items()},
    )
    assert f"captions in {tmp_path / 'set'} have other words and stay as they are" in done.err
    assert "2 files lie in" in done.err
    # A caption of another suffix is the picture's caption too.
    (tmp_path / "set/6_mai/000_2.txt").rename(tmp_path / "set/6_mai/000_2.caption")
    assert repeats(tmp_path / "pictures/b", *words, "--force").code == 0
    assert tree(tmp_path / "set/6_mai") == {
        **{k: v for k, v in both.items() if k != "000_2.txt"},
        "000_2.caption": b"mine",
    }
    # A picture that was changed there is another one.
    (tmp_path / "set/6_mai/000_2.png").write_bytes(one + b"cropped")
    done = repeats(tmp_path / "pictures/b", *words, "--force", "--move")
    after = tree(tmp_path / "set/6_mai")
    assert (done.code, after["000_2.png"], after["000_3.png"]) == (0, one + b"cropped", two)
    assert after["000_3.txt"] == b"second, 0\n"
    assert not second.exists()


def test_a_file_in_the_place_of_a_folder_is_named(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("mai", 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/5_mai").write_text("no folder")
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--repeats", 5, "--force")
    assert done.code == 1
    assert f"{tmp_path / 'set/5_mai'}: is a file, and a folder is to have its name; move it away" in done.err
    assert tree(tmp_path / "set") == {"5_mai": b"no folder"}


def test_a_picture_that_is_named_twice_is_told(draw: Any, repeats: Any, tmp_path: Path) -> None:
    path = str(draw("mai", 1)[0])
    records = [{"path": path, "caption": "first"}, {"path": path, "caption": "first"}, {"path": path}]
    words = ["-o", tmp_path / "set", "--repeats", 5]
    done = repeats(*words, "--dry-run", stdin=lines(*records))
    assert (done.code, "named twice" in done.err) == (0, False)
    done = repeats(*words, stdin=lines(*records, {"path": path, "caption": "second"}))
    assert f"warning: {path}: named twice, and its first caption counts" in done.err
    assert tree(tmp_path / "set/5_mai")["000.txt"] == b"first\n"
    done = repeats("--repeats", 5, stdin=lines(*records, {"path": path, "concept": "other"}))
    assert f"warning: {path}: named twice, and belongs to 'mai' as at first" in done.err


def test_what_cannot_leave_its_place_is_a_failure(draw: Any, repeats: Any, tmp_path: Path) -> None:
    (picture,) = draw("mai", 1)
    (picture.parent / ".lorapipe").write_text("where the journal would be")
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--repeats", 5, "--move")
    assert (done.code, names(tmp_path / "set")) == (1, ["5_mai"])
    assert "000.png: left where it is" in done.err
    assert "--undo" not in done.err
    assert picture.exists()


def test_a_failure_leaves_no_trace(draw: Any, repeats: Any, tmp_path: Path) -> None:
    for (picture,) in (draw("a", 1), draw("b", 1)):
        picture.rename(picture.with_name("x" * 251 + ".png"))
    # The second of the name would be x..x_2.png.
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "set", "--concept", "x", "--repeats", 1)
    assert done.code == 1
    assert "too long" in done.err
    assert names(tmp_path) == ["pictures"]


def test_renaming_in_place(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("1_nekochan", 76), draw("6_maid", 16)
    root = tmp_path / "pictures"
    done = repeats(root, "--rename", "--dry-run")
    assert (done.code, done.out, names(root)) == (0, "", ["1_nekochan", "6_maid"])
    done = repeats(root, "--rename")
    assert done.out.splitlines() == [str(root / "12_maid"), str(root / "3_nekochan")]
    assert names(root) == ["12_maid", "3_nekochan"]
    assert repeats(root, "--rename").out.splitlines() == [str(root / "12_maid"), str(root / "3_nekochan")]


def test_dataset_toml(draw: Any, repeats: Any, tmp_path: Path) -> None:
    pictures = draw("maid", 16)
    output = tmp_path / "set.toml"
    words = ["-o", output, "--resolution", "768,512", "--bucket-no-upscale"]
    done = repeats(tmp_path / "pictures", *words)
    assert (done.code, done.out) == (0, f"{output}\n")
    (dataset,) = tomllib.loads(output.read_text())["datasets"]
    assert (dataset["resolution"], dataset["bucket_no_upscale"]) == ([768, 512], True)
    assert dataset["subsets"] == [
        {"image_dir": str(tmp_path / "pictures/maid"), "class_tokens": "maid", "num_repeats": 25}
    ]
    assert repeats(tmp_path / "pictures", *words).code == 1
    done = repeats(*words, "--force", stdin=lines({"path": str(pictures[0])}))
    assert (done.code, "15 of its pictures are not in the list" in done.err) == (2, True)
    done = repeats(*words, "--force", stdin=lines(*({"path": str(p), "caption": "new"} for p in pictures)))
    assert (done.code, "its new caption is in no file" in done.err) == (2, True)


def test_strange_names(draw: Any, repeats: Any, tmp_path: Path) -> None:
    (picture,) = draw("raw", 1)
    for name in ("-dash.png", "two words.png", "új😀.png", "line\nend.png", os.fsdecode(b"\xff.png")):
        (picture.parent / name).write_bytes(picture.read_bytes())
    before = names(picture.parent)
    done = repeats(tmp_path / "pictures", "-o", tmp_path / "-s et", "--repeats", 1, "--json")
    assert (done.code, json.loads(done.out)["path"]) == (0, str(tmp_path / "-s et"))
    assert names(tmp_path / "-s et/1_raw") == before
    assert "5 of 6 pictures have no caption" in done.err


def test_loops_are_not_followed(draw: Any, repeats: Any, tmp_path: Path) -> None:
    draw("raw", 2)
    root = tmp_path / "pictures"
    (root / "again").symlink_to(root)
    (root / "raw/up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    assert json.loads(repeats(root, "--recursive", "--json").out)["images"] == 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["nothing"], 2, "no pictures found"),
        (["empty"], 2, "no pictures found"),
        (["pictures", "--repeats", "0"], 2, "--repeats 0: not a number above 0"),
        (["pictures", "--repeats", "1.5"], 2, "repeats are whole numbers"),
        (["pictures", "--by", "weight"], 2, "no weights; give --weight"),
        (["pictures", "--by", "equal", "--weight", "2"], 2, "--weight goes with --by weight"),
        (["pictures", "--resolution", "4", "--train_batch_size", "2"], 2, "resolution: 4x4 is too small"),
        (["pictures", "--resolution", "64"], 2, "resolution: has a use only with --train_batch_size above 1"),
        (
            ["pictures", "--link", "hard"],
            2,
            "--link has no use with printing the numbers; it belongs to -o FOLDER",
        ),
        (["pictures", "--link", "hard", "--move", "-o", "x"], 2, "exclude each other"),
        (["pictures", "-o", "pictures"], 1, "is not empty"),
        (["pictures", "-o", "pictures", "--force"], 2, "lies inside the output"),
        (["pictures", "-o", "file"], 1, "is a file, not a folder"),
        (["pictures", "-o", "/proc/lora/set"], 1, "error: /proc"),
        (["pictures", "-o", "x", "--rename"], 2, "--output and --rename exclude each other"),
        (["pictures", "--outptu", "x"], 2, "no option --outptu, did you mean --output?"),
    ],
)
def test_errors_take_one_line(
    draw: Any,
    repeats: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    text: str,
) -> None:
    draw("raw", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    done = repeats(*words)
    assert done.code == code
    (line,) = (line for line in done.err.splitlines() if "error:" in line)
    assert text in line
    assert "Traceback" not in done.err
    assert tree(tmp_path) == before


def test_renaming_can_be_taken_back(tmp_path: Path) -> None:
    """Also where one folder's new name was another's old one."""
    for name, count in (("4_a", 2), ("2_a b", 1)):
        (tmp_path / "ds" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (64, 64 + number)).save(tmp_path / "ds" / name / f"{number}.png")
    words = ("lora-repeats", tmp_path / "ds", "--rename", "--repeats", "a=3", "--repeats", "a b=7")
    done = command_of(*words)
    assert done.returncode == 0, done.stderr
    assert f"to take it back: lora-repeats --undo {tmp_path / 'ds'}" in done.stderr
    assert {path.name for path in (tmp_path / "ds").iterdir()} == {"3_a", "7_a b", ".lorapipe"}
    (tmp_path / "ds" / "3_a" / "new.txt").write_text("added since")
    done = command_of("lora-repeats", "--undo", tmp_path / "ds")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "ds").iterdir()} == {"4_a", "2_a b"}
    assert (tmp_path / "ds" / "4_a" / "new.txt").read_text() == "added since"


def test_moving_can_be_taken_back(tmp_path: Path) -> None:
    for name in ("maid", "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 64 + number)).save(tmp_path / "in" / name / f"{number}.png")
            (tmp_path / "in" / name / f"{number}.txt").write_bytes(b"\xef\xbb\xbfmine\r\n")
    before = tree(tmp_path / "in")
    done = command_of("lora-repeats", tmp_path / "in", "-o", tmp_path / "out", "--move")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "in") == {}
    assert len(tree(tmp_path / "out")) == 12
    caption = next((tmp_path / "out").glob("*_cat/0.txt"))
    caption.write_text("changed in the tree, in place")
    assert f"lora-repeats --undo {tmp_path / 'in'}" in done.stderr
    done = command_of("lora-repeats", "--undo", tmp_path / "in")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "in") == before
    assert not list((tmp_path / "in").rglob(".lorapipe"))
    assert caption.read_text() == "changed in the tree, in place"
