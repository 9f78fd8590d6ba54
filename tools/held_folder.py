"""Draws a folder of pictures as people hold them, for docs/datasets.md: with stray files, a link, a caption of another
suffix and a copy.

python tools/held_folder.py imgs
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw

DRAWN = 29
BY_HAND = "1girl, hat, written by hand\n"


def draw(number: int) -> Image.Image:
    """A house under the sun; each number has colours and places of its own."""
    rng = random.Random(f"house {number}")
    width, height = rng.choice([(192, 256), (256, 192), (224, 224)])
    picture = Image.new("RGB", (width, height), tuple(rng.randrange(120, 256) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    ground, left = round(height * rng.uniform(0.6, 0.8)), rng.randrange(20, width // 2)
    pen.rectangle((0, ground, width, height), fill=tuple(rng.randrange(20, 140) for _ in range(3)))
    side = rng.randrange(50, 90)
    pen.rectangle((left, ground - side, left + side, ground), fill=tuple(rng.choices(range(256), k=3)))
    roof = [
        (left - 8, ground - side),
        (left + side + 8, ground - side),
        (left + side // 2, ground - side - 40),
    ]
    pen.polygon(roof, fill=tuple(rng.choices(range(256), k=3)))
    sun = rng.randrange(12, 30)
    pen.ellipse((width - 3 * sun, sun, width - sun, 3 * sun), fill=(250, 220, rng.randrange(40, 160)))
    return picture


def make(folder: Path) -> None:
    """Make the folder, and ``elsewhere`` beside it, where the link leads. Raises FileExistsError if it is there."""
    elsewhere = folder.parent / "elsewhere"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    for number in range(1, DRAWN + 1):
        draw(number).save(folder / f"{number:02}.png")
    draw(DRAWN + 1).save(elsewhere / "house.png")
    (folder / f"{DRAWN + 1}.png").symlink_to(Path("..", "elsewhere", "house.png"))
    shutil.copy(folder / "07.png", folder / "07 (1).png")
    (folder / "05.caption").write_text(BY_HAND, encoding="utf-8")
    (folder / "notes.txt").write_text("ask Ann for larger ones\n", encoding="utf-8")
    (folder / "sheet.psd").write_bytes(b"8BPS\0\1" + bytes(20))


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "imgs"))
