"""Work of a CUDA device, recorded as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class NotRecorded(Exception):
    """What was to be recorded cannot be; the words say why. The device is as it was before."""


def record(
    work: Callable[[], T], *, pool: Any = None, stream: Any = None, error_mode: str = "thread_local"
) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of all that ``work`` has the device do, and what ``work`` returns: tensors that every replay writes anew.

    Nothing is computed before the first replay. ``pool``: shares its memory with the graphs of this pool. ``stream``:
    recorded on this one. ``error_mode``: "global" refuses what other threads ask of the device meanwhile, too;
    "thread_local" takes it for no part of the graph. Raises NotRecorded.
    """
    graph, draws = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=error_mode):
            made = work()
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        _leave_graph(draws)
        raise NotRecorded(_first_reason(error)) from error
    return graph, made


def _leave_graph(draws: Tensor) -> None:
    """Draw outside of the graph again, from the state ``draws`` of the device's generator.

    torch leaves that generator inside of a graph whose recording failed, and every later draw of the process raises.
    """
    device = torch.cuda.current_device()
    fresh = torch.Generator(torch.device("cuda", device))
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())
    torch.cuda.set_rng_state(draws)


def _first_reason(error: BaseException) -> str:
    """The first line of what went wrong first: a recording that failed also ends with an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
