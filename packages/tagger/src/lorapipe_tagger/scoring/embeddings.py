"""``--embeddings``: a short vector for each picture, alike where the models see alike.

All scores of a picture (of all models, one after the other) are one long vector. Its projection on ``DIMENSIONS``
random directions keeps angles: the cosine of two pictures moves by (1 - cos^2) / sqrt(DIMENSIONS), 0.003 at 0.97
(Johnson and Lindenstrauss 1984). So near-duplicates can be told from pictures that only look alike in outline, for
nothing beyond the tagging.

The file is numpy's .npz: ``paths`` (N,) text, ``vectors`` (N, DIMENSIONS) float16 of length 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_tagger.scoring.session import Scores

DIMENSIONS = 512
_SEED = 14  # any; it must only be one within a file
Vector = NDArray[np.float16]


class Projection:
    """From the scores of ``length`` tags to a vector."""

    def __init__(self, length: int) -> None:
        self._directions = np.random.default_rng(_SEED).standard_normal(
            (length, DIMENSIONS), dtype=np.float32
        )

    def vector(self, scores: Sequence[Scores]) -> Vector:
        """The vector (DIMENSIONS,) of a picture, of length 1; zero where it has no scores at all."""
        whole = np.concatenate(list(scores))
        rows = np.flatnonzero(whole)  # a few hundred of ten thousand
        direction = whole[rows] @ self._directions[rows]
        return np.asarray(direction / max(float(np.linalg.norm(direction)), 1e-12), dtype=np.float16)


class Embeddings:
    """Vectors that are being gathered for one file."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._vectors: list[Vector] = []

    def add(self, path: Path, vector: Vector) -> None:
        """Take a picture's vector."""
        self._paths.append(str(path))
        self._vectors.append(vector)

    def save(self, file: BinaryIO) -> None:
        """Write what is gathered."""
        rows = np.stack(self._vectors) if self._vectors else np.zeros((0, DIMENSIONS), dtype=np.float16)
        np.savez(file, paths=np.asarray(self._paths, dtype=np.str_), vectors=rows)


@contextmanager
def open_embeddings(path: Path, *, force: bool) -> Iterator[Embeddings]:
    """A file that is there when the block ends well. Raises OutputError."""
    with atomic_write(path, force=force) as file:
        embeddings = Embeddings()
        yield embeddings
        embeddings.save(file)
