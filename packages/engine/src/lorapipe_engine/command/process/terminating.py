"""SIGTERM ends a command as Ctrl-C does: docker stop and schedulers send it before they kill.

It is raised in the main thread as an interrupt, so whatever is tidied up and saved on Ctrl-C is so here too. Only the
first counts: what is being saved is not disturbed by those that follow.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. What handles an interrupt handles this."""


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Raise :class:`Terminated` in the block when SIGTERM comes.

    A handler that a caller has set stays, and so does the setting of a thread that is not the main one, which Python
    lets set none.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Pass over Ctrl-C and SIGTERM in the block: what is saved after the first is not disturbed by another."""
    with _handled(lambda _number, _frame: None):
        yield


@contextmanager
def put_off() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block, for steps that belong together."""
    came: list[int] = []
    with _handled(lambda number, _frame: came.append(number)):
        yield
    if came:
        raise Terminated if signal.SIGTERM in came else KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not SIG_IGN, of which Python complains where a signal has come and is not handled yet. What is ignored stays so.
    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def pass_over_sigterm() -> None:
    """Pass over SIGTERM from now on, for a command that keeps what it has and then ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _raise(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated
