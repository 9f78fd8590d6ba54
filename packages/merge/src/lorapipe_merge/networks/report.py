"""What adding networks did, per layer and in total, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorapipe_engine.command.text import counted
from lorapipe_engine.networks.ranks import error_of_all
from lorapipe_engine.networks.underflow import Loss, Underflow


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer. ``networks``: how many change it. ``stacked``: the ranks of all of them together; ``rank``: what the
    result has, None where nothing is a matrix. ``truncation`` and ``cast``: ‖lost‖ / ‖change‖ by dropping ranks and
    by the number type. ``norm``: the Frobenius norm of the change that is a product of factors. ``arrays``: norm and
    cast of each change that is not, of a weight or of a bias. ``underflow``: the values that the type makes zeros of.
    """

    name: str
    networks: int
    rank: int | None = None
    stacked: int = 0
    kernel: tuple[int, ...] = ()
    norm: float = 0.0
    truncation: float = 0.0
    cast: float = 0.0
    arrays: tuple[tuple[float, float], ...] = ()
    underflow: Underflow = field(default_factory=Underflow)

    @property
    def loss(self) -> Loss:
        """What the number type takes of the layer."""
        return Loss(self.name, max([self.cast, *(cast for _, cast in self.arrays)]), self.underflow)

    def as_record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"module": self.name, "networks": self.networks}
        if self.arrays:
            record["arrays"] = [{"norm": norm, "error": {"cast": cast}} for norm, cast in self.arrays]
        if self.rank is None:
            return record
        return record | {
            "rank": {"before": self.stacked, "after": self.rank},
            "norm": self.norm,
            "error": {"truncation": self.truncation, "cast": self.cast},
        }


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What --verify saw: ``layers`` compared, and those that hold no finite numbers and were not; the ``largest``
    difference of one value; ``error``: ‖difference‖ / ‖change‖ over all; ``share``: the largest part of what rounding
    and truncation allow.
    """

    layers: int
    not_finite: int
    largest: float
    error: float
    share: float

    def line(self) -> str:
        """The line for a person."""
        text = (
            f"verified: {self.layers} modules are the sum of the inputs, computed anew in float64; largest difference "
            f"{self.largest:.3g}, error {_percent(self.error)}, {self.share:.1%} of what is allowed"
        )
        return text + (
            f"; {self.not_finite} modules are not finite and not compared" if self.not_finite else ""
        )


@dataclass(frozen=True, kw_only=True)
class NetworksReport:
    """The whole merge. ``networks``: name, ratio, sha256 and number of modules of each. ``bytes``: of the new file."""

    output: str | None
    mode: str
    family: str | None
    networks: Sequence[tuple[str, float, str, int]]
    precision: str
    bytes: int
    layers: Sequence[LayerReport]
    notes: Sequence[str] = field(default_factory=tuple)
    checked: Checked | None = None

    @property
    def truncation(self) -> float:
        """√(Σ‖lost‖² / Σ‖change‖²) over all layers."""
        return error_of_all(
            [(layer.norm, layer.truncation) for layer in self.layers]
            + [(norm, 0.0) for layer in self.layers for norm, _ in layer.arrays]
        )

    @property
    def cast(self) -> float:
        return error_of_all(
            pair for layer in self.layers for pair in ((layer.norm, layer.cast), *layer.arrays)
        )

    def summary(self) -> str:
        """The line that every run prints on stderr."""
        told = " + ".join(f"{ratio:.4g} x {name}" for name, ratio, _, _ in self.networks)
        ranked = [layer for layer in self.layers if layer.rank is not None]
        shared = sum(layer.networks > 1 for layer in self.layers)
        text = f"{told}: {counted(len(self.layers), 'module')}, {shared} of them in more than one network"
        if ranked:
            before, after = _range([m.stacked for m in ranked]), _range([m.rank or 0 for m in ranked])
            text += f", rank {after}" if before == after else f", rank {before} -> {after}"
        text += f", {_megabytes(self.bytes)}"
        if self.mode == "svd":
            text += f", error {_percent(self.truncation)} from truncation, {_percent(self.cast)} from "
        else:
            text += f", error {_percent(self.cast)} from "
        return text + self.precision

    def as_record(self) -> dict[str, Any]:
        """The object of ``--json``. ``path`` is the written file, which other tools read; null in a dry run."""
        return {
            "path": self.output,
            "mode": self.mode,
            "family": self.family,
            "networks": [
                {"file": name, "ratio": ratio, "sha256": digest, "modules": count}
                for name, ratio, digest, count in self.networks
            ],
            "precision": self.precision,
            "bytes": self.bytes,
            "modules": len(self.layers),
            "shared": sum(layer.networks > 1 for layer in self.layers),
            "error": {"truncation": self.truncation, "cast": self.cast},
            "verified": asdict(self.checked) if self.checked else None,
            "notes": list(self.notes),
            "ranks": [layer.as_record() for layer in self.layers],
        }


def _range(ranks: Sequence[int]) -> str:
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
