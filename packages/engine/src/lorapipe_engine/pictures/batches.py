"""Which pictures and captions each step sees: a pure function of the seed and the epoch, so resuming needs no state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorapipe_engine.pictures.buckets import Size

Bucket = tuple[int, Size]  # the number of a dataset, and the size


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket that are trained together: their indices, and for each the number of its turn in the
    epoch (0 .. repeats-1), which its own random draws (caption, mirror) are seeded with."""

    bucket: Bucket
    pictures: tuple[int, ...]
    turns: tuple[int, ...]


def epoch_batches(
    buckets: Sequence[Bucket], repeats: Sequence[int], batch_sizes: Sequence[int], seed: int, epoch: int
) -> list[Batch]:
    """All batches of an epoch in training order. ``buckets`` and ``repeats`` are given for each picture,
    ``batch_sizes`` for each dataset.

    Every picture comes ``repeats`` times; the last batch of a bucket may be short. Each bucket is shuffled, then
    the order of the batches.
    """
    draw = stream(seed, "order", epoch)
    members = _members(buckets, repeats)
    batches: list[Batch] = []
    for bucket in sorted(members):
        draw.shuffle(members[bucket])
        batches += _cut(bucket, members[bucket], batch_sizes)
    draw.shuffle(batches)
    return batches


def in_batches(buckets: Sequence[Bucket], repeats: Sequence[int], batch_sizes: Sequence[int]) -> list[Batch]:
    """All batches of an epoch with nothing shuffled."""
    members = _members(buckets, repeats)
    return [batch for bucket in sorted(members) for batch in _cut(bucket, members[bucket], batch_sizes)]


def _members(buckets: Sequence[Bucket], repeats: Sequence[int]) -> dict[Bucket, list[tuple[int, int]]]:
    found: dict[Bucket, list[tuple[int, int]]] = {}
    for index, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
        found.setdefault(bucket, []).extend((index, turn) for turn in range(count))
    return found


def _cut(bucket: Bucket, entries: Sequence[tuple[int, int]], batch_sizes: Sequence[int]) -> Iterator[Batch]:
    size = batch_sizes[bucket[0]]
    for start in range(0, len(entries), size):
        rows = entries[start : start + size]
        yield Batch(bucket, tuple(i for i, _ in rows), tuple(t for _, t in rows))


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
