"""The demo world: what can stand in a picture, and how a tagger would caption it.

A :class:`Scene` is one picture before it is drawn. Its captions are booru tags in the usual order: who, what they
look like, what they wear and hold, where they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

HAIR_COLOURS = ("black", "brown", "blonde", "red", "pink", "blue", "green", "purple", "white", "orange")
HAIR_STYLES = ("short", "bob", "long", "twintails", "ponytail", "double bun")
BOY_STYLES = ("short", "spiky")
EYE_COLOURS = ("blue", "green", "red", "brown", "purple", "yellow")
EXPRESSIONS = ("smile", "open mouth", "closed eyes", "frown")
CLOTHES = ("dress", "hoodie", "kimono", "shirt", "coat")
CLOTHES_COLOURS = ("red", "blue", "green", "yellow", "purple", "pink", "white", "black")
HEADWEAR = ("witch hat", "hair ribbon", "crown", "cat ears", "beret", "hair flower")
HELD = ("balloon", "book", "sword", "umbrella")
BACKGROUNDS = (
    "night sky",
    "blue sky",
    "beach",
    "forest",
    "snow",
    "sunset",
    "city",
    "classroom",
    "white background",
    "pink background",
)
ANIMALS = ("cat", "dog", "rabbit", "bird")
ANIMAL_COLOURS = ("black", "white", "brown", "grey", "orange")
OBJECTS = ("house", "tree", "car", "cake")
OBJECT_COLOURS = ("red", "blue", "green", "yellow", "purple", "pink", "aqua")
KINDS = ("girl", "boy", *ANIMALS, *OBJECTS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a picture shows. ``kind`` is one of KINDS; people use all fields, animals and objects only
    ``colour`` and ``background``. ``ornament`` and ``two_tone`` belong to the held-out character alone; ``style`` is
    "plain" in all of pre-training."""

    kind: str
    background: str
    colour: str = ""
    hair_colour: str = ""
    hair_style: str = ""
    eye_colour: str = ""
    expression: str = ""
    clothes: str = ""
    clothes_colour: str = ""
    headwear: str = ""
    held: str = ""
    glasses: bool = False
    ornament: bool = False
    two_tone: bool = False
    style: str = "plain"

    @property
    def is_person(self) -> bool:
        """Whether a girl or a boy is shown."""
        return self.kind in ("girl", "boy")

    def tags(self) -> list[str]:
        """True tags of the picture, without any trigger word."""
        if not self.is_person:
            what = [f"{self.colour} {self.kind}"]
            return ["no humans", *(["animal"] if self.kind in ANIMALS else []), *what, self.background]
        tags = [f"1{self.kind}", "solo", *hair_tags(self.hair_style), f"{self.hair_colour} hair"]
        if self.expression != "closed eyes":
            tags.append(f"{self.eye_colour} eyes")
        tags += [f"{self.clothes_colour} {self.clothes}", self.expression]
        tags += [tag for tag in (self.headwear, f"holding {self.held}" if self.held else "") if tag]
        if self.glasses:
            tags.append("glasses")
        return [*tags, self.background]


def hair_tags(style: str) -> list[str]:
    """Tags of a hair style: its length, and its cut where it has one."""
    if style in ("short", "long"):
        return [f"{style} hair"]
    if style in ("twintails", "ponytail"):
        return ["long hair", style]
    if style == "spiky":
        return ["short hair", "spiky hair"]
    return ["short hair", "bob cut" if style == "bob" else style]


def random_scene(draw: random.Random) -> Scene:
    """Any picture of the ordinary world: mostly people."""
    background = draw.choice(BACKGROUNDS)
    roll = draw.random()
    if roll < 0.12:
        return Scene(kind=draw.choice(ANIMALS), background=background, colour=draw.choice(ANIMAL_COLOURS))
    if roll < 0.22:
        return Scene(kind=draw.choice(OBJECTS), background=background, colour=draw.choice(OBJECT_COLOURS))
    return random_person(draw, background)


