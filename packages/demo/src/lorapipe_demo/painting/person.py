"""Little people: a large head, a small body, everything a tag can name."""

from __future__ import annotations

import math
import random

from lorapipe_demo.painting.colours import BLUSH, CLOTH, EYES, GOLD, HAIR, INK, SKIN, Colour, shade
from lorapipe_demo.painting.pen import Pen, Point
from lorapipe_demo.scene import Scene

HEAD: Point = (32, 26)


def draw_person(pen: Pen, scene: Scene, draw: random.Random) -> None:
    """A girl or a boy, from the back hair to what they hold."""
    hair = HAIR[scene.hair_colour]
    ends = HAIR["pink"] if scene.two_tone else hair
    _back_hair(pen, scene.hair_style, hair, ends)
    _body(pen, scene)
    _head(pen, scene)
    _front_hair(pen, scene, hair, ends)
    if scene.headwear:
        _headwear(pen, scene.headwear)
    if scene.ornament:
        _crescent(pen)
    if scene.held:
        _held(pen, scene.held, draw)


def _back_hair(pen: Pen, style: str, hair: Colour, ends: Colour) -> None:
    line = shade(hair, 0.55)
    if style == "long":
        pen.shape([(17, 24), (15, 50), (22, 53), (42, 53), (49, 50), (47, 24), (32, 10)], hair, line)
    elif style == "bob":
        pen.shape([(17, 22), (15.5, 38), (24, 41), (40, 41), (48.5, 38), (47, 22), (32, 10)], hair, line)
    elif style == "twintails":
        for side in (-1, 1):
            x = 32 + side * 17
            pen.oval((x + side * 2, 38), 5.2, 14, hair, line)
            if ends != hair:
                pen.oval((x + side * 2.2, 45), 4.9, 7.6, ends, shade(ends, 0.6))
            pen.oval((x - side * 0.5, 23.5), 2.2, 2.2, (250, 70, 90), INK)
    elif style == "ponytail":
        pen.shape([(40, 14), (54, 15), (58, 28), (55, 44), (51, 46), (50, 30), (44, 22)], hair, line)
    elif style == "double bun":
        for side in (-1, 1):
            pen.oval((32 + side * 12.5, 12.5), 5.6, 5.6, hair, line)


def _body(pen: Pen, scene: Scene) -> None:
    cloth = CLOTH[scene.clothes_colour]
    dark = shade(cloth, 0.72)
    line = shade(cloth, 0.45)
    for x in (28.4, 35.6):  # legs
        pen.box(x - 1.8, 53, x + 1.8, 60, SKIN)
        pen.oval((x, 60.4), 2.7, 1.8, (84, 62, 62))
    if scene.kind == "boy" and scene.clothes != "kimono":
        pen.box(26, 51, 38, 57, (70, 78, 104))
    sleeve = 3.1 if scene.clothes in ("hoodie", "coat", "kimono") else 2.3
    for side in (-1, 1):
        pen.stroke([(32 + side * 5.5, 42), (32 + side * 11, 50)], line, 2 * sleeve)
        pen.stroke([(32 + side * 5.5, 42), (32 + side * 11, 50)], cloth, 2 * sleeve - 1.1)
        pen.oval((32 + side * 11.6, 51), 2, 2, SKIN)
    if scene.clothes == "dress":
        pen.shape([(27, 38), (37, 38), (38, 45), (44, 56), (20, 56), (26, 45)], cloth, line)
        pen.stroke([(26, 45.5), (38, 45.5)], dark, 1.4)
        pen.stroke([(21, 54), (43, 54)], shade(cloth, 1.5), 1.1)
    elif scene.clothes == "hoodie":
        pen.shape([(26, 38), (38, 38), (41, 53), (23, 53)], cloth, line)
        pen.oval((32, 39.5), 7.5, 2.9, dark, line)
        pen.box(27, 46.5, 37, 50.5, dark, None)
        for x in (30, 34):
            pen.stroke([(x, 41), (x, 45)], (255, 255, 255), 0.7)
    elif scene.clothes == "kimono":
        pen.shape([(26, 38), (38, 38), (41.5, 58), (22.5, 58)], cloth, line)
        pen.shape([(28, 38), (36, 38), (32, 44.5)], (255, 250, 244), line)
        pen.box(
            24.6, 45, 39.4, 49.5, (252, 226, 120) if scene.clothes_colour != "yellow" else (206, 70, 80), line
        )
    elif scene.clothes == "shirt":
        pen.shape([(26, 38), (38, 38), (39, 52), (25, 52)], cloth, line)
        pen.shape([(28.5, 38), (35.5, 38), (32, 41.5)], SKIN, line)
        if scene.kind == "girl":
            pen.shape([(26, 51), (38, 51), (41, 56), (23, 56)], (96, 102, 128), INK)
    elif scene.clothes == "coat":
        pen.shape([(26, 38), (38, 38), (42, 58), (22, 58)], cloth, line)
        pen.stroke([(32, 39), (32, 58)], line, 0.8)
        pen.shape([(26, 37.5), (38, 37.5), (35, 42), (32, 39.5), (29, 42)], dark, line)
        for y in (46, 50, 54):
            pen.oval((34.2, y), 0.9, 0.9, GOLD, None)


