"""Pictures as vectors, by ONNX files that the user has: DINO, CLIP, CCIP, and a WD tagger in full.

What goes in is each model's own recipe: DINO, CLIP and others the middle square of the picture, CCIP the whole of
it squeezed to a square, the tagger the whole of it on a white square with channels in the order BGR and levels 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_engine.models.onnxfile import check_network
from lorapipe_engine.pictures.layout import find_images
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright
from lorapipe_inspect.grid.cells import Cell

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BATCH = 8
MOST_SIDE = 2048
CCIP_FEATURES, CCIP_METRIC = "model_feat.onnx", "model_metrics.onnx"
# Of a CLIP with both halves, as exports to ONNX name them.
TEXT = ("input_ids", "attention_mask")
BOTH_HALVES = frozenset({"image_embeds", "text_embeds"})
TAGGER, TAGS = "model.onnx", "selected_tags.csv"


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes a model's input. ``levels``: mean and deviation of channels, None for 0..255 in BGR."""

    side: int
    prepare: Callable[[Image, int], Image]
    levels: tuple[tuple[float, ...], tuple[float, ...]] | None


def _middle(picture: Image, side: int) -> Image:
    from PIL import Image

    scale = side / min(picture.size)
    width, height = max(side, round(picture.width * scale)), max(side, round(picture.height * scale))
    left, top = (width - side) // 2, (height - side) // 2
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop(
        (left, top, left + side, top + side)
    )


def _squeezed(picture: Image, side: int) -> Image:
    from PIL import Image

    return picture.resize((side, side), Image.Resampling.BILINEAR)


def _on_white(picture: Image, side: int) -> Image:
    from PIL import Image

    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


