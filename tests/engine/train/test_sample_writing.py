"""Pictures written beside the drawing: told in their order, and no exception is lost."""

from __future__ import annotations

import threading

import pytest

from lorapipe_engine.errors import OutputError
from lorapipe_engine.train.sample.writing import MOST_WAITING, Writer


def test_jobs_are_told_in_their_order_by_the_caller() -> None:
    gate, told = threading.Event(), []
    with Writer() as writer:
        writer.add(lambda: gate.wait(30) and None, lambda: told.append((0, threading.current_thread())))
        for number in range(1, 10):
            writer.add(lambda: None, lambda number=number: told.append((number, threading.current_thread())))
        assert told == []
        gate.set()
    assert told == [(number, threading.main_thread()) for number in range(10)]


def test_what_a_job_raises_ends_the_block() -> None:
    told: list[int] = []

    def fails() -> None:
        raise OutputError("the disk is full")

    def write_all() -> None:
        with Writer() as writer:
            writer.add(lambda: None, lambda: told.append(1))
            writer.add(fails, lambda: told.append(2))
            writer.add(lambda: None, lambda: told.append(3))

    with pytest.raises(OutputError, match="the disk is full"):
        write_all()
    assert told == [1]


def test_no_more_pictures_wait_than_memory_has_room_for() -> None:
    waiting, most = 0, 0
    lock = threading.Lock()

    def less() -> None:
        nonlocal waiting
        with lock:
            waiting -= 1

    with Writer() as writer:
        for _ in range(3 * MOST_WAITING):
            with lock:
                waiting += 1
                most = max(most, waiting)
            writer.add(lambda: None, less)
    assert waiting == 0
    assert most <= MOST_WAITING + 1
