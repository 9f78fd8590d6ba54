"""Animals and objects of the world, each about as large as a person."""

from __future__ import annotations

from lorapipe_demo.painting.colours import CLOTH, FUR, INK, Colour, shade
from lorapipe_demo.painting.pen import Pen
from lorapipe_demo.scene import ANIMALS, Scene


def draw_thing(pen: Pen, scene: Scene) -> None:
    """The animal or object of a scene."""
    if scene.kind in ANIMALS:
        _animal(pen, scene.kind, FUR[scene.colour])
    else:
        _object(pen, scene.kind, CLOTH[scene.colour])


def _animal(pen: Pen, kind: str, fur: Colour) -> None:
    line = shade(fur, 0.5)
    if kind == "bird":
        pen.oval((31, 40), 15, 12, fur, line)
        pen.shape([(18, 40), (4, 32), (8, 46)], shade(fur, 0.85), line)
        pen.oval((42, 27), 9.5, 9.5, fur, line)
        pen.shape([(50, 25), (59, 28), (50, 31)], (255, 170, 40))
        pen.oval((44, 25), 1.9, 2.2, INK, None)
        pen.shape([(26, 36), (38, 40), (24, 47)], shade(fur, 0.78), line)
        for x in (29, 35):
            pen.stroke([(x, 51), (x, 58)], (220, 140, 40), 1.3)
        return
    pen.oval((32, 50), 12, 11, fur, line)
    if kind == "cat":
        pen.stroke([(43, 54), (52, 50), (53, 40)], line, 3.6)
        pen.stroke([(43, 54), (52, 50), (53, 40)], fur, 2.4)
        for side in (-1, 1):
            pen.shape([(32 + side * 4, 17), (32 + side * 14, 7), (32 + side * 14.5, 24)], fur, line)
            pen.shape(
                [(32 + side * 8, 16), (32 + side * 12.6, 11), (32 + side * 13, 20)], (255, 176, 180), None
            )
    elif kind == "rabbit":
        for side in (-1, 1):
            pen.oval((32 + side * 7, 10), 4, 11, fur, line)
            pen.oval((32 + side * 7, 11), 2, 7.6, (255, 186, 190), None)
    pen.oval((32, 29), 15, 12.5, fur, line)
    if kind == "dog":
        for side in (-1, 1):
            pen.oval((32 + side * 14.5, 30), 4.2, 9.6, shade(fur, 0.7), line)
        pen.oval((32, 34), 7.4, 5.8, shade(fur, 1.5), line)
    for side in (-1, 1):
        pen.oval((32 + side * 6.6, 28), 2.3, 2.9, INK if fur != FUR["black"] else (250, 220, 90), None)
        pen.oval((32 + side * 6.6 - 0.7, 27), 0.8, 0.9, (255, 255, 255), None)
    pen.oval((32, 32.6), 1.7, 1.2, (90, 50, 56) if kind == "dog" else (255, 130, 150), None)
    for side in (-1, 1):
        pen.arc((32 + side * 2, 34.4), 2, 1.7, 20, 160, INK, 0.8)
        pen.oval((32 + side * 5.6, 60), 4, 2.5, shade(fur, 1.2), line)


def _object(pen: Pen, kind: str, colour: Colour) -> None:
    line = shade(colour, 0.45)
    if kind == "house":
        pen.box(14, 32, 50, 58, (250, 240, 220))
        pen.shape([(8, 33), (32, 11), (56, 33)], colour, line)
        pen.box(28, 43, 37, 58, (150, 96, 60))
        for x in (17, 41):
            pen.box(x, 38, x + 7, 45, (160, 214, 244))
    elif kind == "tree":
        pen.box(28, 40, 36, 60, (124, 84, 54))
        for x, y, r in ((22, 30, 11), (42, 30, 11), (32, 20, 13), (32, 34, 11)):
            pen.oval((x, y), r, r, colour, None)
        for x, y in ((24, 24), (38, 20), (42, 33), (28, 36)):
            pen.oval((x, y), 2.3, 2.3, shade(colour, 1.45), None)
    elif kind == "car":
        pen.shape([(16, 37), (23, 24), (42, 24), (50, 37)], shade(colour, 1.15), line)
        pen.shape([(21, 36), (25.5, 27), (31, 27), (31, 36)], (190, 228, 250), line)
        pen.shape([(34, 36), (34, 27), (40, 27), (45, 36)], (190, 228, 250), line)
        pen.box(6, 36, 58, 49, colour, line)
        for x in (18, 46):
            pen.oval((x, 50), 6, 6, (44, 44, 52))
            pen.oval((x, 50), 2.6, 2.6, (200, 204, 212), None)
        pen.oval((55.5, 41), 1.9, 1.9, (255, 240, 160), None)
    else:  # cake
        pen.oval((32, 54), 25, 5, (240, 240, 246))
        pen.box(13, 34, 51, 53, (255, 246, 232))
        pen.box(13, 41, 51, 45, colour, None)
        pen.oval((32, 34), 19, 6, colour, line)
        for x in (21, 32, 43):
            pen.box(x - 1, 20, x + 1, 33, (255, 255, 255))
            pen.oval((x, 17.6), 1.7, 2.8, (255, 180, 50), None)
