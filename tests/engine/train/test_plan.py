"""Order of the pictures, length of the run, files to keep."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from lorapipe_engine.pictures.batches import batches_per_epoch, epoch_batches
from lorapipe_engine.settings import RunSettings
from lorapipe_engine.train.plan import plan_length
from lorapipe_engine.train.results.numbering import stale_epoch, stale_step

SIZES = st.sampled_from([(64, 64), (64, 128), (128, 64)])


@given(
    st.lists(st.tuples(SIZES, st.integers(1, 5)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_an_epoch_holds_every_picture_as_often_as_it_repeats(
    rows: list[tuple[tuple[int, int], int]], batch: int, epoch: int
) -> None:
    # Every other picture is of a second dataset, with batches of one more.
    buckets = [(index % 2, row[0]) for index, row in enumerate(rows)]
    repeats, sizes = [row[1] for row in rows], [batch, batch + 1]
    batches = epoch_batches(buckets, repeats, sizes, 7, epoch)
    seen = Counter((i, t) for b in batches for i, t in zip(b.pictures, b.turns, strict=True))
    assert seen == {(i, t): 1 for i, count in enumerate(repeats) for t in range(count)}
    assert all(buckets[i] == b.bucket for b in batches for i in b.pictures)
    assert all(len(b.pictures) <= sizes[b.bucket[0]] for b in batches)
    assert len(batches) == batches_per_epoch(buckets, repeats, sizes)
    assert batches == epoch_batches(buckets, repeats, sizes, 7, epoch)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [b.pictures[0] for b in epoch_batches([(0, (64, 64))] * 40, [1] * 40, [1], seed, epoch)]

    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_length_in_epochs_goes_before_steps() -> None:
    assert plan_length(10, RunSettings(max_train_epochs=3), 4).steps == 9
    found = plan_length(10, RunSettings(max_train_steps=7), 4)
    assert (found.steps, found.epochs) == (7, 3)


def test_older_files_to_remove() -> None:
    assert [stale_epoch(e, 2, 2) for e in (2, 4, 6, 8)] == [None, None, 2, 4]
    assert stale_step(300, 100, 150) == 100
    assert stale_step(100, 100, None) is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (8, "8 steps in 2 epochs"),
        (4, "4 steps in 1 epoch"),
        (6, "6 steps in 1.5 epochs"),
        (1, "1 step in 0.25 epochs"),
    ],
)
def test_a_length_that_ends_within_an_epoch_says_so(steps: int, words: str) -> None:
    assert plan_length(4, RunSettings(max_train_steps=steps), 1).in_words() == words
