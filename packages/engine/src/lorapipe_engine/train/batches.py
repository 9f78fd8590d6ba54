"""Which pictures and captions each step sees: a pure function of the seed and the epoch, so resuming needs no state."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lorapipe_engine.buckets import Size


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket that are trained together: their indices, and for each the number of its turn in the
    epoch (0 .. repeats-1), which its own random draws (caption, mirror) are seeded with."""

    bucket: Size
    pictures: tuple[int, ...]
    turns: tuple[int, ...]


def epoch_batches(
    buckets: Sequence[Size], repeats: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[Batch]:
    """All batches of an epoch in training order. ``buckets`` and ``repeats`` are given for each picture.

    Every picture comes ``repeats`` times; the last batch of a bucket may be short. Each bucket is shuffled, then
    the order of the batches.
    """
    draw = stream(seed, "order", epoch)
    members: dict[Size, list[tuple[int, int]]] = {}
    for index, (bucket, count) in enumerate(zip(buckets, repeats, strict=True)):
        members.setdefault(bucket, []).extend((index, turn) for turn in range(count))
    batches: list[Batch] = []
    for bucket in sorted(members):
        entries = members[bucket]
        draw.shuffle(entries)
        for start in range(0, len(entries), batch_size):
            rows = entries[start : start + batch_size]
            batches.append(Batch(bucket, tuple(i for i, _ in rows), tuple(t for _, t in rows)))
    draw.shuffle(batches)
    return batches


def batches_per_epoch(buckets: Sequence[Size], repeats: Sequence[int], batch_size: int) -> int:
    """How many batches an epoch has."""
    totals: dict[Size, int] = {}
    for bucket, count in zip(buckets, repeats, strict=True):
        totals[bucket] = totals.get(bucket, 0) + count
    return sum(-(-total // batch_size) for total in totals.values())


def stream(*key: object) -> random.Random:
    """A random stream of its own for a key such as (seed, "caption", epoch, picture, turn)."""
    # Strings are hashed by SHA-512 inside Random, the same in every process (unlike hash()).
    return random.Random("/".join(map(str, key)))
