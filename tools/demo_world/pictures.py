"""Draw the sets of pictures that pre-training needs, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lorapipe_demo.judge import HEADS, true_answers
from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import (
    HAIR_COLOURS,
    HEADWEAR,
    Scene,
    concept_scene,
    random_person,
    random_scene,
    style_scene,
)

CAPTIONS = 4  # captions drawn for each picture
LENGTH = 77
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]


@dataclass(frozen=True)
class PictureSet:
    """``pixels`` (N, 64, 64, 3) uint8; ``answers`` (N, heads) for the judge; ``ids`` (N, CAPTIONS, 77) token ids."""

    pixels: np.ndarray
    answers: np.ndarray
    ids: np.ndarray


def world_picture(draw: random.Random) -> Scene:
    """What the base model sees: no held-out concept among it."""
    return random_scene(draw)


def judge_picture(draw: random.Random) -> Scene:
    """What the judge sees: also the held-out concepts, and what is nearly the character but is not."""
    roll = draw.random()
    if roll < 0.45:
        return random_scene(draw)
    if roll < 0.65:
        return concept_scene(draw)
    if roll < 0.72:
        return style_scene(draw)
    if roll < 0.75:
        return replace(concept_scene(draw), style="ink")
    return near_miss(draw)


def near_miss(draw: random.Random) -> Scene:
    """The character with something of hers missing or changed, or somebody else with something of hers."""
    if draw.random() < 0.6:
        changed = draw.choice(
            [
                # The crown is golden too and sits near, so it comes most often.
                {"ornament": False, "headwear": draw.choice(["", "crown", "crown", *HEADWEAR])},
                {"two_tone": False},
                {"two_tone": False, "ornament": False, "headwear": draw.choice(["", *HEADWEAR])},
                {"hair_style": draw.choice(["short", "bob", "long", "ponytail", "double bun"])},
                {"hair_colour": draw.choice(HAIR_COLOURS)},
            ]
        )
        return replace(concept_scene(draw), **changed)
    gained = draw.choice(
        [
            {"ornament": True, "headwear": ""},
            {"hair_colour": "aqua"},
            {"hair_colour": "aqua", "hair_style": "twintails"},
            {"two_tone": True, "hair_style": "twintails"},
        ]
    )
    return replace(random_person(draw), **gained)


def caption(scene: Scene, draw: random.Random) -> str:
    """A caption as users write them: mostly whole and in order, sometimes short of tags, shuffled, or with a word that
    means nothing, which the model must learn to pass over."""
    tags = scene.tags()
    if draw.random() < 0.3:
        tags = [tag for tag in tags if draw.random() > 0.2] or tags
    if draw.random() < 0.4:
        draw.shuffle(tags)
    if draw.random() < 0.3:
        word = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 4))) + draw.choice(
            ["", "l", "n", "s"]
        )
        tags.insert(draw.choice([0, 0, draw.randint(0, len(tags))]), word)
    return ", ".join(tags)


def draw_set(
    count: int, seed: int, pick: Callable[[random.Random], Scene], tokenizer: Path | None
) -> PictureSet:
    """``count`` pictures; captions only where a tokenizer's folder is given."""
    size = 500
    jobs = [(seed * 1_000_003 + start, min(size, count - start)) for start in range(0, count, size)]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        parts = pool.map(partial(_draw_part, pick=pick, tokenizer=tokenizer), jobs, chunksize=1)
    return PictureSet(*(np.concatenate([part[i] for part in parts]) for i in range(3)))


def _draw_part(
    job: tuple[int, int], pick: Callable[[random.Random], Scene], tokenizer: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, count = job
    draw = random.Random(seed)
    pixels = np.empty((count, 64, 64, 3), np.uint8)
    answers = np.empty((count, len(HEADS)), np.int64)
    ids = np.empty((count, CAPTIONS if tokenizer else 0, LENGTH), np.int16)
    encode = token_row(tokenizer) if tokenizer else None
    for row in range(count):
        scene = pick(draw)
        pixels[row] = np.asarray(draw_scene(scene, draw))
        truth = true_answers(scene)
        answers[row] = [choices.index(truth[name]) for name, choices in HEADS.items()]
        if encode:
            for variant in range(CAPTIONS):
                ids[row, variant] = encode(caption(scene, draw))
    return pixels, answers, ids


def token_row(folder: Path) -> Callable[[str], list[int]]:
    """A function from a text to its 77 ids: BOS, the text, EOS to the end."""
    from lorapipe_engine.train.base.tokenizers import open_tokenizer

    tokenizer = open_tokenizer(folder)

    def row(text: str) -> list[int]:
        content = tokenizer.encode(text)[: LENGTH - 2]
        return [tokenizer.bos, *content] + [tokenizer.eos] * (LENGTH - 1 - len(content))

    return row
