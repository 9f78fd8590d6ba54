"""Cells of a plan, drawn: pictures of a base, and of networks that are trained too little, well, and too long."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from PIL.PngImagePlugin import PngInfo

TRIGGER = "mina"
PROMPTS = {
    "T": f"{TRIGGER}, 1girl, green hair, park",
    "U": "1girl, green hair, park",
    "O": "a red car, street",
}


@dataclass(frozen=True)
class Training:
    """How far a network is trained. ``change``: how much of the concept it draws with the trigger, 0..1; ``leak``: the
    same without. ``burnt``: how far colours and edges are driven, 0..1. ``alike``: how much all seeds are one, 0..1.
    """

    change: float
    leak: float = 0.0
    burnt: float = 0.0
    alike: float = 0.0


UNDERCOOKED = Training(0.04, 0.03)
GOOD = Training(1.0, 0.12)
OVERCOOKED = Training(1.0, 0.9, burnt=1.0, alike=0.8)


def draw(part: str, seed: int, training: Training | None, weight: float = 1.0, side: int = 96) -> Image.Image:
    """A cell's picture; without a training, the base's."""
    scene = _scene(part, seed, side, mina=False)
    if training is None or weight == 0:
        return scene
    share = min(1.0, (training.change if part == "T" else training.leak) * weight)
    mine = Image.blend(_scene(part, seed, side, mina=True), _scene(part, 0, side, mina=True), training.alike)
    picture = Image.blend(scene, mine, share)
    if training.burnt:
        picture = ImageEnhance.Color(picture).enhance(1 + 2.5 * training.burnt * weight)
        picture = ImageEnhance.Contrast(picture).enhance(1 + 1.5 * training.burnt * weight)
        picture = picture.filter(ImageFilter.UnsharpMask(2, int(200 * training.burnt * weight), 0))
    return picture


def _scene(part: str, seed: int, side: int, *, mina: bool) -> Image.Image:
    """A park or a street, another for each seed, with somebody or a car in it."""
    dice = random.Random(f"{part if part == 'O' else 'park'} {seed}")
    sky, ground = (
        (120 + dice.randrange(70), 150 + dice.randrange(60), 190 + dice.randrange(40)) for _ in range(2)
    )
    image = Image.new("RGB", (side, side), sky)
    pen = ImageDraw.Draw(image)
    horizon = side * (50 + dice.randrange(25)) // 100
    pen.rectangle((0, horizon, side, side), (ground[0] // 2, ground[2] // 2 + 30, ground[1] // 3))
    for _ in range(12):
        x, y, r = dice.randrange(side), dice.randrange(side), dice.randrange(side // 12, side // 6)
        shade = 60 + dice.randrange(120)
        pen.ellipse((x - r, y - r, x + r, y + r), (shade, shade + 20, shade // 2))
    x, r = side * (35 + dice.randrange(30)) // 100, side // 5
    if part == "O":
        pen.rectangle((x - r, horizon, x + 2 * r, horizon + r), (190, 50, 40))
    if part != "O" or mina:
        hair = (70, 200, 90) if mina else (110, 80, 60)
        pen.ellipse((x - r, side // 2 - 2 * r, x + r, side // 2), hair)
        pen.ellipse(
            (x - r * 2 // 3, side // 2 - 3 * r // 2, x + r * 2 // 3, side // 2 - r // 4), (235, 205, 185)
        )
        pen.polygon(
            [(x, side // 2 - r // 4), (x - r, side), (x + r, side)],
            (120, 60, 160) if mina else (90, 100, 120),
        )
    return image.filter(ImageFilter.GaussianBlur(0.6))


@dataclass(frozen=True)
class Plan:
    """Cells to draw: networks by name, weights, seeds, parts of the prompts; and the base of each."""

    networks: dict[str, Training]
    weights: Iterable[float] = (1.0,)
    seeds: Iterable[int] = range(8)
    parts: Iterable[str] = ("T", "U", "O")
    side: int = 96
    extra: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> Iterator[tuple[str, str, float, int, Training | None]]:
        """(part, network, weight, seed, training); the base has no name."""
        for part in self.parts:
            for seed in self.seeds:
                yield part, "", 0.0, seed, None
                for name, training in self.networks.items():
                    for weight in self.weights:
                        yield part, name, weight, seed, training


def infotext(part: str, name: str, weight: float, seed: int, side: int) -> str:
    """The parameters as A1111 writes them."""
    tag = f", <lora:{name}:{weight:g}>" if name else ""
    return (
        f"{PROMPTS[part]}{tag}\nNegative prompt: lowres, bad anatomy\nSteps: 20, Sampler: Euler a, Schedule type: "
        f"Automatic, CFG scale: 7.0, Seed: {seed}, Size: {side}x{side}, Model hash: 6ce0161689, Model: tiny, "
        "Version: v1.10.1"
    )


def write_folder(folder: Path, plan: Plan) -> Path:
    """Cells with their parameters inside, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (part, name, weight, seed, training) in enumerate(plan.cells()):
        notes = PngInfo()
        notes.add_text("parameters", infotext(part, name, weight, seed, plan.side))
        draw(part, seed, training, weight, plan.side).save(folder / f"{number:05}.png", pnginfo=notes)
    return folder


def write_records(folder: Path, plan: Plan) -> Path:
    """Cells without parameters inside, and a list of records that has them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (part, name, weight, seed, training) in enumerate(plan.cells()):
        path = folder / f"{number:05}.png"
        draw(part, seed, training, weight, plan.side).save(path)
        record = {"path": path.name, "prompt": PROMPTS[part], "seed": seed, "steps": 20, "sampler": "Euler a"}
        record |= {"file": f"run/{name}.safetensors", "weight": weight} if name else {"file": None}
        lines.append(json.dumps(record | plan.extra))
    listed = folder / "cells.jsonl"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listed
