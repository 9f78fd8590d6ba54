"""What a network's modules do to their layers, in figures, through their factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta.spectra import module_spectrum, spectral_rule
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.models.blocks import block_of_name
from lorapipe_engine.models.families import get_family
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.read import read_module

Array = NDArray[Any]
BIASES = frozenset({"diff_b", "b_norm", "lora_up.bias"})
SHARES: Mapping[str, float] = MappingProxyType({"0.9": 0.9, "0.95": 0.95, "0.99": 0.99})


@dataclass(frozen=True)
class Figures:
    """The change of one module, alpha / rank in it. ``fro``: its Frobenius norm; ``spectral``: its largest singular
    value; ``stable_rank``: ‖·‖F² / σ₁²; ``effective_rank``: exp of the entropy of σ/Σσ; ``rank_for``: how many
    singular values have that share of the Frobenius norm; ``dead_ranks``: ranks of the file that do nothing.
    """

    name: str
    part: str
    algorithm: str
    rank: int
    alpha: float | None
    scale: float
    fro: float
    spectral: float
    stable_rank: float
    effective_rank: float
    rank_for: Mapping[str, int]
    numerical_rank: int
    dead_ranks: int

    @property
    def delta_is_zero(self) -> bool:
        return self.fro == 0.0

    def as_record(self) -> dict[str, Any]:
        return {**asdict(self), "delta_is_zero": self.delta_is_zero}


@dataclass(frozen=True)
class Measured:
    """Figures of every module that has a spectrum of its own; names of the others (norms, and what depends on the
    base), and of those with NaN or infinite values.
    """

    figures: list[Figures]
    others: list[str]
    nonfinite: list[str]

    def as_record(self, network: Network) -> dict[str, Any]:
        """``modules`` by name, and the names of what has no figures: ``others`` and ``nonfinite``."""
        return {"modules": self._modules(network), "others": self.others, "nonfinite": self.nonfinite}

    def _modules(self, network: Network) -> dict[str, dict[str, Any]]:
        """By module's name; of those that are not finite only what their shapes tell."""
        rows = {row.name: row.as_record() for row in self.figures}
        for name in self.nonfinite:
            module = network.modules[name]
            alpha, rank = module.effective_alpha, module.rank
            scale = alpha / rank if alpha is not None and rank else None
            rows[name] = {"rank": rank, "alpha": module.alpha, "scale": scale, "nonfinite": True}
        return rows


def network_figures(file: WeightFile, network: Network) -> Measured:
    """Measure the modules of an open network."""
    able: list[NetworkModule] = []
    others: list[NetworkModule] = []
    for module in network.modules.values():
        tensors = {suffix: file.tensors[key].shape for suffix, key in module.keys.items()}
        known = (
            module.algorithm not in ("unknown", "norm") and spectral_rule(module.name, tensors) is not None
        )
        (able if known else others).append(module)
    outcomes = map_in_threads(lambda module: _figures(file, module), able, "norms")
    return Measured(
        figures=[row for row in outcomes if isinstance(row, Figures)],
        others=[module.name for module in others],
        nonfinite=[row for row in outcomes if isinstance(row, str)],
    )


def _figures(file: WeightFile, module: NetworkModule) -> Figures | str:
    tensors = read_module(file, module)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        return module.name
    decomposed = module_spectrum(module.name, tensors, vectors=1)
    sigma = decomposed.spectrum.singular * abs(decomposed.scale)
    return Figures(
        name=module.name,
        part=module.part,
        algorithm=module.algorithm,
        rank=decomposed.rank,
        alpha=module.alpha,
        scale=decomposed.scale,
        **spectrum_figures(sigma),
        dead_ranks=_dead_ranks(tensors),
    )


