"""Which pictures and captions each step sees: a pure function of the seed and the epoch, so resuming needs no state."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

from lorapipe_engine.pictures.buckets import Size

Bucket = tuple[int, Size]  # the number of a dataset, and the size


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket that are trained together: their indices, and for each the number of its turn in the
    epoch (0 .. repeats-1), which its own random draws (caption, mirror) are seeded with."""

    bucket: Bucket
    pictures: tuple[int, ...]
    turns: tuple[int, ...]


class Epoch(Sequence[Batch]):
    """The batches of an epoch in order, made when they are asked for. What is kept is a number for each picture's turn
    and one for each batch, so that repeats cost bytes and not objects.
    """

    def __init__(
        self, members: Mapping[Bucket, Members], batch_sizes: Sequence[int], draw: random.Random | None
    ) -> None:
        """Shuffled with ``draw``, first each bucket, then the batches; without it as the pictures are given."""
        self._members = [members[bucket] for bucket in sorted(members)]
        self._sizes = [batch_sizes[bucket[0]] for bucket in sorted(members)]
        self._turns = []
        for one in self._members:
            turns = array("Q", range(one.total))
            if draw is not None:
                draw.shuffle(turns)
            self._turns.append(turns)
        counts = [-(-one.total // size) for one, size in zip(self._members, self._sizes, strict=True)]
        self._starts = [0, *accumulate(counts)]
        self._order = array("Q", range(self._starts[-1]))
        if draw is not None:
            draw.shuffle(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, place: int) -> Batch: ...
    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...
    def __getitem__(self, place: int | slice) -> Batch | list[Batch]:
        if isinstance(place, slice):
            return [self._batch(number) for number in self._order[place]]
        return self._batch(self._order[place])

    def _batch(self, number: int) -> Batch:
        """The batch ``number`` in the order before the shuffle of batches."""
        at = bisect_right(self._starts, number) - 1
        members, size = self._members[at], self._sizes[at]
        start = (number - self._starts[at]) * size
        rows = [members.row(turn) for turn in self._turns[at][start : start + size]]
        return Batch(members.bucket, tuple(i for i, _ in rows), tuple(t for _, t in rows))


class Members:
    """The pictures of a bucket; all their turns are numbered from 0 up to ``total``, picture after picture."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.total = 0
        self._indices: list[int] = []
        self._starts: list[int] = []

    def add(self, index: int, repeats: int) -> None:
        """Take a picture that comes ``repeats`` times."""
        if repeats > 0:
            self._indices.append(index)
            self._starts.append(self.total)
            self.total += repeats

    def row(self, number: int) -> tuple[int, int]:
        """The picture's index, and which of its turns that is."""
        at = bisect_right(self._starts, number) - 1
        return self._indices[at], number - self._starts[at]


def epoch_batches(
    buckets: Sequence[Bucket], repeats: Sequence[int], batch_sizes: Sequence[int], seed: int, epoch: int
) -> Epoch:
    """All batches of an epoch in training order. ``buckets`` and ``repeats`` are given for each picture,
    ``batch_sizes`` for each dataset.

    Every picture comes ``repeats`` times; the last batch of a bucket may be short. Each bucket is shuffled, then
    the order of the batches.
    """
    return Epoch(_members(buckets, repeats), batch_sizes, stream(seed, "order", epoch))


def in_batches(buckets: Sequence[Bucket], repeats: Sequence[int], batch_sizes: Sequence[int]) -> Epoch:
    """All batches of an epoch with nothing shuffled."""
    return Epoch(_members(buckets, repeats), batch_sizes, None)


def _members(buckets: Sequence[Bucket], repeats: Sequence[int]) -> dict[Bucket, Members]:
    members: dict[Bucket, Members] = {}
    for index, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
        if bucket not in members:
            members[bucket] = Members(bucket)
        members[bucket].add(index, count)
    return members


def batches_per_epoch(buckets: Sequence[Bucket], repeats: Sequence[int], batch_sizes: Sequence[int]) -> int:
    """How many batches an epoch has."""
    totals: dict[Bucket, int] = {}
    for bucket, count in zip(buckets, repeats, strict=True):
        totals[bucket] = totals.get(bucket, 0) + count
    return sum(-(-total // batch_sizes[bucket[0]]) for bucket, total in totals.items())


def stream(*key: object) -> random.Random:
    """A random stream of its own for a key such as (seed, "caption", epoch, picture, turn)."""
    # Strings are hashed by SHA-512 inside Random, the same in every process (unlike hash()).
    return random.Random("/".join(map(str, key)))
