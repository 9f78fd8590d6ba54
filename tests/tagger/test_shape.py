"""Tags into captions: properties of the single steps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.tag_lists import split_list
from lorapipe_tagger.captions.shape import (
    Shape,
    caption_tags,
    drop_implied,
    drop_overlapping,
    expand_character,
    with_spaces,
    without_repeats,
)
from lorapipe_tagger.captions.texts import parse_threshold, read_pair_file, read_pairs
from lorapipe_tagger.captions.write import join_existing
from lorapipe_tagger.models.labels import Labels
from lorapipe_tagger.scoring.select import Rules, Selection, Selector, Tag, mcut, spelling

# The nineteen faces that taggers' users expect to stay as they are.
FACES = (
    "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split()  # noqa: SIM905
)
WORDS = st.text("abcA_()\\ ^", min_size=1, max_size=8).map(lambda text: text.strip(" _")).filter(bool)


def tags_of(*names: str, category: str = "general") -> list[Tag]:
    return [Tag(name, category, 0.9 - row / 100, row) for row, name in enumerate(names)]


@pytest.mark.parametrize("face", FACES)
def test_faces_keep_their_underscore(face: str) -> None:
    assert with_spaces(face) == face


def test_other_names_get_spaces() -> None:
    names = {
        "long_hair": "long hair",
        "fate_(series)": "fate (series)",
        "k-on!_logo": "k-on! logo",
        "1girl": "1girl",
    }
    for name, wanted in names.items():
        assert with_spaces(name) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("saber_(fate)", ["saber", "fate"]),
        ("artoria_pendragon_(swimsuit_ruler)_(fate)", ["artoria_pendragon_(swimsuit_ruler)", "fate"]),
        ("2b_(nier:automata)", ["2b", "nier:automata"]),
        ("a_(b_(c))", ["a", "b_(c)"]),
        ("hatsune_miku", ["hatsune_miku"]),
        ("(only)", ["(only)"]),
        ("odd)", ["odd)"]),
    ],
)
def test_characters_and_their_series(name: str, wanted: list[str]) -> None:
    (tag,) = tags_of(name, category="character")
    assert [part.name for part in expand_character(tag, {})] == wanted
    assert [part.name for part in expand_character(tag._replace(category="general"), {})] == [name]


def test_series_that_the_model_knows() -> None:
    series = {"hatsune_miku": ["vocaloid"], "miku_(append)": ["vocaloid"], "rem_(re:zero)": ["re:zero"]}
    names = [
        [part.name for part in expand_character(tag, series)]
        for tag in tags_of(*series, category="character")
    ]
    assert names == [["hatsune_miku", "vocaloid"], ["miku_(append)", "vocaloid"], ["rem", "re:zero"]]


def test_implications_over_several_steps_and_in_circles() -> None:
    found = drop_implied(tags_of("a", "b", "c", "d"), {"a": ["b"], "b": ["c"], "c": ["b"], "x": ["d"]})
    assert [tag.name for tag in found] == ["a", "d"]


def test_overlap_is_of_whole_words() -> None:
    found = drop_overlapping(
        tags_of("cat", "catastrophe", "black_cat", "hair", "very_long_hair", "long_hair", "a_cat")
    )
    assert [tag.name for tag in found] == ["catastrophe", "black_cat", "very_long_hair", "a_cat"]


def test_given_tags_stay_as_they_are_and_come_once() -> None:
    selection = Selection(tags_of("Shiina_Mayuri", "solo", "dress"), {"general": 0.9})
    shape = Shape(trigger="shiina mayuri", add=["my_(tag)", "SOLO"], escape=True, first=["dress"])
    assert caption_tags(selection, shape) == ["shiina mayuri", "my_(tag)", "SOLO", "dress"]


@given(st.lists(WORDS, max_size=8), st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=4))
def test_captions_have_no_tag_twice(names: list[str], first: list[str], add: list[str]) -> None:
    found = caption_tags(Selection(tags_of(*names), {}), Shape(first=first, add=add))
    keys = [spelling(tag) for tag in found]
    assert len(keys) == len(set(keys))
    assert set(keys) == {spelling(name) for name in (*names, *add)}


@given(
    st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6), st.sampled_from(["append", "prepend", "merge"])
)
def test_joining_twice_is_joining_once(old: list[str], new: list[str], mode: str) -> None:
    new = without_repeats(new)
    before = ", ".join(old) or None
    once = join_existing(before, new, mode, ", ")  # type: ignore[arg-type]
    twice = join_existing(once or None, new, mode, ", ")  # type: ignore[arg-type]
    assert twice == once
    if before and mode != "merge":
        assert before in once


def test_joining_takes_an_escaped_tag_for_the_same() -> None:
    new = ["b", "my_(tag)", "my \\(tag\\)", "c"]
    assert join_existing(None, new, "merge", ", ") == "b, my_(tag), c"
    assert join_existing("c, d", new, "merge", ", ", front=1) == "b, c, d, my_(tag)"


def test_mcut() -> None:
    assert mcut(np.asarray([0.9, 0.85, 0.3, 0.2], dtype=np.float32)) == pytest.approx(0.575)
    assert math.isinf(mcut(np.asarray([], dtype=np.float32)))


def test_thresholds_are_compared_as_the_scores_are() -> None:
    labels = Labels(["a", "b"], ["general", "character"], {})
    scores = np.asarray([0.35, 0.85], dtype=np.float32)
    selector = Selector(labels, Rules(thresholds={"general": 0.35, "character": 0.85}))
    assert [tag.name for tag in selector.select(scores).tags] == ["a", "b"]
    assert selector.select(np.nextafter(scores, np.float32(0))).tags == []


def test_patterns() -> None:
    names = ["long_hair", "hair", "[x]", "^_^", "a_(b)", "A"]
    labels = Labels(names, ["general"] * len(names), {})
    for patterns, wanted in {
        ("*hair",): names[2:],
        ("long hair",): names[1:],
        ("re:long hair",): names[1:],
        ("[x]", "a"): ["long_hair", "hair", "^_^", "a_(b)"],
        ("re:.*hair", "a (b)"): ["[x]", "^_^", "A"],
    }.items():
        selector = Selector(labels, Rules(thresholds={"general": 0.5}, exclude=patterns))
        found = selector.select(np.ones(len(names), dtype=np.float32)).tags
        assert [tag.name for tag in found] == wanted, patterns


def test_lists_of_tags() -> None:
    assert split_list(["a, b_c ,,", "person\\, with (x)", "re:a,b"]) == [
        "a",
        "b_c",
        "person, with (x)",
        "re:a,b",
    ]


def test_pairs(tmp_path: Path) -> None:
    assert read_pairs(["a=b", "c=", "D e => f, g"], []) == {"a": ["b"], "c": [], "d_e": ["f", "g"]}
    assert read_pairs(["=_==tired"], ["=_="]) == {"=_=": ["tired"]}
    (tmp_path / "p.json").write_text('{"a": "b", "c d": ["e", "f"]}')
    assert read_pairs([str(tmp_path / "p.json")], []) == {"a": ["b"], "c_d": ["e", "f"]}
    (tmp_path / "p.txt").write_text("\ufeff# comment\na -> b\na,c\nd\te\n\n", encoding="utf-8")
    assert read_pair_file(tmp_path / "p.txt") == {"a": ["b", "c"], "d": ["e"]}
    (tmp_path / "p.txt").write_text("a -> b\nnothing\n")
    with pytest.raises(InputError, match="line 2: needs"):
        read_pair_file(tmp_path / "p.txt")


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_thresholds_are_numbers_in_range_or_refused(value: float) -> None:
    try:
        found = parse_threshold(repr(value), "--general")
    except ConfigError:
        assert not 0.01 <= value <= 2
    else:
        assert isinstance(found, float)
        assert found == value if value <= 1 else math.isinf(found)