def _head(pen: Pen, scene: Scene) -> None:
    x, y = HEAD
    pen.oval((x, y), 14, 13, SKIN, (196, 138, 126))
    for side in (-1, 1):
        pen.oval((x + side * 8.6, y + 6.2), 2.4, 1.4, BLUSH, None)
        _eye(pen, (x + side * 5.8, y + 2.2), scene, side)
    if scene.expression == "open mouth":
        pen.oval((x, y + 8.6), 2.5, 2.3, (206, 64, 76), INK)
    elif scene.expression == "frown":
        pen.arc((x, y + 10.6), 2.8, 2.2, 205, 335, INK, 0.9)
        for side in (-1, 1):
            pen.stroke([(x + side * 2.8, y - 2.2), (x + side * 8, y - 4.2)], INK, 1.0)
    else:
        pen.arc((x, y + 6.4), 3.0, 2.6, 20, 160, INK, 0.9)
    if scene.glasses:
        for side in (-1, 1):
            pen.arc((x + side * 5.8, y + 2.4), 4.6, 4.6, 0, 360, (30, 30, 40), 0.9)
        pen.stroke([(x - 1.4, y + 2.2), (x + 1.4, y + 2.2)], (30, 30, 40), 0.9)


def _eye(pen: Pen, centre: Point, scene: Scene, side: int) -> None:
    x, y = centre
    if scene.expression == "closed eyes":
        pen.arc((x, y + 2), 3.3, 2.8, 195, 345, INK, 1.2)
        return
    iris = EYES[scene.eye_colour]
    pen.oval((x, y), 3.2, 4.2, (255, 255, 255), INK, 0.5)
    pen.oval((x - side * 0.3, y + 0.4), 2.7, 3.7, iris, shade(iris, 0.5), 0.4)
    pen.oval((x - side * 0.3, y + 1.0), 1.2, 1.8, shade(iris, 0.35), None)
    pen.oval((x - 1.0, y - 1.5), 1.0, 1.1, (255, 255, 255), None)
    pen.arc((x, y + 0.4), 3.5, 4.6, 195, 345, INK, 1.2)


def _front_hair(pen: Pen, scene: Scene, hair: Colour, ends: Colour) -> None:
    line = shade(hair, 0.55)
    x, y = HEAD
    top = [
        (x - 15, y + 3),
        (x - 14.6, y - 5),
        (x - 9, y - 13),
        (x, y - 15.4),
        (x + 9, y - 13),
        (x + 14.6, y - 5),
    ]
    if scene.hair_style == "spiky":
        spikes = []
        for step in range(9):
            px = x - 16 + step * 4
            spikes += [(px, y - 7 - (4 - abs(step - 4)) * 1.7), (px + 2, y - 15 - (4 - abs(step - 4)) * 1.6)]
        top = [(x - 15, y + 2), *spikes, (x + 15, y - 4)]
    fringe = [
        (x + 15, y + 3),
        (x + 12, y - 2.6),
        (x + 8, y - 5),
        (x + 6, y - 1.6),
        (x + 2, y - 5),
        (x - 1, y - 1.6),
    ]
    fringe += [(x - 5, y - 5), (x - 8, y - 1.6), (x - 11, y - 4)]
    pen.shape([*top, *fringe], hair, line)
    if scene.hair_style in ("long", "bob", "short"):
        drop = 12 if scene.hair_style != "short" else 6
        for side in (-1, 1):
            pen.shape(
                [
                    (x + side * 15.2, y - 2),
                    (x + side * 11.8, y - 3),
                    (x + side * 12.8, y + drop),
                    (x + side * 15.6, y + drop - 2),
                ],
                hair,
                line,
            )
    pen.arc((x - 1, y - 5.5), 9, 5.6, 215, 300, shade(hair, 1.45), 1.3)
    if ends != hair:
        for side in (-1, 1):
            pen.shape(
                [(x + side * 15.2, y + 1), (x + side * 11.8, y + 1), (x + side * 13, y + 11)],
                ends,
                shade(ends, 0.6),
            )


