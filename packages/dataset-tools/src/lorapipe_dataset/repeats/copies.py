"""Pictures that are the same file twice: each comes with all its repeats, which nobody means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lorapipe_dataset.repeats.sources import Concept
from lorapipe_engine.pictures.layout import few_of

_BLOCK = 1 << 20


def copies_noted(concepts: Iterable[Concept]) -> list[str]:
    """A line that names the copies among all pictures, none where there are none."""
    pairs = list(find_copies(picture.path for concept in concepts for picture in concept.pictures))
    if not pairs:
        return []
    names = few_of([f"{copy} of {first}" for copy, first in pairs])
    count = "1 picture is a copy" if len(pairs) == 1 else f"{len(pairs)} pictures are copies"
    return [f"{count} of another, byte for byte ({names}): lora-check --fix duplicate takes copies away"]


def find_copies(paths: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Each picture that has the bytes of another, and that one: of those alike the one of the shortest name, as copies
    get longer ones. Only files of one size are read.
    """
    by_size: dict[int, list[Path]] = {}
    for path in paths:
        try:
            by_size.setdefault(path.stat().st_size, []).append(path)
        except OSError:
            continue  # it is told where it is taken
    for group in by_size.values():
        alike: dict[bytes, list[Path]] = {}
        for path in group if len(group) > 1 else ():
            try:
                alike.setdefault(_sum_of(path), []).append(path)
            except OSError:
                continue
        for same in alike.values():
            first = min(same, key=lambda path: (len(path.name), path))
            yield from ((path, first) for path in same if path is not first)


def _sum_of(path: Path) -> bytes:
    sum_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sum_.update(block)
    return sum_.digest()
