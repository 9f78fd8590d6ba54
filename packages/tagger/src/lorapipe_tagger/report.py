"""``--report``: one HTML page that needs nothing else, to see what was tagged and where the model was unsure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright
from lorapipe_tagger.models.labels import RATING
from lorapipe_tagger.scoring.combine import Consensus
from lorapipe_tagger.scoring.pipeline import Result

TEMPLATE = Path(__file__).with_name("report.html")
MARK = "/*DATA*/null"
MARGIN = 0.1  # of a threshold: closer scores are called unsure
_THUMBNAIL = 180


class Report:
    """A page that is being written, a picture at a time, so that memory does not grow with them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0

    def add(self, row: dict[str, Any]) -> None:
        """Put a picture's row onto the page."""
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        # A caption must not end the script.
        for letter, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
            text = text.replace(letter, escape)
        self._file.write(f"{',' if self._count else ''}\n{text}".encode("utf-8", "replace"))
        self._count += 1


@contextmanager
def open_report(path: Path, *, force: bool) -> Iterator[Report]:
    """A page that is there when the block ends well. Raises OutputError."""
    before, after = TEMPLATE.read_text(encoding="utf-8").split(MARK)
    with atomic_write(path, force=force) as file:
        file.write(f"{before}[".encode())
        yield Report(file)
        file.write(f"]{after}".encode())


def report_row(result: Result, consensus: Consensus, caption: str) -> dict[str, Any]:
    """What the page has of a picture. ``tags``: name, score, and a letter for those that passed (p), just did (u),
    just did not (n), or in which the models disagree (d).
    """
    together, passed = consensus.judge(result.scores)
    near = np.abs(together - consensus.limits(result.scores)) < MARGIN
    split = consensus.split(result.scores)
    labels = consensus.labels
    tags = []
    for row in sorted(np.flatnonzero(passed | near | split).tolist(), key=lambda row: -together[row]):
        if labels.categories[row] == RATING or consensus.excluded[row]:
            continue
        letter = "d" if split[row] else ("u" if near[row] else "p") if passed[row] else "n"
        tags.append([labels.names[row], round(float(together[row]), 3), letter])
    path = result.task.path
    return {
        "path": str(path),
        "link": path.absolute().as_uri(),
        "size": result.size,
        "caption": caption,
        "tags": tags,
        "image": thumbnail(path),
    }


def failed_row(result: Result) -> dict[str, Any]:
    """What the page has of a picture that could not be tagged."""
    return {"path": str(result.task.path), "error": result.error, "tags": []}


def thumbnail(path: Path, side: int = _THUMBNAIL) -> str | None:
    """A small JPEG of a picture as a data address; None if it cannot be read."""
    try:
        with open_picture(path) as image:
            image.draft("RGB", (2 * side, 2 * side))
            with GATE.room(image.width * image.height):
                image.thumbnail((side, side))
            small = turn_upright(image)
            buffer = BytesIO()
            small.convert("RGB").save(buffer, "JPEG", quality=70)
    except Exception:  # a page without it is still a page
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