DINO = Recipe(224, _middle, _IMAGENET)
CLIP = Recipe(224, _middle, _OPENAI)
CCIP = Recipe(384, _squeezed, _OPENAI)
PLAIN = Recipe(224, _middle, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
WD = Recipe(448, _on_white, None)
RECIPES: Mapping[str, Recipe] = {"dino": DINO, "clip": CLIP, "encoder": PLAIN}


class Encoder:
    """An ONNX network with one input of pictures, and of words where it is a CLIP with both halves. Raises InputError
    for a file that is none, MissingExtra without onnxruntime.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self._recipe = recipe
        self._session = open_network(path)
        inputs = self._session.get_inputs()
        outputs = {one.name for one in self._session.get_outputs()}
        self._text = [one.name for one in inputs if one.name in TEXT] if outputs >= BOTH_HALVES else []
        inputs = [one for one in inputs if one.name not in self._text]
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        self._last = len(shape) == 4 and shape[3] == 3
        if len(shape) != 4 or not (self._last or shape[1] in (3, "channels", "num_channels")):
            raise InputError(
                f"{path}: one input of pictures (N, 3, H, W) is needed; it has {len(inputs)} of {shape}"
            )
        known = [
            side for side in (shape[1:3] if self._last else shape[2:4]) if isinstance(side, int) and side > 0
        ]
        if len(set(known)) > 1 or max(known, default=1) > MOST_SIDE:
            raise InputError(f"{path}: wants pictures of {known}; squares up to {MOST_SIDE} are known here")
        self._side = known[0] if known else recipe.side
        self._name = inputs[0].name
        self._batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None

    def vectors(self, pictures: Sequence[Image]) -> Floats:
        """One row for each picture: (N, D). Of a network with a row for each patch, the first one (the class token)."""
        step = self._batch or max(1, len(pictures))
        rows = [self._run(pictures[at : at + step], step) for at in range(0, len(pictures), step)]
        return np.concatenate(rows)

    def _run(self, pictures: Sequence[Image], step: int) -> Floats:
        batch = np.zeros((step, self._side, self._side, 3), dtype=np.float32)
        for row, picture in enumerate(pictures):
            batch[row] = np.asarray(self._recipe.prepare(picture, self._side), dtype=np.float32)
        if self._recipe.levels is None:
            batch = batch[..., ::-1]
        else:
            mean, deviation = (np.array(one, dtype=np.float32) for one in self._recipe.levels)
            batch = np.asarray((batch / 255 - mean) / deviation, dtype=np.float32)
        if not self._last:
            batch = batch.transpose(0, 3, 1, 2)
        names = [one.name for one in self._session.get_outputs()]
        output = next((name for name in ("image_embeds", "pooler_output") if name in names), names[0])
        if self._recipe is DINO and "last_hidden_state" in names:
            output = "last_hidden_state"
        feed = {self._name: np.ascontiguousarray(batch), **self._text_feed([0])}
        answers = run_network(self.path, self._session, [output], feed)
        rows = np.asarray(answers, dtype=np.float32)[: len(pictures)]
        if rows.ndim == 3:
            rows = rows[:, 0]
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise InputError(
                f"{self.path}: gives {rows.shape} with {output}; a finite row for each picture is needed"
            )
        return rows

    @property
    def reads_words(self) -> bool:
        """Whether it has a half for texts."""
        return bool(self._text)

    def words(self, ids: Sequence[int]) -> Floats:
        """The vector (D,) of a text, given its tokens. Raises InputError."""
        side = self._side
        empty = np.zeros((1, side, side, 3) if self._last else (1, 3, side, side), dtype=np.float32)
        feed = {self._name: empty, **self._text_feed(ids)}
        row = np.asarray(run_network(self.path, self._session, ["text_embeds"], feed), dtype=np.float32)
        if row.ndim != 2 or len(row) != 1 or not np.isfinite(row).all():
            raise InputError(f"{self.path}: gives {row.shape} for a text; a finite row is needed")
        vector: Floats = row[0]
        return vector

    def _text_feed(self, ids: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        row = np.array([ids], dtype=np.int64)
        return {name: row if name == "input_ids" else np.ones_like(row) for name in self._text}


def open_network(path: Path) -> Any:
    """An onnxruntime session on the CPU. Raises InputError, MissingExtra."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra(
            f"{path}: figures by a model need onnxruntime, which is not installed: pip install onnxruntime"
        ) from error
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    check_network(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes, one for each of its status codes
        raise InputError(f"{path}: cannot be loaded: {str(error).splitlines()[0][:200]}") from error


def run_network(path: Path, session: Any, outputs: list[str], feed: dict[str, Any]) -> Any:
    """The first output of a network. Raises InputError where it fails."""
    try:
        return session.run(outputs, feed)[0]
    except Exception as error:
        raise InputError(f"{path}: the network fails: {str(error).splitlines()[0][:200]}") from error


# -------------------------------------------------------------------------------- pictures


def encode_files(encoder: Encoder, paths: Sequence[Path]) -> Floats:
    """Vectors of pictures on disk, (N, D). Raises InputError for one that cannot be read."""
    rows: list[Floats] = []
    with progress(len(paths), "looking", "picture") as bar:
        for at in range(0, len(paths), BATCH):
            rows.append(encoder.vectors([_load(path) for path in paths[at : at + BATCH]]))
            bar.update(len(rows[-1]))
    return np.concatenate(rows)


def _load(path: Path) -> Image:
    try:
        with open_picture(path) as picture, GATE.room(picture.width * picture.height):
            return turn_upright(picture).convert("RGB")
    except Exception as error:  # Pillow raises whatever its readers meet
        raise InputError(f"{path}: no picture that can be read; mend it or take it out") from error


def folder_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder and its folders. Raises InputError where there are none."""
    paths = find_images(folder, recursive=True)
    if not paths:
        raise InputError(f"{folder}: has no pictures in it")
    return paths


def cell_vectors(encoder: Encoder, cells: Sequence[Cell]) -> list[Floats | None]:
    """A vector for each cell, None for those without a picture."""
    sound = [index for index, cell in enumerate(cells) if not cell.error]
    rows = encode_files(encoder, [cells[index].path for index in sound])
    vectors: list[Floats | None] = [None] * len(cells)
    for index, row in zip(sound, rows, strict=True):
        vectors[index] = row
    return vectors


# -------------------------------------------------------------------------------- likeness


def unit(rows: Floats) -> Floats:
    """Rows brought to length 1."""
    return np.asarray(
        rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12), dtype=np.float32
    )


def mean_cosine(rows: Iterable[Floats | None], others: Floats) -> list[float | None]:
    """For each vector its mean cosine to the others, -1..1."""
    centre = unit(others).mean(axis=0)
    return [None if row is None else float(unit(row) @ centre) for row in rows]


def nearest_cosine(rows: Iterable[Floats | None], others: Floats) -> list[float | None]:
    """For each vector its highest cosine to any of the others, -1..1."""
    known = unit(others)
    return [None if row is None else float((known @ unit(row)).max()) for row in rows]


def own_cosine(rows: Floats) -> float | None:
    """The mean cosine of vectors to each other, -1..1; None for fewer than two."""
    count = len(rows)
    if count < 2:
        return None
    whole = unit(rows).astype(np.float64).sum(axis=0)
    return float((whole @ whole - count) / (count * (count - 1)))


def vendi(rows: Floats) -> float:
    """Vendi score of vectors (n, D): exp of the entropy of the eigenvalues of their cosines over n; 1..n."""
    cosines = unit(rows) @ unit(rows).T / len(rows)
    values = np.linalg.eigvalsh(cosines.astype(np.float64)).clip(min=0)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def ccip_differences(metric: Path, rows: Sequence[Floats | None], others: Floats) -> list[float | None]:
    """For each vector its mean difference to the others by CCIP's metric, 0 (one character) to about 1."""
    session = open_network(metric)
    name = session.get_inputs()[0].name
    outputs = [session.get_outputs()[0].name]
    differences: list[float | None] = []
    for row in rows:
        if row is None:
            differences.append(None)
            continue
        table = np.asarray(run_network(metric, session, outputs, {name: np.vstack([row[None], others])}))
        if table.shape != (len(others) + 1,) * 2:
            raise InputError(f"{metric}: gives {table.shape}; differences of all pairs are needed")
        differences.append(float(table[0, 1:].mean()))
    return differences
