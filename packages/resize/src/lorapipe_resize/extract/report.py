"""What an extraction found, kept and left out, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorapipe_engine.command.text import counted
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.blocks import order_of
from lorapipe_engine.networks.underflow import Loss, rounding_notes
from lorapipe_resize.extract.extraction import whole_error
from lorapipe_resize.extract.modules import ModuleReport
from lorapipe_resize.extract.pair import LeftOut, record_of
from lorapipe_resize.extract.verify import Verified
from lorapipe_resize.report import MOST_ERROR, SAFE_RANK, lost_line, low_rank_line, megabytes, percent


@dataclass(kw_only=True)
class Report:
    """One extraction. ``left_out`` counts modules by the reason they are not in the LoRA; ``size`` is in bytes."""

    tuned: str
    base: str | None
    output: str | None
    precision: str
    alpha: float
    size: int
    modules: Sequence[ModuleReport]
    unchanged: int
    rest: Sequence[LeftOut] = ()
    notes: list[str] = field(default_factory=list)
    verified: Verified | None = None

    def as_record(self) -> dict[str, Any]:
        """The object of ``--json``."""
        record: dict[str, Any] = {
            "path": self.output,
            "tuned": self.tuned,
            "base": self.base,
            "precision": self.precision,
            "alpha": self.alpha,
            "bytes": self.size,
            "error": {
                "whole": whole_error(self.modules),
                "truncation": whole_error(self.modules, "truncation"),
                "cast": whole_error(self.modules, "cast"),
                "over_optimum_at_most": proved(self.modules),
            },
            "unchanged": self.unchanged,
            "blocks": {name: _block_record(rows) for name, rows in blocks(self.modules)},
            "modules": [_module_record(m) for m in self.modules],
            "not_in_the_lora": record_of(self.rest),
            "notes": self.notes,
        }
        return record | ({"verified": vars(self.verified)} if self.verified else {})


def proved(modules: Sequence[ModuleReport]) -> float:
    """The truncation error of all modules over the best possible at these ranks, at most."""
    lost = math.fsum((m.norm * m.truncation) ** 2 for m in modules)
    best = math.fsum((m.norm * m.truncation / m.proved) ** 2 for m in modules)
    return math.sqrt(lost / best) if best else 1.0


def blocks(modules: Sequence[ModuleReport]) -> Iterator[tuple[str, list[ModuleReport]]]:
    """Modules by block, in the order in which a model runs them."""
    by_block: dict[str, list[ModuleReport]] = {}
    for module in modules:
        by_block.setdefault(module.block, []).append(module)
    for name in sorted(by_block, key=order_of):
        yield name, by_block[name]


def _block_record(rows: Sequence[ModuleReport]) -> dict[str, Any]:
    ranks = [m.rank for m in rows]
    record: dict[str, Any] = {
        "modules": len(rows),
        "norm": math.sqrt(math.fsum(m.norm**2 for m in rows)),
        "rank": {"least": min(ranks), "mean": sum(ranks) / len(ranks), "most": max(ranks)},
        "error": whole_error(rows),
    }
    if (share := relative_change(rows)) is not None:
        record["change"] = share
    return record


def relative_change(rows: Sequence[ModuleReport]) -> float | None:
    """‖change‖ / ‖base‖ over modules; None where the base is not known."""
    norms = [m.base_norm for m in rows if m.base_norm is not None]
    whole = math.sqrt(math.fsum(n**2 for n in norms))
    return (
        math.sqrt(math.fsum(m.norm**2 for m in rows)) / whole if len(norms) == len(rows) and whole else None
    )


def _module_record(m: ModuleReport) -> dict[str, Any]:
    return {
        "module": m.name,
        "block": m.block,
        "size": list(m.size),
        "rank": m.rank,
        "norm": m.norm,
        "base_norm": m.base_norm,
        "sigma1": m.top,
        "first_dropped": m.next,
        "floor": m.floor,
        "rank_for": {f"{share:g}": rank for share, rank in m.needed.items()},
        "error": {"truncation": m.truncation, "cast": m.cast, "over_optimum_at_most": m.proved},
    }


# -------------------------------------------------------------------------------- as text


def loss_advice(modules: Sequence[ModuleReport]) -> list[str]:
    """What lora-resize says of low ranks, of a change much of which is lost, and of half precision, where directions
    were left out that are more than the rounding of the checkpoints."""
    lacking = [m for m in modules if m.lacks_signal]
    highest = max((m.rank for m in lacking), default=SAFE_RANK)
    error = whole_error(modules, "truncation")
    lines = [low_rank_line(highest)] if highest < SAFE_RANK else []
    lines += [lost_line(error)] if lacking and error > MOST_ERROR else []
    return [*lines, *rounding_notes(Loss(m.name, m.cast, m.underflow) for m in modules)]


def summary(report: Report) -> str:
    """The line that every run prints on stderr."""
    rows = report.modules
    source = report.tuned + (f" - {report.base}" if report.base else "")
    over = proved(rows)
    best = f", at most {over:.4g} times the least possible" if over > 1 else ""
    return (
        f"{source}: {counted(len(rows), 'module')}, {_ranks(rows)}, {megabytes(report.size)}, error "
        f"{percent(whole_error(rows))} of the change ({percent(whole_error(rows, 'truncation'))} from leaving out "
        f"ranks{best}; {percent(whole_error(rows, 'cast'))} from {report.precision})"
    )


def _ranks(rows: Sequence[ModuleReport]) -> str:
    ranks = [m.rank for m in rows]
    if min(ranks) == max(ranks):
        return f"rank {ranks[0]}"
    return f"rank {min(ranks)} to {max(ranks)} (mean {sum(ranks) / len(ranks):.1f})"


def block_table(report: Report) -> list[str]:
    """A line for each block: modules, how far they moved, ranks, error."""
    lines = [f"{'block':<6} {'modules':>7}  {'change':>8}  {'ranks':>9}  {'error':>7}"]
    for name, rows in blocks(report.modules):
        share = relative_change(rows)
        ranks = [m.rank for m in rows]
        span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}-{max(ranks)}"
        change = percent(share) if share is not None else ""
        lines.append(f"{name:<6} {len(rows):>7}  {change:>8}  {span:>9}  {percent(whole_error(rows)):>7}")
    return lines


def module_table(report: Report) -> list[str]:
    """The table of ``--report``: a line for each module."""
    lines = [
        f"{'rank':>5} {'90 %':>5} {'99 %':>5}  {'change':>8}  {'sigma1':>9}  {'dropped':>9}  {'floor':>9}  "
        f"{'trunc':>7}  {'cast':>7}  module"
    ]
    for m in report.modules:
        change = percent(m.norm / m.base_norm) if m.base_norm else ""
        floor = f"{m.floor:9.3g}" if m.floor is not None else ""
        needed = [str(rank or "more") for rank in m.needed.values()]
        lines.append(
            f"{m.rank:>5} {needed[0]:>5} {needed[1]:>5}  {change:>8}  {m.top:9.3g}  {m.next:9.3g}  {floor:>9}  "
            f"{percent(m.truncation):>7}  {percent(m.cast):>7}  {quote(m.name)[1:-1]}"
        )
    return lines


def verified_line(verified: Verified, tuned: str, base: str | None) -> str:
    """What ``--verify`` says."""
    return (
        f"verified: {'the base with ' if base else ''}the written LoRA is {percent(verified.error)} of the change away "
        f"from {tuned} over {verified.modules} modules; the worst is {quote(verified.name)[1:-1]} with "
        f"{percent(verified.worst)}"
    )
