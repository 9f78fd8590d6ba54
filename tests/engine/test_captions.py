"""Captions: files, tags, and how they vary."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.caption_files import CaptionFinder, CaptionNames
from lorapipe_engine.pictures.captions import (
    CaptionRule,
    When,
    caption_lines,
    caption_tags,
    decode_caption,
    fixed_caption,
    join_tags,
    read_caption,
    split_tags,
    vary_caption,
)
from lorapipe_engine.pictures.joining import join_captions


def vary(text: str, rule: CaptionRule, seed: int = 0) -> str:
    return vary_caption(text, rule, random.Random(seed))


TAGS = st.lists(st.text("abc ()_", min_size=1).map(str.strip).filter(bool), max_size=8)


@given(TAGS)
def test_tags_survive_joining(tags: list[str]) -> None:
    assert split_tags(join_tags(tags)) == tags


@given(TAGS, st.integers(0, 4), st.integers())
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(tags: list[str], keep: int, seed: int) -> None:
    found = split_tags(vary(join_tags(tags), CaptionRule(shuffle=True, keep_tokens=keep), seed))
    assert sorted(found) == sorted(tags)
    assert found[:keep] == tags[:keep]


def test_nothing_changes_without_a_rule() -> None:
    assert vary("a,b ,  c", CaptionRule()) == "a,b ,  c"


def test_kept_by_a_mark() -> None:
    rule = CaptionRule(shuffle=True, keep_tokens_separator="|||")
    found = split_tags(vary("x, y ||| a, b, c, d ||| z", rule, 3))
    assert (found[:2], found[-1], sorted(found[2:-1])) == (["x", "y"], "z", ["a", "b", "c", "d"])
    assert vary("x ||| a", CaptionRule(keep_tokens_separator="|||")) == "x, a"
    assert vary("1boy##standing, red", CaptionRule(keep_tokens_separator="##")) == "1boy, standing, red"
    assert vary("a ## b ## c ## d", CaptionRule(keep_tokens_separator="##")) == "a, b, c, d"
    assert (
        vary("one line,  with no mark", CaptionRule(keep_tokens_separator="##")) == "one line,  with no mark"
    )


def test_the_tags_of_a_caption_have_no_marks() -> None:
    rule = CaptionRule(keep_tokens_separator="##", secondary_separator=";;;")
    assert caption_tags("1boy##standing, red;;;blue\nmore", rule) == ["1boy", "standing", "red", "blue"]
    assert caption_tags("a; b", CaptionRule(separator=";")) == ["a", "b"]
    assert caption_tags("a\nb", CaptionRule(wildcards=True)) == ["a", "b"]


def test_dropouts() -> None:
    assert vary("a, b", CaptionRule(dropout=1.0)) == ""
    assert vary("a, b, c", CaptionRule(tag_dropout=1.0, keep_tokens=1)) == "a"


def test_prefix_suffix_wildcards() -> None:
    assert vary("a", CaptionRule(prefix="p,", suffix="s")) == "p, a s"
    assert vary("{x|x} {{y}}", CaptionRule(wildcards=True)) == "x {y}"
    assert vary("first\nsecond", CaptionRule()) == "first"


def test_the_caption_file(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    assert CaptionFinder().of(picture) is None
    finder = CaptionFinder("tags")
    # Each later one is read before those that were there.
    for name in ("a.png.txt", "a.CAPTION", "a.txt", "a.tags"):
        (tmp_path / name).touch()
        assert CaptionFinder("tags").of(picture) == tmp_path / name
    assert finder.of(picture) == tmp_path / "a.tags"
    # With two pictures of one stem, what is named after the whole picture is its own.
    for path in (picture, tmp_path / "a.jpg"):
        path.touch()
    names = CaptionNames.in_folder(tmp_path)
    assert names.of("a.png") == ["a.png.txt", "a.txt", "a.CAPTION"]
    assert names.of("a.jpg") == ["a.txt", "a.CAPTION"]


def test_a_caption_written_since_the_folder_was_listed(tmp_path: Path) -> None:
    finder = CaptionFinder()
    assert finder.of(tmp_path / "a.png") is None
    (tmp_path / "a.txt").touch()
    assert finder.of(tmp_path / "a.png") == tmp_path / "a.txt"


ONE, TWO = "\u00e9", "e\u0301"  # an accent in the letter, and behind it


@pytest.mark.parametrize(("picture", "caption"), [(ONE, TWO), (TWO, ONE)])
def test_accents_in_either_form(tmp_path: Path, picture: str, caption: str) -> None:
    for name in (f"{caption}.txt", f"{picture}.png.txt"):
        assert CaptionNames([f"{picture}.png", name]).of(f"{picture}.png") == [name]
    # Of two pictures each has its own.
    names = CaptionNames([f"{form}.{suffix}" for form in (ONE, TWO) for suffix in ("png", "txt")])
    assert names.of(f"{ONE}.png") == [f"{ONE}.txt"]
    assert names.of(f"{TWO}.png") == [f"{TWO}.txt"]
    names = CaptionNames([f"{ONE}.png", f"{TWO}.png", f"{ONE}.txt"])
    assert (names.of(f"{ONE}.png"), names.of(f"{TWO}.png")) == ([f"{ONE}.txt"], [])
    (tmp_path / f"{caption}.txt").touch()
    found = CaptionFinder().of(tmp_path / f"{picture}.png")
    # A file system that keeps one form has the caption under either name.
    assert found is not None
    assert found.samefile(tmp_path / f"{caption}.txt")


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    picture = tmp_path / f"{'a' * 251}.png"
    assert CaptionFinder().of(picture) is None
    picture.with_suffix(".txt").touch()
    assert CaptionFinder().of(picture) == picture.with_suffix(".txt")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["1girl, tree", "\u0441\u043e\u043b\u043d\u0446\u0435", "a"])
def test_utf16_without_its_mark_is_refused_with_its_name(encoding: str, text: str) -> None:
    with pytest.raises(InputError, match=f"a.txt: control characters.*--encoding {encoding} rewrites it"):
        decode_caption(text.encode(encoding), "a.txt")
    assert decode_caption(text.encode(encoding), "a.txt", encoding) == text


def test_a_stray_nul_is_left_out() -> None:
    assert decode_caption(b"1girl, tree\0\n", "a.txt") == "1girl, tree\n"
    assert decode_caption(b"", "a.txt") == ""


def test_lines_end_where_files_end_them() -> None:
    text = "\n one\u2028two, \x0cthree\r\n\r\nfour\rfive\x85six\n"
    assert caption_lines(text) == ["one\u2028two, \x0cthree", "four", "five\x85six"]


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ("größe".encode("utf-8-sig"), None, "größe"),
        ("größe".encode("utf-16"), None, "größe"),
        ("größe".encode("utf-16"), "cp1252", "größe"),
        ("größe".encode("cp1252"), "cp1252", "größe"),
        ("猫".encode("cp932"), "cp932", "猫"),
        # A folder may hold captions of several encodings: what is UTF-8 stays what it is.
        ("größe, 猫".encode(), "cp1251", "größe, 猫"),
        ("1girl".encode("utf-16-le"), "utf-16-le", "1girl"),
    ],
)
def test_encodings(data: bytes, encoding: str | None, text: str) -> None:
    assert decode_caption(data, "a.txt", encoding) == text


@pytest.mark.parametrize(
    ("before", "how", "wanted"),
    [
        ("a, b, ", "append", "a, b, new"),
        ("a，b，", "append", "a，b, new"),
        ("t ||| a", "prepend", "t ||| new, a"),
        ("t ||| a ||| z", "append", "t ||| a, new ||| z"),
        ("a\r\nnew, b\r\n", "append", "a, new\nnew, b"),
        (" , ", "append", "new"),
        ("a, a", "merge", "a, new"),
        ("||| a", "merge", "||| a, new"),
    ],
)
def test_tags_put_to_a_caption(before: str, how: str, wanted: str) -> None:
    assert join_captions(before, ["new"], how, ", ", str.casefold) == wanted  # type: ignore[arg-type]
    assert join_captions(wanted, ["new"], how, ", ", str.casefold) == wanted  # type: ignore[arg-type]


def test_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("größe".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 \(byte 2\)"):
        read_caption(path)


def test_whole_epochs_without_captions() -> None:
    rule = CaptionRule(dropout_epochs=3)
    found = [vary_caption("a", rule, random.Random(0), When(epoch=epoch)) for epoch in range(7)]
    assert found == ["a", "a", "", "a", "a", "", "a"]


def test_tags_joined_by_the_second_mark_are_one() -> None:
    rule = CaptionRule(shuffle=True, secondary_separator=";;;")
    for seed in range(20):
        assert "red hair,long hair" in vary("smile, red hair;;;long hair, solo, hat", rule, seed)
    dropping = CaptionRule(tag_dropout=0.5, secondary_separator=";;;")
    assert {vary("a;;;b", dropping, seed) for seed in range(20)} == {"", "a,b"}
    assert vary("a;;;b, c", CaptionRule(secondary_separator=";;;")) == "a,b, c"


@pytest.mark.parametrize("warm", [8.0, 0.5])
def test_captions_grow(warm: float) -> None:
    """Five flexible tags over 8 steps: ⌊step·(5-1)/8⌋+1 of them."""
    rule = CaptionRule(keep_tokens=1, warmup_steps=warm)
    lengths = [
        len(split_tags(vary_caption("k, a, b, c, d, e", rule, random.Random(0), When(0, step, 16)))) - 1
        for step in range(10)
    ]
    assert lengths == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_every_line_gets_prefix_and_suffix() -> None:
    rule = CaptionRule(prefix="p,", suffix="s", wildcards=True)
    assert {vary("x\ny", rule, seed) for seed in range(20)} == {"p, x s", "p, y s"}


def test_the_fixed_caption_draws_nothing() -> None:
    rule = CaptionRule(
        shuffle=True, dropout=1.0, tag_dropout=0.9, prefix="p,", wildcards=True, warmup_steps=9
    )
    assert fixed_caption("a, b, c", rule) == "p, a, b, c"
    assert len({fixed_caption("{a|b|c|d}", rule) for _ in range(9)}) == 1
