"""--fix with copies and clashes: no words go away for a picture without any, and several fixes at once are one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dataset.check.conftest import scene

SIZE = ("--resolution", 96)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def names(folder: Path) -> list[str]:
    return list(files(folder))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a picture of two sizes, the small one with a caption."""
    folder = tmp_path / "dw/2_x"
    folder.mkdir(parents=True)
    large = scene(1, (192, 192))
    large.save(folder / "big.png")
    large.resize((96, 96)).save(folder / "small.png")
    (folder / "small.txt").write_text("1girl, smile\n")
    return folder


@pytest.mark.parametrize("empty", [None, "big.txt", "big.png.txt"])
def test_the_larger_picture_gets_the_caption_of_the_copy_that_goes(
    empty: str | None, check: Any, place: Path
) -> None:
    if empty:
        (place / empty).write_text("\n")
    was = files(place)
    seen = check(place.parent, *SIZE, "--fix", "near-duplicate", "--dry-run")
    assert f"copy {place / 'small.txt'} -> {empty or 'big.txt'}" in seen.err
    done = check(place.parent, *SIZE, "--fix", "near-duplicate")
    assert (done.code, done.err) == (
        0,
        "mended: 2 files moved away, 1 captions copied; --undo takes it back\n",
    )
    assert names(place) == ["big.png", empty or "big.txt"]
    assert (place / (empty or "big.txt")).read_text() == "1girl, smile\n"
    assert check(place.parent, "--undo").code == 0
    assert files(place) == was


def test_the_caption_that_is_given_is_mended_too(check: Any, place: Path) -> None:
    words = ("--trigger", "mayu", "--fix", "near-duplicate", "--fix", "no-trigger")
    assert check(place.parent, *SIZE, *words).code == 0
    assert names(place) == ["big.png", "big.txt"]
    assert (place / "big.txt").read_text() == "mayu, 1girl, smile\n"