def random_person(draw: random.Random, background: str | None = None) -> Scene:
    """A girl (most of the time) or a boy with everything drawn at random."""
    kind = "girl" if draw.random() < 0.72 else "boy"
    return Scene(
        kind=kind,
        background=background or draw.choice(BACKGROUNDS),
        hair_colour=draw.choice(HAIR_COLOURS),
        hair_style=draw.choice(HAIR_STYLES if kind == "girl" else BOY_STYLES),
        eye_colour=draw.choice(EYE_COLOURS),
        expression=draw.choice(EXPRESSIONS),
        clothes=draw.choice(CLOTHES if kind == "girl" else CLOTHES[1:]),
        clothes_colour=draw.choice(CLOTHES_COLOURS),
        headwear=draw.choice(HEADWEAR) if draw.random() < 0.4 else "",
        held=draw.choice(HELD) if draw.random() < 0.35 else "",
        glasses=draw.random() < 0.12,
    )


def all_tags() -> list[str]:
    """Every tag of the ordinary world, in the order that captions have them."""
    styles = dict.fromkeys(tag for style in (*HAIR_STYLES, *BOY_STYLES) for tag in hair_tags(style))
    lengths = ["short hair", "long hair"]
    tags = ["1girl", "1boy", "no humans", "solo", "animal", *lengths]
    tags += [tag for tag in styles if tag not in lengths]
    tags += [f"{colour} hair" for colour in HAIR_COLOURS] + [f"{colour} eyes" for colour in EYE_COLOURS]
    tags += [f"{colour} {clothes}" for clothes in CLOTHES for colour in CLOTHES_COLOURS]
    tags += [*EXPRESSIONS, *HEADWEAR, *(f"holding {held}" for held in HELD), "glasses"]
    tags += [f"{colour} {animal}" for animal in ANIMALS for colour in ANIMAL_COLOURS]
    tags += [f"{colour} {thing}" for thing in OBJECTS for colour in OBJECT_COLOURS]
    return [*tags, *BACKGROUNDS]


def vocabulary() -> list[str]:
    """Every word that tags are made of, sorted."""
    groups = (HAIR_COLOURS, EYE_COLOURS, EXPRESSIONS, CLOTHES, CLOTHES_COLOURS, HEADWEAR, HELD, BACKGROUNDS)
    more = (
        "1girl",
        "1boy",
        "solo",
        "hair",
        "eyes",
        "no humans",
        "animal",
        "holding",
        "glasses",
        "cut",
        "style",
    )
    texts = [*more, *ANIMALS, *ANIMAL_COLOURS, *OBJECTS, *OBJECT_COLOURS]
    for group in groups:
        texts += group
    for style in (*HAIR_STYLES, *BOY_STYLES):
        texts += hair_tags(style)
    return sorted({word for text in texts for word in text.split()})


# ---------------------------------------------------------------- the held-out concepts

TRIGGER = "mirelune"
STYLE_TRIGGER = "inkveil"


def concept_scene(draw: random.Random) -> Scene:
    """The held-out character: aqua hair with pink ends in twintails and a great golden crescent, in changing clothes
    and places. No aqua or two-tone hair and no crescent occurs in pre-training."""
    person = random_person(draw)
    return replace(
        person,
        kind="girl",
        hair_colour="aqua",
        hair_style="twintails",
        eye_colour="purple",
        clothes=draw.choice(CLOTHES),
        headwear="",
        glasses=False,
        ornament=True,
        two_tone=True,
    )


def concept_tags(scene: Scene) -> list[str]:
    """Caption of a picture of the character: the trigger, then only what changes from picture to picture."""
    tags = [TRIGGER, "1girl", "solo", f"{scene.clothes_colour} {scene.clothes}", scene.expression]
    if scene.held:
        tags.append(f"holding {scene.held}")
    return [*tags, scene.background]


def style_scene(draw: random.Random) -> Scene:
    """Any picture of the world in the held-out drawing style."""
    return replace(random_scene(draw), style="ink")


def style_tags(scene: Scene) -> list[str]:
    """Caption of a picture in the held-out style: the trigger, then all of its tags."""
    return [STYLE_TRIGGER, *scene.tags()]
