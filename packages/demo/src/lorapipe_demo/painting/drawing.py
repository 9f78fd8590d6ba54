"""From a scene to its picture."""

from __future__ import annotations

import random

from PIL import Image, ImageChops, ImageFilter, ImageOps

from lorapipe_demo.painting.backgrounds import PAINTERS
from lorapipe_demo.painting.creatures import draw_thing
from lorapipe_demo.painting.pen import Pen
from lorapipe_demo.painting.person import draw_person
from lorapipe_demo.scene import Scene


def draw_scene(scene: Scene, draw: random.Random) -> Image.Image:
    """The picture of a scene, 64 x 64 RGB; ``draw`` decides on place, size and small things."""
    pen = Pen()
    PAINTERS[scene.background](pen, draw)
    pen.zoom = draw.uniform(0.94, 1.04)
    pen.dx, pen.dy = draw.uniform(-2.5, 2.5), draw.uniform(-1.0, 1.5)
    if scene.is_person:
        draw_person(pen, scene, draw)
    else:
        draw_thing(pen, scene)
    return _ink(pen.image) if scene.style == "ink" else pen.finished()


def _ink(canvas: Image.Image) -> Image.Image:
    """The held-out style: dark strokes and two washes of blue-grey on warm paper."""
    small = canvas.resize((128, 128), Image.Resampling.LANCZOS)
    grey = ImageOps.autocontrast(small.convert("L"))
    edges = ImageOps.invert(grey.filter(ImageFilter.CONTOUR).filter(ImageFilter.MinFilter(3)))
    wash = grey.point(lambda value: 255 if value > 150 else (205 if value > 80 else 140))
    tone = ImageChops.subtract(wash, edges.point(lambda value: 255 if value > 70 else 0))
    paper = ImageOps.colorize(tone, black=(36, 38, 74), white=(250, 238, 212), mid=(150, 158, 186))
    return paper.resize((64, 64), Image.Resampling.LANCZOS)
