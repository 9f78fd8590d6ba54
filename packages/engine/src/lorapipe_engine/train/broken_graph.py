"""What is to be done when a CUDA graph could not be recorded."""

from __future__ import annotations

import torch
from torch import Tensor


def leave_graph(draws: Tensor) -> None:
    """Draw outside of the graph again, from the state ``draws`` of the device's generator.

    torch leaves that generator inside of a graph whose recording failed, and every later draw of the process raises.
    """
    device = torch.cuda.current_device()
    fresh = torch.Generator(torch.device("cuda", device))
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())
    torch.cuda.set_rng_state(draws)


def first_reason(error: BaseException) -> str:
    """The first line of what went wrong first: a recording that failed also ends with an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
