"""What a merge did, in figures: how many modules, how far each block moved, what moved most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_engine.checkpoints.opened import Base
from lorapipe_engine.command.text import counted
from lorapipe_engine.models.blocks import order_of
from lorapipe_engine.models.families import FAMILIES
from lorapipe_merge.matching import Applied, Match

MOST = 5
# What is worth a word: a merge that hardly moves anything has no visible effect, one that moves much is overcooked.
_TINY = 1e-5


@dataclass
class Moved:
    """One tensor done. ``weight``, ``change``: squared norms; ``small``: results that fp16 holds as 0 or subnormal."""

    bytes: int
    key: str = ""
    block: str = ""
    modules: int = 0
    weight: float = 0.0
    change: float = 0.0
    small: int = 0

    @property
    def share(self) -> float:
        """‖ΔW‖ / ‖W‖."""
        return math.sqrt(self.change / self.weight) if self.weight > 0 else 0.0


@dataclass
class Report:
    """A merge told. ``checked``: what --verify looked at, and the largest difference it found in units of the
    tolerance.
    """

    base: str
    family: str
    networks: Sequence[tuple[str, float, int]]
    matched: int
    unmatched: dict[str, list[str]]
    tensors: int
    bytes: int
    output: str
    notes: list[str]
    moved: list[Moved] = field(default_factory=list)
    checked: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        base: Base,
        networks: Sequence[Applied],
        match: Match,
        notes: Sequence[str],
        *,
        output: Path,
        size: int,
    ) -> Report:
        """What is known before the work."""
        return cls(
            base=str(base.path),
            family=FAMILIES[base.family].title,
            networks=[(a.name, a.ratio, len(a.network.modules)) for a in networks],
            matched=match.modules,
            unmatched=match.unmatched,
            tensors=len(match.changes),
            bytes=size,
            output=str(output),
            notes=list(notes),
        )

    def add(self, moved: Moved) -> None:
        """A tensor that was changed; others are not told of."""
        if moved.modules:
            self.moved.append(moved)

    def blocks(self) -> dict[str, float]:
        """Mean ‖ΔW‖ / ‖W‖ of the tensors of each block, in the model's order."""
        shares: dict[str, list[float]] = {}
        for moved in self.moved:
            shares.setdefault(moved.block, []).append(moved.share)
        return {block: sum(shares[block]) / len(shares[block]) for block in sorted(shares, key=order_of)}

    def most(self) -> list[Moved]:
        """The tensors that moved most."""
        return sorted(self.moved, key=lambda moved: (-moved.share, moved.key))[:MOST]

    def lines(self, *, dry_run: bool) -> list[str]:
        """The report for a person."""
        names = ", ".join(f"{name} at {ratio:g}" for name, ratio, _ in self.networks)
        verb = "would merge" if dry_run else "merged"
        total = self.matched + sum(map(len, self.unmatched.values()))
        done = f"{self.matched} of {counted(total, 'module')} into {counted(self.tensors, 'tensor')}"
        lines = [f"{verb} {done} of {self.base} ({self.family}): {names}"]
        if self.moved:
            lines.append("mean change of the weights, ‖ΔW‖/‖W‖, by block:")
            cells = [f"{block} {share:.2%}" for block, share in self.blocks().items()]
            lines += ["  " + "  ".join(cells[i : i + 7]) for i in range(0, len(cells), 7)]
            lines.append("moved most:")
            lines += [f"  {moved.share:8.2%}  {moved.key}" for moved in self.most()]
            if max(moved.share for moved in self.moved) < _TINY:
                lines.append("note: hardly anything moved; the result will give the base's pictures")
        if small := sum(moved.small for moved in self.moved):
            lines.append(
                f"{small:,} of the changed values {'is' if small == 1 else 'are'} so small that fp16 holds "
                f"{'it' if small == 1 else 'them'} as 0 or subnormal"
            )
        if self.checked:
            lines.append(
                f"verified: {self.checked['changed']} changed tensors are W + ΔW, largest difference "
                f"{self.checked['worst']:.1%} of what rounding explains; {self.checked['same']} others are unchanged"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def as_record(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "path": self.output,
            "output": self.output,
            "base": self.base,
            "family": self.family,
            "networks": [{"path": n, "file": n, "ratio": r, "modules": m} for n, r, m in self.networks],
            "matched": self.matched,
            "unmatched": self.unmatched,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "blocks": self.blocks(),
            "most": [{"key": moved.key, "share": moved.share} for moved in self.most()],
            "verified": self.checked,
            "notes": self.notes,
        }
