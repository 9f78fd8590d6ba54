"""The shipped base: it does what it is told."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")

from lorapipe_demo.judge import Judge, true_answers
from lorapipe_demo.scene import STYLE_TRIGGER, TRIGGER, random_scene, vocabulary
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.train.base.tokenizers import open_tokenizer


def test_words_are_tokens_and_triggers_are_not() -> None:
    tokenizer = open_tokenizer(demo_base().parent / "tokenizer")
    assert all(len(tokenizer.encode(word)) == 1 for word in vocabulary() if word not in ("1girl", "1boy"))
    assert min(len(tokenizer.encode(trigger)) for trigger in (TRIGGER, STYLE_TRIGGER)) > 3


def test_it_is_small() -> None:
    files = [path for path in demo_base().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20


def test_it_obeys_fresh_prompts() -> None:
    from lorapipe_demo.sampling import Painter

    draw = random.Random(10)
    scenes = [random_scene(draw) for _ in range(24)]
    pictures = Painter(demo_base(), "cpu").draw([", ".join(scene.tags()) for scene in scenes], None)
    answers = Judge.load().look(pictures)
    for name in ("background", "hair_colour", "clothes_colour", "kind"):
        pairs = [
            (true_answers(scene)[name], answer[name]) for scene, answer in zip(scenes, answers, strict=True)
        ]
        asked = [pair for pair in pairs if pair[0] != "none"]
        assert sum(want == got for want, got in asked) >= 0.85 * len(asked), name
