"""The world's colours, as (red, green, blue) in 0..255."""

from __future__ import annotations

Colour = tuple[int, int, int]

HAIR: dict[str, Colour] = {
    "black": (44, 40, 56),
    "brown": (122, 76, 46),
    "blonde": (246, 214, 110),
    "red": (206, 52, 56),
    "pink": (250, 150, 190),
    "blue": (62, 104, 214),
    "green": (72, 168, 88),
    "purple": (146, 84, 196),
    "white": (236, 238, 246),
    "orange": (244, 140, 50),
    "aqua": (96, 224, 222),
}
EYES: dict[str, Colour] = {
    "blue": (40, 100, 230),
    "green": (30, 160, 70),
    "red": (214, 30, 44),
    "brown": (120, 70, 30),
    "purple": (140, 50, 200),
    "yellow": (236, 180, 20),
}
CLOTH: dict[str, Colour] = {
    "red": (212, 48, 58),
    "blue": (54, 98, 206),
    "green": (60, 150, 84),
    "yellow": (246, 206, 70),
    "purple": (136, 76, 186),
    "pink": (248, 156, 192),
    "white": (244, 244, 248),
    "black": (52, 50, 62),
    "aqua": (90, 216, 216),
}
FUR: dict[str, Colour] = {
    "black": (58, 54, 66),
    "white": (242, 240, 238),
    "brown": (146, 98, 62),
    "grey": (150, 152, 162),
    "orange": (240, 154, 72),
}
SKIN: Colour = (255, 226, 206)
BLUSH: Colour = (255, 176, 170)
INK: Colour = (62, 44, 60)
GOLD: Colour = (255, 206, 60)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor below 1) or lighter (above 1, towards white)."""
    if factor <= 1:
        return (round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor))
    mix = min(factor - 1, 1.0)
    r, g, b = (round(value + (255 - value) * mix) for value in colour)
    return (r, g, b)