def spectrum_figures(sigma: Array) -> dict[str, Any]:
    """The figures that follow from singular values (t,), descending."""
    energy = np.cumsum(np.square(sigma))
    total = float(energy[-1]) if energy.size else 0.0
    if total == 0.0:
        zero = {"fro": 0.0, "spectral": 0.0, "stable_rank": 0.0, "effective_rank": 0.0, "numerical_rank": 0}
        return {**zero, "rank_for": dict.fromkeys(SHARES, 0)}
    share = sigma[sigma > 0] / np.sum(sigma)
    return {
        "fro": math.sqrt(total),
        "spectral": float(sigma[0]),
        "stable_rank": total / float(sigma[0]) ** 2,
        "effective_rank": float(np.exp(-np.sum(share * np.log(share)))),
        "rank_for": {
            name: int(np.searchsorted(energy, part**2 * total)) + 1 for name, part in SHARES.items()
        },
        "numerical_rank": int(np.count_nonzero(sigma > sigma[0] * 1e-6)),
    }


def _dead_ranks(tensors: Mapping[str, Array]) -> int:
    """Ranks of a LoRA of which one side is all zero, though not the whole side."""
    up, down = tensors.get("lora_up.weight"), tensors.get("lora_down.weight")
    if (
        up is None
        or down is None
        or "lora_mid.weight" in tensors
        or up.ndim < 2
        or up.shape[1] != down.shape[0]
    ):
        return 0
    dead = ~up.reshape(up.shape[0], up.shape[1]).any(axis=0) | ~down.reshape(down.shape[0], -1).any(axis=1)
    return int(np.count_nonzero(dead))


# -------------------------------------------------------------------------------- blocks


def blocks_of(network: Network) -> dict[str, str]:
    """The block of every module: "TE1", "TE2", "IN04", "MID", "OUT11"; "other" for the rest."""
    plain = get_family(network.family).plain_up_blocks if network.family else frozenset()
    modules = network.modules.values()
    return {m.name: block_of_name(m.name, m.part, plain) or "other" for m in modules}


def order_of(block: str) -> tuple[int, str]:
    """A key that sorts blocks in the model's order."""
    return next(
        (i for i, start in enumerate(("TE1", "TE2", "IN", "MID", "OUT")) if block.startswith(start)), 9
    ), block


def summed(rows: Sequence[Figures]) -> dict[str, Any]:
    """Figures of several modules together: the norm of all their changes, the rest as means over live modules."""
    live = [row for row in rows if row.fro]
    count = max(1, len(live))
    return {
        "modules": len(rows),
        "zero": len(rows) - len(live),
        "fro": math.sqrt(sum(row.fro**2 for row in rows)),
        "spectral": max((row.spectral for row in rows), default=0.0),
        "stable_rank": sum(row.stable_rank for row in live) / count,
        "effective_rank": sum(row.effective_rank for row in live) / count,
        "rank_for": {name: sum(row.rank_for[name] for row in live) / count for name in SHARES},
    }


def by_block(figures: Sequence[Figures], network: Network) -> Iterator[tuple[str, dict[str, Any]]]:
    """(block, figures of its modules together), in the model's order."""
    blocks = blocks_of(network)
    for block in sorted({blocks[row.name] for row in figures}, key=order_of):
        yield block, summed([row for row in figures if blocks[row.name] == block])


def beside(network: Network) -> dict[str, int]:
    """How many modules do more than the product of their factors: DoRA's magnitudes, which act on the base's weights,
    and changes of biases. No figure has these in it.
    """
    modules = network.modules.values()
    return {
        "magnitudes": sum(module.dora for module in modules),
        "biases": sum(not BIASES.isdisjoint(module.keys) for module in modules),
    }


def check_some(measured: Measured, name: str) -> None:
    """Raise InputError where there is nothing to tell."""
    if measured.figures:
        return
    if measured.nonfinite:
        first = quote(measured.nonfinite[0])[1:-1]
        raise InputError(
            f"{name}: all modules that could be measured have NaN or infinite values, as {first}"
        )
    raise InputError(f"{name}: none of its modules has a change of its own, without the base")
