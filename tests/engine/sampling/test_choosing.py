"""The trigger of captions, and the prompts by which epochs are compared."""

from __future__ import annotations

import pytest

from lorapipe_engine.sampling.choosing import PICTURES, Caption, find_trigger, make_prompts
from lorapipe_engine.sampling.values import read_texts


def captions(*texts: str, repeats: int = 1) -> list[Caption]:
    return [Caption(text, repeats) for text in texts]


HERS = [*captions("mina, 1girl, hat", "mina, 1girl, park, smile", "mina, 1girl, sea", repeats=5)]


@pytest.mark.parametrize(
    ("texts", "word"),
    [
        ([*HERS, *captions("1girl, solo", "1girl, tree", "1girl, solo, sea")], "mina"),
        # Who comes most often in an epoch, not in most files.
        ([*HERS, *captions("kana, 1girl", "kana, hat", "kana, sea", "kana, dog")], "mina"),
        # Not the tag that every dataset begins with.
        (captions("1girl, mina, hat", "1girl, mina, park", "1girl, mina"), "mina"),
        (captions("sks dog", "sks dog", "sks dog"), "sks dog"),
        (captions(r"saber \(fate\), 1girl", r"saber \(fate\), hat"), "saber (fate)"),
        (captions("saber (fate), 1girl", "saber (fate), hat"), "saber (fate)"),
        (captions("a dog in a park", "two dogs on a sofa", "a dog, running", "a house"), None),
        (captions("1girl, solo", "1girl, hat", "1boy, sea"), None),
        ([], None),
    ],
)
def test_the_trigger_is_what_stands_first_most_often(texts: list[Caption], word: str | None) -> None:
    trigger = find_trigger(texts)
    assert (trigger and trigger.word) == word
    if trigger is not None and word == "mina" and texts[0] is HERS[0]:
        assert trigger.seen == 15


def test_a_given_trigger_counts_with_its_first_tag() -> None:
    trigger = find_trigger(HERS, "1girl, mina")
    assert trigger is not None
    assert (trigger.word, trigger.seen, trigger.total) == ("1girl", 15, 15)


def test_prompts_are_captions_of_usual_length_with_and_without_the_trigger() -> None:
    texts = [*HERS, *captions("mina, 1girl, a, b, c, d, e, f, g", "1girl, hat")]
    prompts = make_prompts(texts, "mina")
    assert prompts.asking == ("mina, 1girl, sea", "mina, 1girl, park, smile")
    assert prompts.silent == ("1girl, sea", "1girl, park, smile")
    assert len(prompts.asking) * prompts.seeds == PICTURES
    assert len(read_texts(prompts.axis(), "--y", 1)) == 6


def test_brackets_of_captions_are_no_weights_and_choices_are_left_out() -> None:
    prompts = make_prompts(
        captions("saber (fate), red", r"saber \(fate\), blue", "saber (fate), {a|b}"), "saber (fate)"
    )
    assert sorted(prompts.asking) == [r"saber \(fate\), blue", r"saber \(fate\), red"]
    assert sorted(prompts.silent) == ["blue", "red"]


def test_captions_that_cannot_be_drawn_leave_the_trigger_alone() -> None:
    prompts = make_prompts(captions("mina, <hypernet:a:1>", "mina, {a"), "mina")
    assert prompts.asking[0] == "mina"
    assert prompts.silent[0] == ""
    assert all("mina" not in prompt for prompt in prompts.silent)


def test_prompts_of_the_user_go_before_captions() -> None:
    given = ["(mina:1.1), tea", "a red car", "minami, cake", 'mina says "hi"', "mina [a|b]"]
    prompts = make_prompts(HERS, "mina", given)
    assert prompts.asking == ("(mina:1.1), tea", 'mina says "hi"')
    assert prompts.others == ("a red car", "minami, cake")
    assert [item.text for item in read_texts(prompts.axis(), "--y", 1)][:2] == list(prompts.asking)