def _headwear(pen: Pen, kind: str) -> None:
    x, y = HEAD
    if kind == "witch hat":
        pen.shape(
            [(x - 9.5, y - 10.5), (x - 2, y - 22), (x + 6, y - 25), (x + 4, y - 20), (x + 9.5, y - 10.5)],
            (66, 44, 104),
        )
        pen.oval((x, y - 10), 18.5, 3.3, (66, 44, 104))
        pen.stroke([(x - 8.6, y - 12.4), (x + 8.6, y - 12.4)], (236, 150, 50), 1.9)
    elif kind == "hair ribbon":
        for side in (-1, 1):
            pen.shape(
                [(x + 8, y - 13), (x + 8 + side * 7.5, y - 18), (x + 8 + side * 7.5, y - 9)], (236, 40, 60)
            )
        pen.oval((x + 8, y - 13), 2, 2, (190, 20, 44))
    elif kind == "crown":
        pen.shape(
            [
                (x - 8, y - 12),
                (x - 9, y - 20),
                (x - 4, y - 16),
                (x, y - 22),
                (x + 4, y - 16),
                (x + 9, y - 20),
                (x + 8, y - 12),
            ],
            GOLD,
            (150, 100, 20),
        )
        pen.oval((x, y - 14.6), 1.5, 1.5, (220, 40, 60), None)
    elif kind == "cat ears":
        for side in (-1, 1):
            pen.shape(
                [(x + side * 4, y - 13), (x + side * 12.6, y - 23), (x + side * 14, y - 8)], (70, 60, 74)
            )
            pen.shape(
                [(x + side * 7.4, y - 13), (x + side * 11.8, y - 19), (x + side * 12.4, y - 10.6)],
                (255, 170, 180),
                None,
            )
    elif kind == "beret":
        pen.oval((x - 3, y - 13.4), 13, 5.4, (170, 40, 58))
        pen.stroke([(x - 4, y - 18), (x - 5, y - 20.5)], INK, 1.1)
    elif kind == "hair flower":
        for dx, dy in ((0, -3), (2.9, -0.9), (1.8, 2.4), (-1.8, 2.4), (-2.9, -0.9)):
            pen.oval((x - 10 + dx, y - 9 + dy), 2.4, 2.4, (255, 255, 255), (230, 120, 160))
        pen.oval((x - 10, y - 9), 1.7, 1.7, GOLD, None)


def _crescent(pen: Pen) -> None:
    """The held-out ornament: a great golden crescent at the side of the head, where no headwear sits."""
    x, y = HEAD[0] - 11, HEAD[1] - 11
    outer, inner, apart, towards = 8.5, 7.0, 4.5, math.radians(-35)
    # Two circles that cut each other; the horns are where they meet, seen from either centre at these angles.
    a = math.acos((outer**2 + apart**2 - inner**2) / (2 * outer * apart))
    b = math.pi - math.acos((inner**2 + apart**2 - outer**2) / (2 * inner * apart))
    ix, iy = x + apart * math.cos(towards), y + apart * math.sin(towards)
    points: list[Point] = []
    for step in range(15):
        angle = towards + a + (2 * math.pi - 2 * a) * step / 14
        points.append((x + outer * math.cos(angle), y + outer * math.sin(angle)))
    for step in range(15):
        angle = towards - b - (2 * math.pi - 2 * b) * step / 14
        points.append((ix + inner * math.cos(angle), iy + inner * math.sin(angle)))
    pen.shape(points, GOLD, (140, 90, 20), 0.8)


def _held(pen: Pen, kind: str, draw: random.Random) -> None:
    x, y = 43.6, 51.0
    if kind == "balloon":
        pen.stroke([(x, y), (x + 8, y - 20)], (120, 120, 130), 0.6)
        pen.oval((x + 9, y - 26), 6, 7, CLOTH[draw.choice(["red", "blue", "green", "yellow", "aqua"])])
    elif kind == "book":
        pen.box(x - 4.5, y - 4, x + 5, y + 5, (150, 84, 50))
        pen.box(x - 2.8, y - 2.4, x + 3.4, y + 3.2, (250, 244, 224), None)
    elif kind == "sword":
        pen.shape(
            [(x - 0.4, y - 2), (x + 6.2, y - 27), (x + 9, y - 28.5), (x + 8.8, y - 25.6), (x + 2.2, y - 1.4)],
            (214, 224, 236),
        )
        pen.stroke([(x - 3, y - 4.4), (x + 5, y - 2.2)], GOLD, 1.9)
        pen.stroke([(x + 0.6, y - 2), (x - 0.8, y + 3.2)], (110, 70, 40), 2)
    elif kind == "umbrella":
        pen.stroke([(x, y + 2), (x + 5, y - 25)], (90, 90, 104), 1.0)
        pen.shape(
            [
                (x - 7, y - 21),
                (x - 3, y - 28),
                (x + 5.6, y - 31),
                (x + 13, y - 25),
                (x + 17, y - 16),
                (x + 11, y - 18.4),
                (x + 5, y - 18.6),
                (x - 1, y - 20.4),
            ],
            (116, 200, 230),
        )