def test_words_come_from_another_folder_and_in_any_encoding(check: Any, place: Path) -> None:
    other = place.parent / "1_a"  # before the other in order, so its files go first
    other.mkdir()
    text = "платье, улыбка\n".encode("cp1251")
    (place / "small.png").rename(other / "small.png")
    (place / "small.txt").unlink()
    (other / "small.txt").write_bytes(text)
    (place / "big.jpg").write_bytes(b"")  # shares the stem, so the caption has the whole name
    scene(2).save(place / "big.jpg")
    assert check(place.parent, *SIZE, "--fix", "near-duplicate").code == 0
    assert (names(other), names(place)) == ([], ["big.jpg", "big.png", "big.png.txt"])
    assert (place / "big.png.txt").read_bytes() == text


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_copy_whose_words_cannot_be_copied_stays(check: Any, place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("secret, words\n")
    (place / "small.txt").unlink()
    (place / "small.txt").symlink_to(tmp_path / "mine.txt")
    was = files(place)
    done = check(place.parent, *SIZE, "--fix", "near-duplicate")
    assert (done.code, files(place)) == (1, was)
    assert f"{place / 'small.png'}: stays too: big.png has no words" in done.err


def test_a_caption_that_cannot_be_written_keeps_the_copy(check: Any, place: Path) -> None:
    (place / "big.txt").mkdir()
    done = check(place.parent, *SIZE, "--fix", "near-duplicate")
    assert done.code == 1
    assert (place / "small.txt").read_text() == "1girl, smile\n"
    assert "could not be copied, so it stays" in done.err


@pytest.mark.parametrize("turned", [False, True])
def test_a_copied_caption_is_mended_as_its_source(turned: bool, check: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sc/2_x"
    folder.mkdir(parents=True)
    scene(1).save(folder / "a.png")
    scene(2).save(folder / "a.jpg")
    (folder / "a.txt").write_text("1girl, smile\n")
    was = files(folder)
    rules = ["stem-clash", "no-trigger"][:: -1 if turned else 1]
    words = [word for rule in rules for word in ("--fix", rule)]
    assert check(folder.parent, *SIZE, "--trigger", "T", *words).code == 0
    assert names(folder) == ["a.jpg", "a.txt", "a_2.png", "a_2.txt"]
    assert (folder / "a.txt").read_text() == (folder / "a_2.txt").read_text() == "T, 1girl, smile\n"
    assert check(folder.parent, *SIZE, "--trigger", "T", *words).err == "nothing to mend\n"
    check(folder.parent, "--undo")
    assert files(folder) == was


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("large", ["b.png", "b.webp"])
def test_a_clash_that_ends_as_a_copy_goes_needs_no_other_name(
    large: str, turned: bool, check: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "sc/2_x"
    folder.mkdir(parents=True)
    for name in ("b.png", "b.webp"):
        size = (192, 192) if name == large else (96, 96)
        scene(1, (192, 192)).resize(size).save(folder / name, **({"lossless": True} if "w" in name else {}))
    (folder / "b.txt").write_text("1girl, smile\n")
    rules = ["stem-clash", "near-duplicate"][:: -1 if turned else 1]
    words = [word for rule in rules for word in ("--fix", rule)]
    assert check(folder.parent, *SIZE, *words).code == 0
    assert names(folder) == sorted([large, "b.txt"])
    assert (folder / "b.txt").read_text() == "1girl, smile\n"


def test_an_identical_clash_leaves_no_orphan(check: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sc/2_x"
    folder.mkdir(parents=True)
    scene(1).save(folder / "b.png")
    scene(1).save(folder / "b.webp", lossless=True)
    (folder / "b.txt").write_text("1girl, smile\n")
    assert check(folder.parent, *SIZE, "--fix", "stem-clash", "--fix", "duplicate").code == 0
    assert names(folder) == ["b.png", "b.txt"]


@pytest.mark.parametrize(
    "rules", [["case-clash"], ["stem-clash", "case-clash"], ["case-clash", "stem-clash"]]
)
def test_each_picture_of_two_clashes_keeps_its_words(rules: list[str], check: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sc/2_x"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("A.png", "a.jpg", "a.png")):
        scene(seed).save(folder / name)
    (folder / "A.txt").write_text("of the capital\n")
    (folder / "a.txt").write_text("of the small\n")
    words = [word for rule in rules for word in ("--fix", rule)]
    assert check(folder.parent, *SIZE, *words).code == 0
    pictures = [path for path in folder.iterdir() if path.suffix in (".png", ".jpg")]
    texts = {path.name: path.with_suffix(".txt").read_text() for path in pictures}
    assert sorted(texts.values()) == ["of the capital\n", "of the small\n", "of the small\n"]
    assert texts["A.png"] == "of the capital\n"
    assert len(names(folder)) == 6
    done = check(folder.parent, *SIZE, "--json", "--only", "stem-clash", "--only", "case-clash")
    assert done.json["findings"] == []


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_clash_over_words_from_elsewhere_stays(check: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sc/2_x"
    folder.mkdir(parents=True)
    scene(1).save(folder / "a.png")
    scene(2).save(folder / "a.jpg")
    (tmp_path / "mine.txt").write_text("secret, words\n")
    (folder / "a.txt").symlink_to(tmp_path / "mine.txt")
    done = check(folder.parent, *SIZE, "--fix", "stem-clash")
    assert (done.code, names(folder)) == (1, ["a.jpg", "a.png", "a.txt"])
    assert f"{folder / 'a.png'}: keeps its name: {folder / 'a.txt'} cannot be read, to be copied" in done.err
    assert "secret" not in done.err


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_an_empty_caption_that_is_a_link_becomes_a_file(check: Any, place: Path) -> None:
    scene(5).save(place / "c.png")
    (place / "c.txt").write_text("")
    (place / "big.txt").symlink_to("c.txt")
    assert check(place.parent, *SIZE, "--fix", "near-duplicate").code == 0
    assert (place / "big.txt").read_text() == "1girl, smile\n"
    assert (place / "c.txt").read_text() == ""
