"""Where a scene plays."""

from __future__ import annotations

import random
from collections.abc import Callable

from lorapipe_demo.painting.colours import Colour
from lorapipe_demo.painting.pen import Pen

Painter = Callable[[Pen, random.Random], None]


def _night_sky(pen: Pen, draw: random.Random) -> None:
    pen.ground((18, 20, 62), (62, 56, 130))
    for _ in range(26):
        pen.oval(
            (draw.uniform(0, 64), draw.uniform(0, 60)), r := draw.uniform(0.35, 0.9), r, (255, 250, 214), None
        )
    x, y = draw.choice([9.0, 55.0]), draw.uniform(7, 12)
    pen.oval((x, y), 5, 5, (255, 246, 200), None)


def _cloud(pen: Pen, x: float, y: float, size: float) -> None:
    for dx, dy, r in ((-4, 0.6, 2.6), (0, -0.8, 3.6), (4, 0.6, 2.6)):
        pen.oval((x + dx * size, y + dy * size), r * size * 1.2, r * size, (255, 255, 255), None)


def _blue_sky(pen: Pen, draw: random.Random) -> None:
    pen.ground((92, 172, 250), (190, 228, 255))
    for x in (8, 32, 56):
        _cloud(pen, x + draw.uniform(-5, 5), draw.uniform(6, 52), draw.uniform(0.8, 1.3))


def _beach(pen: Pen, draw: random.Random) -> None:
    line = draw.uniform(26, 30)
    pen.ground((140, 212, 252), (214, 240, 255), 0, line)
    pen.ground((28, 128, 206), (62, 190, 214), line, line + 13)
    pen.ground((250, 226, 160), (240, 206, 132), line + 13, 64)
    pen.oval((draw.choice([10.0, 54.0]), 8), 4, 4, (255, 246, 170), None)


def _tree(pen: Pen, x: float, base: float, height: float, leaf: Colour) -> None:
    pen.box(x - 1.2, base - height * 0.4, x + 1.2, base, (104, 72, 48), None)
    for step in range(3):
        top = base - height + step * height * 0.24
        half = 4 + step * 1.9
        pen.shape([(x, top), (x + half, top + height * 0.38), (x - half, top + height * 0.38)], leaf, None)


def _forest(pen: Pen, draw: random.Random) -> None:
    pen.ground((150, 206, 170), (196, 230, 180))
    pen.ground((70, 128, 62), (58, 108, 54), 47, 64)
    for x in range(2, 66, 9):
        leaf = draw.choice([(34, 96, 58), (46, 118, 66), (28, 84, 60)])
        _tree(pen, x + draw.uniform(-2, 2), draw.uniform(48, 54), draw.uniform(32, 44), leaf)


def _snow(pen: Pen, draw: random.Random) -> None:
    pen.ground((178, 196, 222), (214, 226, 242))
    pen.ground((250, 252, 255), (232, 240, 250), 46, 64)
    for _ in range(34):
        pen.oval(
            (draw.uniform(0, 64), draw.uniform(0, 64)), r := draw.uniform(0.6, 1.3), r, (255, 255, 255), None
        )


def _sunset(pen: Pen, draw: random.Random) -> None:
    pen.ground((120, 60, 130), (255, 120, 70), 0, 30)
    pen.ground((255, 120, 70), (255, 214, 110), 30, 50)
    pen.oval((draw.uniform(12, 52), 46), 9, 9, (255, 240, 170), None)
    pen.ground((84, 40, 84), (60, 30, 70), 50, 64)


def _city(pen: Pen, draw: random.Random) -> None:
    pen.ground((188, 200, 222), (226, 226, 232))
    x = -2.0
    while x < 64:
        width, top = draw.uniform(8, 13), draw.uniform(8, 26)
        wall = draw.choice([(112, 122, 146), (134, 136, 152), (96, 106, 130)])
        pen.box(x, top, x + width, 60, wall, None)
        for wy in range(int(top) + 3, 54, 5):
            for wx in (0.25, 0.62):
                pen.box(x + width * wx, wy, x + width * wx + 1.9, wy + 2.3, (255, 238, 160), None)
        x += width + 1
    pen.ground((92, 94, 106), (76, 78, 90), 56, 64)


def _classroom(pen: Pen, draw: random.Random) -> None:
    pen.ground((246, 228, 190), (238, 214, 170))
    pen.box(5, 5, 59, 27, (150, 104, 62), None)
    pen.box(7, 7, 57, 25, (42, 104, 78), None)
    for row in (11, 15, 19):
        start = draw.uniform(9, 20)
        pen.stroke([(start, row), (start + draw.uniform(8, 30), row)], (214, 232, 220), 0.7)
    pen.ground((180, 128, 80), (160, 110, 66), 50, 64)
    for x in (0, 45):
        pen.box(x, 46, x + 19, 50, (206, 154, 100), None)


def _plain(colour: Colour) -> Painter:
    def paint(pen: Pen, _draw: random.Random) -> None:
        pen.ground(colour, colour)

    return paint


PAINTERS: dict[str, Painter] = {
    "night sky": _night_sky,
    "blue sky": _blue_sky,
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "sunset": _sunset,
    "city": _city,
    "classroom": _classroom,
    "white background": _plain((255, 255, 255)),
    "pink background": _plain((255, 190, 214)),
}
