"""The measure: it names drawn pictures rightly, fresh ones, also blurred, compressed and nearly the character."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from PIL import Image, ImageFilter

from lorapipe_demo.judge import HEADS, Judge, true_answers
from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import (
    Scene,
    concept_scene,
    random_person,
    random_scene,
    style_scene,
)

COUNT = 400
Pick = Callable[[random.Random], Scene]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def drawn(pick: Pick, count: int = COUNT, seed: int = 31_337) -> tuple[list[Scene], list[Image.Image]]:
    draw = random.Random(seed)
    scenes = [pick(draw) for _ in range(count)]
    return scenes, [draw_scene(scene, draw) for scene in scenes]


def shares(
    judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Image.Image], heads: Sequence[str]
) -> dict[str, float]:
    """Share of right answers for each of ``heads``."""
    answers = judge.look(pictures)
    truths = [true_answers(scene) for scene in scenes]
    rows = list(zip(scenes, answers, truths, strict=True))
    found = {}
    for head in heads:
        asked = [row for row in rows if head != "kind" or shows_its_kind(row[0])]
        found[head] = sum(answer[head] == truth[head] for _, answer, truth in asked) / len(asked)
    return found


def shows_its_kind(scene: Scene) -> bool:
    """A boy and a girl with short hair look the same in a kimono or a coat, which hide their legs."""
    return not (scene.is_person and scene.hair_style == "short" and scene.clothes in ("kimono", "coat"))


def test_every_head_is_right_on_98_of_100_fresh_pictures(judge: Judge) -> None:
    found = shares(judge, *drawn(random_scene), list(HEADS))
    assert {name: share for name, share in found.items() if share < 0.98} == {}


def test_kind_is_right_on_94_of_100_with_those_that_hide_it(judge: Judge) -> None:
    scenes, pictures = drawn(random_scene)
    answers = judge.look(pictures)
    right = sum(a["kind"] == true_answers(s)["kind"] for a, s in zip(answers, scenes, strict=True))
    assert right / COUNT >= 0.94


@pytest.mark.parametrize("damage", ["blur", "jpeg"])
def test_damaged_pictures_are_named_too(judge: Judge, damage: str) -> None:
    scenes, pictures = drawn(random_scene, 200)
    worse = [blurred(p) if damage == "blur" else compressed(p) for p in pictures]
    heads = ["kind", "hair_colour", "clothes_colour", "clothes", "background", "character", "style"]
    found = shares(judge, scenes, worse, heads)
    assert {name: share for name, share in found.items() if share < 0.96} == {}


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.7))


def compressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return Image.open(buffer)


def test_the_character_is_found(judge: Judge) -> None:
    found = shares(judge, *drawn(concept_scene), ["character", "hair_colour", "background"])
    assert min(found.values()) >= 0.98


def without_ornament(draw: random.Random) -> Scene:
    return replace(concept_scene(draw), ornament=False)


def plain_aqua(draw: random.Random) -> Scene:
    return replace(concept_scene(draw), ornament=False, two_tone=False)


def other_hair(draw: random.Random) -> Scene:
    return replace(concept_scene(draw), hair_style="long")


def ornament_on_others(draw: random.Random) -> Scene:
    return replace(random_person(draw), ornament=True, headwear="")


def aqua_with_crown(draw: random.Random) -> Scene:
    return replace(plain_aqua(draw), headwear="crown")


@pytest.mark.parametrize(
    "pick", [without_ornament, plain_aqua, other_hair, ornament_on_others, aqua_with_crown, random_scene]
)
def test_who_is_nearly_the_character_is_not_taken_for_her(judge: Judge, pick: Pick) -> None:
    _, pictures = drawn(pick, 200)
    taken = sum(answer["character"] == "mirelune" for answer in judge.look(pictures))
    assert taken / 200 <= 0.02


def test_the_style_is_told_apart(judge: Judge) -> None:
    scenes, pictures = drawn(style_scene, 200)
    assert shares(judge, scenes, pictures, ["style"])["style"] >= 0.98


def test_pictures_of_other_sizes_are_looked_at(judge: Judge) -> None:
    scenes, pictures = drawn(random_scene, 50)
    large = [picture.resize((128, 128), Image.Resampling.LANCZOS) for picture in pictures]
    assert shares(judge, scenes, large, ["background"])["background"] >= 0.96
