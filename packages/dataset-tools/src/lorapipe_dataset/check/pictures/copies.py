"""Finding copies among thousands of pictures: all pairs of hashes at once, then groups by union-find."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorapipe_dataset.check.pictures.dataset import Picture
from lorapipe_dataset.check.pictures.hashing import Hashes
from lorapipe_engine.command.progress import progress
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright

ROWS = 512  # hashes that are compared with all others at once
VERIFIED = 0.97  # cosine of two small pictures without their mean from which they are the same
STRIP = 512  # rows of pixels that are hashed at once
FAR_COLOUR = 40.0  # mean difference in levels of 0..255 from which two pictures are not even variants
Sameness = Literal["exact", "near", "variant"]


@dataclass(frozen=True)
class Group:
    """Pictures that are one: the best one to keep is first. ``distance``: the largest Hamming distance that links."""

    sameness: Sameness
    pictures: tuple[Picture, ...]
    distance: int


class Unions:
    """Sets of numbers that grow together (union-find with path halving)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, one: int) -> int:
        """The number that stands for the set of ``one``."""
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        """Put two sets together."""
        self._parent[self.find(one)] = self.find(other)

    def groups(self) -> list[list[int]]:
        """The sets of two or more, each in order."""
        members: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            members.setdefault(self.find(number), []).append(number)
        return [group for group in members.values() if len(group) > 1]


def near_pairs(hashes: Sequence[Hashes], distance: int) -> list[tuple[int, int, int]]:
    """Pairs i < j of which both hashes differ in ``distance`` bits or fewer, with the larger of the two distances."""
    import numpy as np

    gradient = np.array([one.gradient for one in hashes], dtype=np.uint64)
    frequency = np.array([one.frequency for one in hashes], dtype=np.uint64)
    pairs: list[tuple[int, int, int]] = []
    with progress(len(hashes), "comparing", "picture") as bar:
        for start in range(0, len(hashes), ROWS):
            rows = slice(start, start + ROWS)
            bits = np.maximum(
                _differing(gradient[rows, None] ^ gradient[None, start:]),
                _differing(frequency[rows, None] ^ frequency[None, start:]),
            )
            ones, others = np.nonzero(bits <= distance)
            pairs += [
                (start + i, start + j, int(bits[i, j]))
                for i, j in zip(ones.tolist(), others.tolist(), strict=True)
                if i < j
            ]
            bar.update(min(ROWS, len(hashes) - start))
    return pairs


def _differing(words: Any) -> Any:
    """Bits that are set in 64-bit words, in place (numpy < 2 has no bitwise_count)."""
    import numpy as np

    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + (
        (words >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


def find_groups(pictures: Sequence[Picture], distance: int) -> list[Group]:
    """All groups of copies. A picture is in one group of "exact" or "near" ones at most; "variant" groups are made of
    what is alike in its forms but not in its colours or details.
    """
    known = [(picture, picture.look.hashes) for picture in pictures if picture.look and picture.look.hashes]
    hashes = [one for _, one in known]
    same, alike = Unions(len(known)), Unions(len(known))
    links: dict[tuple[int, int], int] = {}
    for i, j, bits in near_pairs(hashes, distance):
        if same.find(i) == same.find(j):
            continue
        cosine, colour = _compare(hashes[i].patch, hashes[j].patch)
        if colour > FAR_COLOUR:
            continue
        links[i, j] = bits
        alike.join(i, j)
        if cosine >= VERIFIED:
            same.join(i, j)
    groups = [_group([known[i][0] for i in rows], _widest(rows, links)) for rows in same.groups()]
    for rows in alike.groups():
        if len({same.find(row) for row in rows}) > 1:
            one_each = list({same.find(row): row for row in reversed(rows)}.values())
            members = _best_first([known[row][0] for row in one_each])
            groups.append(Group("variant", tuple(members), _widest(rows, links)))
    return sorted(groups, key=lambda group: group.pictures[0].path)


def _widest(rows: Sequence[int], links: dict[tuple[int, int], int]) -> int:
    members = set(rows)
    return max((bits for (i, j), bits in links.items() if i in members and j in members), default=0)


def _compare(one: bytes, other: bytes) -> tuple[float, float]:
    """Cosine of two patches without their means, and their mean difference in levels."""
    import numpy as np

    a, b = (np.frombuffer(patch, dtype=np.uint8).astype(np.float32) for patch in (one, other))
    difference = float(np.abs(a - b).mean())
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    # Pictures of nearly one level have no form to compare.
    cosine = float((a * b).sum()) / length if length > 1e4 else float(difference < 4)
    return cosine, difference


def _group(pictures: Sequence[Picture], distance: int) -> Group:
    members = _best_first(pictures)
    exact = distance == 0 and len({picture.size for picture in members}) == 1
    exact = exact and len({pixel_hash(picture.path) for picture in members}) == 1
    return Group("exact" if exact else "near", tuple(members), distance)


def _best_first(pictures: Sequence[Picture]) -> list[Picture]:
    """Most pixels first, then the richest caption, then the shortest name, as copies get longer ones."""

    def order(picture: Picture) -> tuple[int, int, int, Path]:
        width, height = picture.size or (0, 0)
        return -width * height, -len(picture.tags), len(picture.path.name), picture.path

    return sorted(pictures, key=order)


def pixel_hash(path: Path) -> str:
    """SHA-256 of a picture's size and upright RGBA pixels. The file is known to be readable."""
    with open_picture(path) as opened, GATE.room(opened.width * opened.height):
        picture = turn_upright(opened).convert("RGBA")
        digest = hashlib.sha256(repr(picture.size).encode())
        # In strips, so that a large picture is not in memory once more as bytes.
        for top in range(0, picture.height, STRIP):
            strip = picture.crop((0, top, picture.width, min(top + STRIP, picture.height)))
            digest.update(strip.tobytes())
    return digest.hexdigest()
