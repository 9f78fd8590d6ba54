"""Cleaning twice is cleaning once, whatever the options; undo restores every byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from lorapipe_dataset.clean.captions.cleaner import Cleaner, NeverSettles, counted
from lorapipe_dataset.clean.captions.rules import NO_FACTS, Facts, Rules
from lorapipe_dataset.clean.captions.words import resolve
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.run import run
from lorapipe_dataset.texts.tokens import estimate
from lorapipe_engine.changes.undo import undo
from lorapipe_engine.errors import ConfigError
from support.quick import examples

WORDS = [
    "1girl", "2girls", "solo", "blue hair", "red_hair", "white shirt", "shirt", "Shirt", "long hair", "hair",
    "rem (re:zero)", "rem \\(re:zero\\)", "^_^", "o_o", "_", "(blue hair:1.2)", "((smile))", "[smile]", "{a|b, c}",
    "explicit", "rating:safe", "trigger", "my_trigger", "|||", "caf\u00e9", "cafe\u0301", "a. b", "ＡＢ", "x;y",
    "(smile, (hat:1.1):1.2)", "[v, hat]", ":(", ";)", "(o)_(o)", "{{", "}", "\u200b", "😀", "masterpiece",
    "best quality",
]  # fmt: skip
KEYS = ["1girl", "shirt", "blue hair", "white shirt", "hair", "smile", "x"]
tag = st.sampled_from(WORDS) | st.text("ab _(){}[|:\\,;.\u0301\u00df\u0130A1", max_size=6)
tags = st.lists(st.sampled_from(WORDS), max_size=3)
caption = st.lists(tag, max_size=8).flatmap(
    lambda found: st.sampled_from([", ", ",", " ,  ", "; ", "\n", " ", ". "]).map(
        lambda sign: sign.join(found)
    )
)
names = st.dictionaries(st.sampled_from(KEYS), st.lists(st.sampled_from(KEYS), max_size=2), max_size=3)
patterns = st.lists(st.sampled_from([*KEYS, "*hair", "re:.*shirt", "?", "my trigger"]), max_size=2)
categories = st.lists(st.sampled_from(["character", "general", "meta"]), max_size=1)
affix = st.sampled_from(["", "", "masterpiece, ", "a photo of ", ", end", " x"])
facts = st.builds(
    Facts,
    categories=st.just({"rem (re:zero)": "character", "smile": "meta"}),
    scores=st.dictionaries(st.sampled_from(KEYS), st.floats(0, 1)),
    other=st.none() | st.lists(st.sampled_from(WORDS), max_size=4),
)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "style": st.sampled_from(["tags", "tags", "tags", "text"]),
    "split": st.sampled_from([",", ";"]),
    "join": st.sampled_from([", ", ",", "; "]),
    "lines": st.sampled_from(["each", "join", "first"]),
    "spelling": st.sampled_from(["keep", "spaces", "underscores"]),
    "escape": st.sampled_from([None, True, False]),
    "lower": st.booleans(),
    "strip_weights": st.booleans(),
    "expand_wildcards": st.booleans(),
    "dedupe": st.sampled_from([True, True, False]),
    "phrases": st.lists(st.sampled_from([("girl", "woman"), ("a", ""), ("  +", " ")]), max_size=1),
    "aliases": names,
    "replace": names,
    "regexes": st.lists(st.sampled_from([("^red ", "blue "), ("_+", "-"), ("b$", "a, c")]), max_size=2),
    "drop": patterns,
    "keep": patterns,
    "only": patterns,
    "drop_categories": categories,
    "only_categories": categories,
    "categories": st.just({"1girl": "general"}),
    "split_characters": st.booleans(),
    "rating": st.sampled_from(["keep", "drop", "first", "last"]),
    "several_people": st.booleans(),
    "implications": names,
    "add_implied": st.booleans(),
    "overlap": st.booleans(),
    "algebra": st.sampled_from([None, None, "union", "intersect", "subtract"]),
    "trigger": st.sampled_from(["", "my_trigger", "rem (re:zero)", "shirt, x"]),
    "trigger_place": st.sampled_from(["first", "last", "keep"]),
    "add": tags,
    "order": st.sampled_from(
        ["keep", "alphabet", "length", "tokens", "frequency", "confidence", "category", "people", "shuffle"]
    ),
    "descending": st.booleans(),
    "keep_first": st.integers(0, 3),
    "seed": st.integers(0, 3),
    "first": tags,
    "last": tags,
    "max_tags": st.none() | st.integers(1, 4),
    "max_tokens": st.none() | st.integers(1, 12),
    "prefix": affix,
    "suffix": affix,
    "sentences": st.none() | st.integers(1, 2),
    "if_empty": st.sampled_from(["", "photo", "shirt, x", "my_trigger"]),
    "strip_invariant": st.none() | st.floats(0.3, 1),
}  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    """Rules with a few options set, or with many."""
    chosen = draw(
        st.lists(st.sampled_from(sorted(OPTIONS)), unique=True, max_size=draw(st.sampled_from([2, 5, 40])))
    )
    found = {name: draw(OPTIONS[name]) for name in chosen}
    for name in ("aliases", "replace"):
        try:
            found[name] = resolve(found.get(name, {}), name)
        except Exception:  # a circle, which the command refuses
            found[name] = {}
    if found.get("order") == "frequency" or found.get("strip_invariant") is not None:
        found.pop("max_tags", None)
        found.pop("max_tokens", None)
    try:
        return Rules(**found, count_tokens=estimate)
    except ConfigError:
        reject()


def clean_all(captions: list[str], some: Rules, known: Facts) -> list[str]:
    """What the command does of a folder."""
    cleaner = counted(some, ((text, known) for text in captions)) if some.needs_all else Cleaner(some)
    return [cleaner.clean(text, known) for text in captions]


@pytest.mark.slow
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(captions=st.lists(caption, min_size=1, max_size=3), some=rules(), known=facts)
def test_cleaning_twice_is_cleaning_once(captions: list[str], some: Rules, known: Facts) -> None:
    try:
        once = clean_all(captions, some, known)
    except NeverSettles:
        assume(False)
    assert clean_all(once, some, known) == once


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=caption, some=rules(), known=facts)
def test_only_replacements_may_never_settle(text: str, some: Rules, known: Facts) -> None:
    """A caption is refused for options that contradict each other only: those that put new texts into captions."""
    if some.needs_all or some.regexes or some.phrases or some.replace or some.aliases:
        return
    Cleaner(some).clean(text, known)


@settings(max_examples=examples(200), deadline=None)
@given(text=caption.filter(lambda text: "{" not in text))
def test_no_tag_is_lost_by_default(text: str) -> None:
    cleaner = Cleaner(Rules())
    before = set(map(cleaner.bench.key, cleaner.tags_of(cleaner.clean(text, NO_FACTS))))
    loose = set(map(cleaner.bench.key, cleaner.tags_of(text)))
    # Normal form, invisible letters and runs of spaces aside, the same tags are there.
    assert len(before) <= len(loose)
    assert {key for key in loose if key.isascii() and any(map(str.isalnum, key))} <= before


BYTES = st.one_of(
    caption.map(str.encode),
    caption.map(lambda text: b"\xef\xbb\xbf" + text.encode()),
    caption.map(lambda text: text.replace("\n", "\r\n").encode() + b"\r\n"),
    caption.map(lambda text: f"{text}\n".encode()),
    st.binary(max_size=8),
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.lists(BYTES, min_size=1, max_size=4), some=rules())
def test_files_twice_and_undone(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], some: Rules
) -> None:
    folder = tmp_path_factory.mktemp("captions")
    for number, data in enumerate(contents):
        (folder / f"{number}.txt").write_bytes(data)

    def snapshot() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*.txt")}

    before = snapshot()
    options = Options(rules=some, inputs=[str(folder)], jsonl=False)
    try:
        code = run(options)
    except NeverSettles:
        return
    once = snapshot()
    assert run(options) == code
    if code == 0:
        assert snapshot() == once
    if once != before:
        undo([folder], "lora-clean")
        assert snapshot() == before
