"""What the exact spectrum of one module's change is made of; each rule computes its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from lorapipe_engine.networks.factors import Array, Spectrum

Decompose = Callable[[Array], Spectrum]


@dataclass(frozen=True, kw_only=True)
class ModuleSpectrum:
    """The change of a module is ``scale`` times what ``spectrum`` describes, a matrix (o, in·k·k).

    ``rank`` is the rank of the file's own factors (r of a LoHa, not r²; for ``diff`` the smaller side).
    ``limit`` is the largest rank the change can have. ``kernel`` is (k, k) for convolutions, () for linear
    layers.
    """

    algorithm: str
    spectrum: Spectrum
    scale: float
    rank: int
    limit: int
    kernel: tuple[int, ...]

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of ``lora_down.weight`` at that rank."""
        columns = self.spectrum.down.shape[1]
        return (rank, columns // math.prod(self.kernel), *self.kernel)

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of ``lora_up.weight`` at that rank."""
        return (self.spectrum.up.shape[0], rank, *(1 for _ in self.kernel))


def kernel_of(name: str, columns: int) -> tuple[int, ...]:
    """The kernel of a layer whose file holds its factors flattened, guessed from its name.

    The convolutions of the UNets are known by name, but for the 1x1 ones around the attention of SD 1.x,
    which are linear layers elsewhere: () for these and for anything else. Readers take such factors either
    way.
    """
    if _CONV1.search(name):
        return (1, 1)
    return (3, 3) if _CONV3.search(name) and columns % 9 == 0 else ()


_CONV1 = re.compile(r"[._](conv_shortcut|skip_connection)$")
_CONV3 = re.compile(
    r"(^|[._])(conv1|conv2|conv_in|conv_out|conv|conv3x3|in_layers[._]2|out_layers[._]3|0[._]op)$"
    r"|unet[._]input_blocks[._]0[._]0$|unet[._]out[._]2$"
)
