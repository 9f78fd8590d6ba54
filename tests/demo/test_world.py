"""The drawn world: the same seed draws the same picture, captions are true, and what is held out never occurs."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("PIL")

from lorapipe_demo import scene as world
from lorapipe_demo.concept import CONCEPTS, draw_concept
from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import Scene, concept_scene, random_person, random_scene

GIRL = Scene(
    kind="girl",
    background="night sky",
    hair_colour="black",
    hair_style="short",
    eye_colour="green",
    expression="smile",
    clothes="dress",
    clothes_colour="red",
)


def picture(scene: Scene, seed: int = 1) -> bytes:
    return draw_scene(scene, random.Random(seed)).tobytes()


def scenes(count: int, seed: int = 4) -> list[Scene]:
    draw = random.Random(seed)
    return [random_scene(draw) for _ in range(count)]


def test_a_seed_gives_one_picture_of_64_pixels() -> None:
    drawn = draw_scene(GIRL, random.Random(3))
    assert (drawn.size, drawn.mode) == ((64, 64), "RGB")
    assert drawn.tobytes() == picture(GIRL, 3)
    assert drawn.tobytes() != picture(GIRL, 4)


def test_tags_are_booru_tags_in_the_usual_order() -> None:
    tags = ", ".join(GIRL.tags())
    assert tags == "1girl, solo, short hair, black hair, green eyes, red dress, smile, night sky"
    cat = Scene(kind="cat", background="snow", colour="grey")
    assert cat.tags() == ["no humans", "animal", "grey cat", "snow"]
    more = replace(GIRL, hair_style="twintails", headwear="witch hat", held="sword", glasses=True)
    assert more.tags()[2:4] == ["long hair", "twintails"]
    assert more.tags()[-4:] == ["witch hat", "holding sword", "glasses", "night sky"]


def test_eyes_that_cannot_be_seen_are_not_tagged() -> None:
    assert "green eyes" not in replace(GIRL, expression="closed eyes").tags()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("background", world.BACKGROUNDS),
        ("hair_colour", world.HAIR_COLOURS),
        ("hair_style", (*world.HAIR_STYLES, "spiky")),
        ("eye_colour", world.EYE_COLOURS),
        ("expression", world.EXPRESSIONS),
        ("clothes", world.CLOTHES),
        ("clothes_colour", world.CLOTHES_COLOURS),
        ("headwear", ("", *world.HEADWEAR)),
        ("held", ("", *world.HELD)),
        ("glasses", (False, True)),
        ("ornament", (False, True)),
        ("two_tone", (False, True)),
        ("style", ("plain", "ink")),
    ],
)
def test_every_attribute_shows(field: str, values: tuple[object, ...]) -> None:
    base = replace(GIRL, hair_style="twintails")
    drawn = {picture(replace(base, **{field: value})) for value in values}  # type: ignore[arg-type]
    assert len(drawn) == len(values)


def test_animals_and_objects_differ() -> None:
    things = [Scene(kind=kind, background="snow", colour="white") for kind in world.ANIMALS]
    things += [Scene(kind=kind, background="snow", colour="red") for kind in world.OBJECTS]
    assert len({picture(thing) for thing in things}) == len(things)


@pytest.mark.slow
def test_the_ordinary_world_holds_nothing_of_what_is_held_out() -> None:
    triggers = set(CONCEPTS)
    for found in scenes(20_000):
        assert found.hair_colour != "aqua"
        assert not found.ornament
        assert not found.two_tone
        assert found.style == "plain"
        assert not triggers & set(" ".join(found.tags()).split())


def test_the_ordinary_world_has_tens_of_thousands_of_combinations() -> None:
    found = scenes(20_000)
    people = [scene for scene in found if scene.is_person]
    assert len(set(people)) > 0.98 * len(people) > 15_000
    kinds = Counter(scene.kind for scene in found)
    assert set(kinds) == set(world.KINDS)
    assert min(kinds.values()) > 300


def test_the_vocabulary_covers_every_tag_and_no_trigger() -> None:
    words = set(world.vocabulary())
    for found in scenes(3_000):
        assert set(" ".join(found.tags()).replace(",", "").split()) <= words
    assert not words & set(CONCEPTS)


def test_a_concept_folder_is_the_same_each_time(tmp_path: Path) -> None:
    first = draw_concept(tmp_path / "a", "mirelune", pictures=6, repeats=5, seed=1)
    second = draw_concept(tmp_path / "b", "mirelune", pictures=6, repeats=5, seed=1)
    assert first.name == "5_mirelune"
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 12
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_captions_of_the_character_name_only_what_changes() -> None:
    draw = random.Random(2)
    for _ in range(200):
        scene = concept_scene(draw)
        tags = CONCEPTS["mirelune"][1](scene)
        assert tags[0] == "mirelune"
        assert tags[-1] == scene.background
        fixed = ("hair", "purple eyes", "twintails", "aqua", "ornament", "crown")
        assert not any(word in ", ".join(tags) for word in fixed)


def test_captions_of_the_style_name_all_that_is_drawn(tmp_path: Path) -> None:
    folder = draw_concept(tmp_path, "inkveil", pictures=3, repeats=1, seed=5)
    draw = random.Random("5/inkveil")
    scene = world.style_scene(draw)
    caption = (folder / "000.txt").read_text(encoding="utf-8").strip()
    assert caption == ", ".join(["inkveil", *scene.tags()])


def test_people_are_of_both_kinds_and_boys_wear_no_dress() -> None:
    draw = random.Random(8)
    people = [random_person(draw) for _ in range(500)]
    assert {person.kind for person in people} == {"girl", "boy"}
    assert not any(person.kind == "boy" and person.clothes == "dress" for person in people)


def test_importing_the_package_loads_neither_torch_nor_pillow() -> None:
    code = (
        "import sys, lorapipe_demo, lorapipe_demo.scene\n"
        "print(sorted(sys.modules.keys() & {'torch', 'PIL', 'diffusers', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
