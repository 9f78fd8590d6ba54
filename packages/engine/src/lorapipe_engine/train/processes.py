"""Several processes that train one network, each on a card of its own: started by torchrun or ``accelerate launch``,
joined by accelerate.

Every process takes its rows of each batch; gradients are added up before the update, which all of them do alike. So W
processes with batches of B pictures are one process with batches of W x B, up to the order of additions: what is
drawn for a batch is drawn for the whole of it everywhere, and each process takes its rows.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.command.process.launched import launched
from lorapipe_engine.command.process.terminating import Terminated
from lorapipe_engine.errors import ConfigError, ProblemFound
from lorapipe_engine.settings import ModelSettings, RunSettings
from lorapipe_engine.train.meeting import Met, meet

# While the first process draws samples or encodes, the others wait for it; a dead one ends all of them at once.
PATIENCE = timedelta(hours=6)
_ENDINGS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 64  # objects that are exchanged at once, which bounds the memory that it takes
LOOK_EVERY = 5e-5  # seconds between looks whether an exchange is done
# Seconds that an exchange may go on after SIGTERM. A launcher sends it when a process has ended, and kills after 30 s;
# a scheduler sends it to all processes, and then the exchange ends as soon as the slowest comes to it.
GRACE = 8.0
GONE = "another process of this run has ended; it or the launcher tells why"


class ProcessLost(ProblemFound):
    """Another process of the run has ended; network and optimizer are as the last whole step left them."""


@dataclass
class Processes:
    """The processes of a run, as one of them sees them: how many there are, which one this is (from 0), its device
    (None: the one that is chosen without any)."""

    count: int = 1
    index: int = 0
    device: torch.device | None = None
    # For objects and waiting. On the CPU, where a process that has ended is noticed at once: None is all processes.
    group: Any = field(default=None, repr=False)
    _asked: set[int] = field(default_factory=set, repr=False)  # the signals that came
    _agreed: set[int] = field(default_factory=set, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.index == 0

    def rows(self, total: int) -> range:
        """The rows of a batch of ``total`` that are this process's; none, where there are fewer than processes."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    def own(self, total: int) -> range:
        """The numbers below ``total`` that are this process's, of work that is shared out."""
        return range(self.index, total, self.count)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes. Raises ProcessLost where one has ended."""
        if self.count > 1:
            self._finish([torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors])

    def add_up_step(self, gradients: Iterable[Tensor], share: Tensor) -> Tensor:
        """Replace the gradients by their sums over all processes; the losses of the whole batch, in float64, from
        this process's ``share``, of one shape in all. Whether any was interrupted is told with it.

        Raises ProcessLost where one has ended. Nothing that follows is begun before all is there, so that then network
        and optimizer are what they were.
        """
        if self.count == 1:
            return share
        works = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
        asked = [float(number in self._asked) for number in _ENDINGS]
        row = torch.cat(
            [share.double().reshape(-1), torch.tensor(asked, dtype=torch.float64, device=share.device)]
        )
        self._finish([*works, torch.distributed.all_reduce(row, async_op=True)])
        counts = row.tolist()[share.numel() :]
        self._agreed = {number for number, count in zip(_ENDINGS, counts, strict=True) if count > 0}
        return row[: share.numel()].reshape(share.shape)

    def _finish(self, works: Sequence[Any]) -> None:
        """Wait for exchanges without being deaf to signals. Raises ProcessLost, with nothing left to wait for on the
        stream that trains, so that what is there can be saved."""
        try:
            if self.device is not None and self.device.type == "cuda":
                # The exchange runs on a stream of the library's own, which does not end without the others.
                side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
                with torch.cuda.stream(side):
                    for work in works:
                        work.wait()
                    event = side.record_event()
                done: Callable[[], bool] = event.query
            else:
                done = partial(_all_completed, works)
            asked_at = None
            while not done():
                if asked_at is None and self._asked:
                    asked_at = time.monotonic()
                if asked_at is not None and time.monotonic() - asked_at > GRACE:
                    raise ProcessLost(GONE)
                time.sleep(LOOK_EVERY)
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise ProcessLost(_what_happened(str(error))) from error

    def as_main(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.count > 1:
            self._finish([torch.distributed.broadcast(tensor, 0, async_op=True) for tensor in tensors])

    def exchange(self, made: Sequence[Any], total: int) -> list[Any]:
        """All of ``total`` objects in order, of which this process has made those numbered :meth:`own`."""
        if self.count == 1:
            return list(made)
        rows: list[Any] = [None] * total
        longest = -(-total // self.count)
        for start in range(0, longest, TOGETHER):
            part = list(zip(self.own(total), made, strict=True))[start : start + TOGETHER]
            parts: list[Any] = [None] * self.count
            torch.distributed.all_gather_object(parts, part, group=self.group)
            for number, value in chain.from_iterable(parts):
                rows[number] = value
        return rows

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier(group=self.group)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Part from the others after the block. Interrupted, none ends before the first has kept what was learned."""
        try:
            yield
        except KeyboardInterrupt:
            self.wait()
            raise
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    @contextmanager
    def losses_told(self) -> Iterator[None]:
        """Raise ProcessLost where another process has gone, which tells what went wrong, or an exchange has failed."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not re.search("gloo|NCCL|closed by peer", str(error), re.IGNORECASE):
                raise
            raise ProcessLost(_what_happened(str(error))) from error

    # ------------------------------------------------------------------------------------------- Ctrl-C and SIGTERM

    @contextmanager
    def interrupted_together(self) -> Iterator[None]:
        """Have an interrupt only noted, so that :meth:`stop_if_asked` ends all processes after the same step; a single
        one of a launcher's too, for a launcher that is interrupted twice sends two signals at once."""
        if launched() == 1:
            yield
            return

        def note(number: int, _frame: object) -> None:
            self._asked.add(number)

        before = {number: signal.signal(number, note) for number in _ENDINGS}
        try:
            yield
        except ProcessLost:
            # The launcher ends the others now, while they keep what was learned.
            before[signal.SIGTERM] = signal.SIG_IGN
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.count == 1:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt (Terminated for SIGTERM) in every process if one of them was interrupted before the
        last step ended."""
        came = self._agreed if self.count > 1 else self._asked
        if signal.SIGTERM in came:
            raise Terminated
        if came:
            raise KeyboardInterrupt


ALONE = Processes()


def own_device(name: str | None, count: int) -> torch.device:
    """The card of this one of ``count`` processes, the current one from here on; the CPU where that is asked for or
    there is no card.

    Raises ConfigError where ``name`` is one card for all, or cards are fewer.
    """
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"device: {count} processes cannot all have {name}; leave it out, each takes its own card"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= cards:
        raise ConfigError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', count)} processes, but {cards} cards here; "
            "start one process a card"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def join_sharing() -> Processes:
    """The processes that a launcher started with this one, which share work out and wait for each other, on the CPU.

    Raises ConfigError where they cannot reach each other.
    """
    if launched() < 2:
        return ALONE
    met = meet()
    with _joined(met):
        torch.distributed.init_process_group("gloo", **met.words(PATIENCE))
    return Processes(met.count, met.index, torch.device("cpu"))


def join_processes(model: ModelSettings, run: RunSettings) -> Processes:
    """The processes that a launcher started with this one; :data:`ALONE` without a launcher.

    Raises ConfigError for options that several processes cannot have, or where they cannot reach each other.
    """
    count = launched()
    if count < 2:
        return ALONE
    if run.trace_steps:
        raise ConfigError(
            f"trace_steps: each of {count} processes has but a part of a batch; trace with one process"
        )
    from accelerate import PartialState

    on_cpu = own_device(model.device, count).type == "cpu"
    # What the library does about a lost process is to end this one; it is to save what was learned first.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    met = meet()
    with _joined(met):
        state = PartialState(cpu=on_cpu, **met.words(PATIENCE))
        group = None if on_cpu else torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        device = torch.device("cpu") if on_cpu else state.device
        processes = Processes(state.num_processes, state.process_index, device, group)
        # The first exchange connects the cards. What keeps them apart is told now, with its reason; later it would be
        # taken for a process that has ended.
        processes.add_up([torch.zeros(1, device=device)])
    return processes


@contextmanager
def _joined(met: Met) -> Iterator[None]:
    """Raise ConfigError where the processes that have met cannot work together."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{met.count} processes cannot be joined: {reason_of(str(error))}") from error


def _what_happened(text: str) -> str:
    """What a library's error in an exchange comes from: NCCL has errors of its own, as where memory is full."""
    if "NCCL" in text and "remote process" not in text:
        return f"the exchange between the cards has failed: {reason_of(text)}"
    return GONE


def reason_of(text: str) -> str:
    """The line of a library's error that says why: of NCCL's the one behind its general ones."""
    _, _, last = text.partition("Last error:\n")
    return next(
        line for line in (*last.splitlines(), *text.splitlines(), "no reason is told") if line.strip()
    )


def _all_completed(works: Sequence[Any]) -> bool:
    return all(work.is_completed() for work in works)
