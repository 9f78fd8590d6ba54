"""``--verify``: does this machine give the scores that it should?

The same pictures go through the network as the options have it (device, int8, batches) and through a plain run of it:
on the CPU, in the file's own precision, one picture at a time, no step of the graph optimised. Providers of half
precision have been seen to give nonsense without a word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import click
import numpy as np

from lorapipe_engine.command.tool import show
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.opening import open_picture
from lorapipe_tagger.models.names import ModelFiles, find_model
from lorapipe_tagger.options import Options, rules_for
from lorapipe_tagger.scoring.picture import Picture, PictureError, Pixels, Preparation, read_picture
from lorapipe_tagger.scoring.pipeline import Tagger
from lorapipe_tagger.scoring.select import Selector
from lorapipe_tagger.scoring.session import Network, Scores
from lorapipe_tagger.sources import find_tasks

LARGEST_STEP = 0.02  # of a score, by rounding
LARGEST_INT8_STEP = 0.1
LARGEST_PIXEL_STEP = 2  # of 255
_PICTURES = 8
_MOST = 32
_BATCH = 4


@dataclass(frozen=True)
class Verdict:
    """What came of a model: the largest difference of a score, tags that would differ of all, and of pixels (of
    255) from the plain way of preparing, which only the usual preparation has.
    """

    model: str
    device: str
    pictures: int
    score: float
    tags: int
    tags_differ: int
    pixel: int
    ok: bool

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.model} on {self.device}, {self.pictures} pictures: {'right' if self.ok else 'WRONG'}; against a "
            f"plain run on the CPU scores differ by {self.score:.4f} at most, {self.tags_differ} of {self.tags} tags; "
            f"pixels by {self.pixel} of 255"
        )


def verify(options: Options) -> int:
    """Tell of each model whether it does as it should; 1 if one does not. Raises InputError as tagging would."""
    wrong = False
    for word in options.models:
        files = find_model(
            word, revision=options.revision, model_dir=options.model_dir, offline=options.offline
        )
        verdict = compare(files, options)
        wrong |= not verdict.ok
        if options.jsonl:
            click.echo(json.dumps(asdict(verdict)))
        else:
            show(verdict.line())
    return 1 if wrong else 0


def compare(files: ModelFiles, options: Options) -> Verdict:
    """Run a model both ways."""
    tagger = Tagger(files, options.work)
    preparation = tagger.preparation
    pictures = find_pictures(options, preparation)
    pixels = [picture.pixels[0] for picture, _ in pictures]
    plain = Network(files.network, files.adapter, "cpu", len(tagger.labels), optimised=False)
    wanted = np.concatenate([plain.scores([one]) for one in pixels])
    answered = np.concatenate(
        [tagger.network.scores(pixels[at : at + _BATCH]) for at in range(0, len(pixels), _BATCH)]
    )
    selector = Selector(tagger.labels, rules_for(files, options))
    one, other = _tags(selector, wanted), _tags(selector, answered)
    score = float(np.abs(wanted - answered).max())
    pixel = max((step for _, step in pictures), default=0)
    limit = LARGEST_INT8_STEP if options.work.int8 else LARGEST_STEP
    return Verdict(
        model=files.name,
        device=tagger.network.device + (" in int8" if options.work.int8 else ""),
        pictures=len(pixels),
        score=round(score, 6),
        tags=int(one.sum()),
        tags_differ=int((one != other).sum()),
        pixel=pixel,
        ok=score <= limit and pixel <= LARGEST_PIXEL_STEP,
    )


def _tags(selector: Selector, scores: Scores) -> np.ndarray:
    return np.stack([selector.passed(row) for row in scores])


def find_pictures(options: Options, preparation: Preparation) -> list[tuple[Picture, int]]:
    """The user's first pictures, or some that are made up; and how far the pixels are from those of the plain way."""
    if not options.inputs:
        return [_prepared(source, preparation) for source in make_pictures(_PICTURES)]
    tasks = find_tasks(
        options.inputs,
        None,
        recursive=options.recursive,
        extension=options.extension,
        output_dir=None,
        write=False,
        collision="first",
    )
    pictures = []
    for task in tasks[:_MOST]:
        try:
            pictures.append(_prepared(task.path.read_bytes(), preparation))
        except PictureError as error:
            raise InputError(f"{task.path}: {error}") from error
    return pictures


def _prepared(source: bytes, preparation: Preparation) -> tuple[Picture, int]:
    picture = read_picture(source, [preparation])
    usual = preparation.resampling == "bicubic" and preparation.geometry == "pad"
    step = _pixel_step(source, picture.pixels[0], preparation) if usual else 0
    return picture, step


def _pixel_step(source: bytes, pixels: Pixels, preparation: Preparation) -> int:
    """The largest difference to padding in full and scaling once; 0 where the plain way differs by design."""
    from PIL import Image

    with open_picture(source) as image:
        if image.format != "PNG" or image.mode != "RGB" or max(image.size) > 4096:
            return 0
        side = max(image.size)
        square = Image.new("RGB", (side, side), preparation.padding)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.resize((preparation.size, preparation.size), Image.Resampling.BICUBIC)
    plain = np.frombuffer(small.tobytes("raw", preparation.channels), np.uint8).reshape(pixels.shape)
    return int(np.abs(plain.astype(int) - pixels.astype(int)).max())


def make_pictures(count: int) -> Sequence[bytes]:
    """PNG files of shades, shapes and grain, wide and tall, the same each time."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(7)
    files = []
    for _ in range(count):
        width, height = (int(side) for side in rng.integers(60, 900, 2))
        shade = np.linspace(0, 1, height)[:, None, None] * rng.integers(-90, 90, 3) + rng.integers(90, 200, 3)
        grain = rng.normal(0, 6, (height, width, 3))
        image = Image.fromarray(np.clip(shade + grain, 0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, reach = (int(rng.integers(0, limit)) for limit in (width, height, max(width, height) // 3))
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            pen.ellipse(
                [x - reach, y - reach // 2, x + reach, y + reach // 2], fill=colour, outline=(20, 20, 30)
            )
        buffer = BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files
