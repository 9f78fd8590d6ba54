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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.command.terminating import Terminated
from lorapipe_engine.errors import ConfigError, ProblemFound
from lorapipe_engine.settings import ModelSettings, RunSettings

# While the first process draws samples or encodes, the others wait for it; a dead one ends all of them at once.
PATIENCE = timedelta(hours=6)
_ENDINGS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 64  # objects that are exchanged at once, which bounds the memory that it takes


@dataclass
class Processes:
    """The processes of a run, as one of them sees them: how many there are, which one this is (from 0), its device
    (None: the one that is chosen without any)."""

    count: int = 1
    index: int = 0
    device: torch.device | None = None
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
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def as_main(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def exchange(self, made: Sequence[Any], total: int) -> list[Any]:
        """All of ``total`` objects in order, of which this process has made those numbered :meth:`own`."""
        if self.count == 1:
            return list(made)
        from accelerate.utils import gather_object

        rows: list[Any] = [None] * total
        longest = -(-total // self.count)
        for start in range(0, longest, TOGETHER):
            part = list(zip(self.own(total), made, strict=True))[start : start + TOGETHER]
            for number, value in gather_object(part):
                rows[number] = value
        return rows

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

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
        """Raise ProblemFound where another process has gone: what went wrong is told by that one."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not re.search("gloo|NCCL|closed by peer", str(error), re.IGNORECASE):
                raise
            raise ProblemFound("another process of this run has ended; what it tells is the cause") from error

    # ------------------------------------------------------------------------------------------- Ctrl-C and SIGTERM

    @contextmanager
    def interrupted_together(self) -> Iterator[None]:
        """Have an interrupt only noted, so that :meth:`stop_if_asked` ends all processes after the same step."""
        if self.count == 1:
            yield
            return

        def note(number: int, _frame: object) -> None:
            self._asked.add(number)

        before = {number: signal.signal(number, note) for number in _ENDINGS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def whole_loss(self, share: float) -> float:
        """The loss of the whole batch, from this process's share of it; whether any was interrupted is told with it."""
        if self.count == 1:
            return share
        asked = [float(number in self._asked) for number in _ENDINGS]
        row = torch.tensor([share, *asked], dtype=torch.float64, device=self.device)
        self.add_up([row])
        loss, *counts = row.tolist()
        self._agreed = {number for number, count in zip(_ENDINGS, counts, strict=True) if count > 0}
        return float(loss)

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt (Terminated for SIGTERM) in every process if one of them was interrupted before the
        last step ended."""
        if signal.SIGTERM in self._agreed:
            raise Terminated
        if self._agreed:
            raise KeyboardInterrupt


ALONE = Processes()


def join_processes(model: ModelSettings, run: RunSettings) -> Processes:
    """The processes that a launcher started with this one; :data:`ALONE` without a launcher.

    Raises ConfigError for options that several processes cannot have, or where they cannot reach each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return ALONE
    name = model.device
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"device: {count} processes cannot all have {name}; leave it out, each takes its own card"
        )
    if run.trace_steps:
        raise ConfigError(
            f"trace_steps: each of {count} processes has but a part of a batch; trace with one process"
        )
    from accelerate import PartialState

    on_cpu = name == "cpu" or not torch.cuda.is_available()
    if not on_cpu and int(os.environ.get("LOCAL_RANK", "0")) >= torch.cuda.device_count():
        raise ConfigError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', count)} processes, but {torch.cuda.device_count()} cards here; "
            "start one process a card"
        )
    try:
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{count} processes cannot be joined: {str(error).splitlines()[0]}") from error
    return Processes(
        state.num_processes, state.process_index, torch.device("cpu") if on_cpu else state.device
    )
