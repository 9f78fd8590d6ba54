"""From the changes of layers to the tensors of a LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import Encoded, decode, encode
from lorapipe_engine.networks.factors import Balance, Factors, rounding_norm
from lorapipe_engine.networks.underflow import Underflow, check_kept, underflow_of
from lorapipe_resize.extract.rules import ABOVE_FLOOR

Array = NDArray[Any]
DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
SHARES = (0.9, 0.99)
LEAST_LOSS = 1e-3  # of a change, below which nothing was left out


class Spectral(Protocol):
    """The leading singular values of a change and its best approximations."""

    @property
    def singular(self) -> Array: ...

    def norm(self) -> float: ...

    def dropped(self, rank: int) -> float: ...

    def truncate(self, rank: int, balance: Balance = "sqrt") -> Factors: ...


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One module. Norms are Frobenius norms.

    ``size``: rows and columns of the change. ``norm`` is ‖change‖, ``base_norm`` that of the base's weight where it is
    known. ``truncation`` and ``cast`` are ‖lost‖ / ‖change‖ by leaving ranks out and by the number type, ``proved``
    the truncation error over the best possible at that rank, at most. ``floor`` is the largest singular value that
    rounding alone gives (None for networks). ``underflow`` counts the factors' values that the type makes zeros of.
    ``needed`` has for 0.9 and 0.99 the rank that keeps that share of
    ‖change‖, None where it is larger than what was computed.
    """

    name: str
    block: str
    size: tuple[int, int]
    kernel: tuple[int, ...]
    rank: int
    norm: float
    base_norm: float | None
    top: float
    next: float
    truncation: float
    cast: float
    proved: float
    floor: float | None
    underflow: Underflow
    needed: Mapping[float, int | None]

    @property
    def lacks_signal(self) -> bool:
        """Whether a direction was left out that is more than rounding."""
        return self.truncation > LEAST_LOSS and self.next > ABOVE_FLOOR * (self.floor or 0.0)

    @property
    def error(self) -> float:
        """‖change - LoRA‖ / ‖change‖."""
        return math.hypot(self.truncation, self.cast)


@dataclass(frozen=True)
class Piece:
    """A module's tensors, keyed by name, and its report."""

    tensors: dict[str, Encoded]
    report: ModuleReport


def make_piece(
    spectral: Spectral,
    rank: int,
    *,
    name: str,
    block: str,
    kernel: tuple[int, ...],
    alpha: float,
    precision: str,
    base_norm: float | None = None,
    floor: float | None = None,
    proved: float = 1.0,
) -> Piece:
    """The module at a rank: ``lora_down`` (r, in, k, k), ``lora_up`` (o, r, 1, 1), one alpha for all modules.

    Readers multiply by alpha / r, which the factors make up for, half each. Raises InputError for values too large for
    the type.
    """
    exact = spectral.truncate(rank)
    share = math.sqrt(rank / alpha)
    exact = Factors(np.asarray(exact.up, np.float64) * share, np.asarray(exact.down, np.float64) * share)
    dtype = DTYPES[precision]
    up, down = encode(exact.up, dtype), encode(exact.down, dtype)
    rounded = Factors(decode(dtype, up.data, up.shape), decode(dtype, down.data, down.shape))
    if not all(np.isfinite(side).all() for side in rounded):
        raise InputError(
            f"module {name}: its values do not fit {precision}; give --save-precision bf16 or float"
        )
    check_kept(name, exact, rounded, precision)
    rows, columns = exact.up.shape[0], exact.down.shape[1]
    tensors = {
        f"{name}.lora_down.weight": Encoded(dtype, (rank, columns // math.prod(kernel), *kernel), down.data),
        f"{name}.lora_up.weight": Encoded(dtype, (rows, rank, *(1 for _ in kernel)), up.data),
        f"{name}.alpha": encode(np.asarray(alpha), "F32"),
    }
    norm = spectral.norm()
    report = ModuleReport(
        name=name,
        block=block,
        size=(rows, columns),
        kernel=kernel,
        rank=rank,
        norm=norm,
        base_norm=base_norm,
        top=float(spectral.singular[0]),
        next=float(spectral.singular[rank]) if rank < spectral.singular.size else 0.0,
        truncation=spectral.dropped(rank) / norm,
        cast=alpha / rank * rounding_norm(exact, rounded) / norm,
        proved=proved,
        floor=floor,
        underflow=underflow_of(exact, rounded),
        needed={share: _needed(spectral, share) for share in SHARES},
    )
    return Piece(tensors, report)


def _needed(spectral: Spectral, share: float) -> int | None:
    shares = np.sqrt(np.cumsum(np.square(spectral.singular))) / spectral.norm()
    count = int(np.searchsorted(shares, share)) + 1
    return count if count <= spectral.singular.size else None
