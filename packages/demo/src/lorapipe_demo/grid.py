"""Pictures on one page: columns and rows with names."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE = 112
GAP = 6
TEXT = (52, 48, 64)
PAPER = (250, 249, 252)


def draw_grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str], notes: Sequence[str]
) -> Image.Image:
    """One page: ``rows`` of pictures under the names of ``columns``, ``names`` at the left, ``notes`` at the bottom."""
    font = ImageFont.load_default(size=13)
    side = 190
    top = 30
    width = side + len(columns) * (TILE + GAP) + GAP
    height = top + len(rows) * (TILE + GAP) + 22 * len(notes) + 2 * GAP
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for index, name in enumerate(columns):
        pen.text((side + index * (TILE + GAP) + TILE / 2, 16), name, TEXT, font, anchor="mm")
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = top + index * (TILE + GAP)
        pen.multiline_text((10, y + 8), _wrapped(name, font, side - 20), TEXT, font, spacing=3)
        for column, picture in enumerate(row):
            page.paste(
                picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (side + column * (TILE + GAP), y)
            )
    for index, note in enumerate(notes):
        pen.text((10, height - GAP - 22 * (len(notes) - index) + 2), note, TEXT, font)
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:6])
