"""What a resize did to a file, per module and in total, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorapipe_engine.command.text import counted, printable
from lorapipe_engine.networks.ranks import error_of_all
from lorapipe_engine.networks.underflow import Loss, Underflow, rounding_notes

DORA = "dora"  # the algorithm of a report whose module has magnitudes


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One module. Norms are Frobenius norms of scaled changes; shares and errors are fractions.

    ``rank`` is that of the file before, ``new_rank`` after (both None for a module copied as it was). ``top``
    is the largest singular value of up · down without the scale alpha / rank, ``next`` the first dropped one
    over it. ``truncation`` and ``cast`` are ‖change lost‖ / ‖change‖ by dropping ranks and by the number
    type, ``underflow`` counts the new factors' values that it makes zeros of.
    """

    name: str
    algorithm: str
    rank: int | None = None
    new_rank: int | None = None
    alpha: float | None = None
    kernel: tuple[int, ...] = ()
    top: float = 0.0
    next: float = 0.0
    kept_fro: float = 1.0
    kept_sum: float = 1.0
    norm: float = 0.0
    truncation: float = 0.0
    cast: float = 0.0
    underflow: Underflow = field(default_factory=Underflow)
    dead: bool = False
    capped: bool = False
    note: str = ""


SAFE_RANK = 32
MOST_ERROR = 0.2  # of the change


def loss_advice(modules: Sequence[ModuleReport]) -> list[str]:
    """A line where the ranks are lower than what keeps a sound network sound, one where much of it is lost, and one
    where rounding loses much."""
    smaller = [m for m in modules if m.new_rank is not None and m.new_rank < (m.rank or 0)]
    highest = max((m.new_rank or 0 for m in smaller), default=SAFE_RANK)
    lines = []
    if highest < SAFE_RANK <= max(m.rank or 0 for m in smaller):
        lines.append(low_rank_line(highest))
    error = truncation_of(modules)
    if error > MOST_ERROR:
        lines.append(lost_line(error))
    return [*lines, *rounding_notes(Loss(m.name, m.cast, m.underflow) for m in modules)]


def truncation_of(modules: Sequence[ModuleReport]) -> float:
    """√(Σ‖lost‖² / Σ‖change‖²) over all modules that have a new rank, be it the old one."""
    return error_of_all((m.norm, m.truncation) for m in modules if m.new_rank is not None)


def low_rank_line(highest: int) -> str:
    """What is said of ranks lower than the guides' safe one."""
    return (
        f"rank {highest} is below {SAFE_RANK}, from which on detail is lost; 8 to 24 help a network that is burnt, "
        "and cost a sound one most"
    )


def lost_line(error: float) -> str:
    """What is said where much of a change is left out (a share)."""
    return f"{percent(error)} of the change is lost, which shows in pictures; a higher rank keeps more"


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file: its modules, notes on what was not resized, and sizes in bytes."""

    source: str
    output: str | None
    precision: str
    bytes_before: int
    bytes_after: int
    modules: Sequence[ModuleReport]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def resized(self) -> list[ModuleReport]:
        return [m for m in self.modules if m.new_rank is not None]

    @property
    def truncation(self) -> float:
        return truncation_of(self.modules)

    @property
    def cast(self) -> float:
        return error_of_all((m.norm, m.cast) for m in self.resized)

    def as_record(self) -> dict[str, Any]:
        """The object of ``--json``. ``path`` is the written file, which other tools read; null in a dry run."""
        return {
            "path": self.output,
            "source": self.source,
            "precision": self.precision,
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "error": {"truncation": self.truncation, "cast": self.cast},
            "modules": len(self.modules),
            "resized": len(self.resized),
            "dead": [m.name for m in self.modules if m.dead],
            "capped": sum(m.capped for m in self.modules),
            "notes": list(self.notes),
            "ranks": [_module_record(m) for m in self.modules],
        }


def _module_record(module: ModuleReport) -> dict[str, Any]:
    record: dict[str, Any] = {"module": module.name, "algorithm": module.algorithm}
    if module.new_rank is None:
        return record | {"note": module.note or "copied"}
    record |= {
        "rank": {"before": module.rank, "after": module.new_rank},
        "alpha": module.alpha,
        "sigma1": module.top,
        "first_dropped": module.next,
        "retained": {"fro": module.kept_fro, "sum": module.kept_sum},
        "norm": module.norm,
        "error": {"truncation": module.truncation, "cast": module.cast},
    }
    flags = [name for name in ("dead", "capped") if getattr(module, name)]
    return record | ({"flags": flags} if flags else {}) | ({"note": module.note} if module.note else {})


def summary(report: FileReport) -> str:
    """The line that every run prints on stderr."""
    resized = report.resized
    size = f"{megabytes(report.bytes_before)} -> {megabytes(report.bytes_after)}"
    if not resized:
        return f"{report.source}: no module has a rank to reduce; {size}"
    before, after = [m.rank or 0 for m in resized], [m.new_rank or 0 for m in resized]
    mean = f" (mean {sum(after) / len(after):.1f})" if len(set(after)) > 1 else ""
    text = (
        f"{report.source}: {counted(len(resized), 'module')}, rank {_range(before)} -> {_range(after)}{mean}, {size}, "
        f"error {percent(report.truncation)} from truncation, {percent(report.cast)} from {report.precision}"
    )
    for flag in ("dead", "capped"):
        count = sum(getattr(m, flag) for m in resized)
        text += f"; {count} {flag}" if count else ""
    return text


def _range(ranks: Sequence[int]) -> str:
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def table(report: FileReport) -> list[str]:
    """The table of ``--report``: a line per module, then the totals. Names are escaped."""
    lines = [
        f"{'rank':>9}  {'alpha':>8}  {'sigma1':>9}  {'dropped':>8}  {'kept F':>7}  {'kept S':>7}  "
        f"{'trunc':>7}  {'cast':>7}  module"
    ]
    for m in report.modules:
        name = printable(m.name)
        if m.new_rank is None:
            lines.append(f"{'copied':>9}  {m.algorithm:>8}  {'':>57}{name}")
            continue
        flags = "".join(f" [{flag}]" for flag in ("dead", "capped") if getattr(m, flag))
        lines.append(
            f"{f'{m.rank} -> {m.new_rank}':>9}  {m.alpha or 0:8.4g}  {m.top:9.3g}  {percent(m.next):>8}  "
            f"{percent(m.kept_fro):>7}  {percent(m.kept_sum):>7}  {percent(m.truncation):>7}  "
            f"{percent(m.cast):>7}  {name}{flags}"
        )
    lines.append(
        f"total: {len(report.resized)} of {len(report.modules)} modules resized, relative error "
        f"{percent(report.truncation)} (truncation), {percent(report.cast)} (cast to {report.precision}), "
        f"{report.bytes_before:,} -> {report.bytes_after:,} bytes"
    )
    return lines


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
