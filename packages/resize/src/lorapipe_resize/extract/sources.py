"""What a LoRA is extracted from: a pair of checkpoints here, a network in :mod:`lorapipe_resize.extract.network`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError
from lorapipe_engine.networks.leading import leading
from lorapipe_resize.extract.measure import change_of
from lorapipe_resize.extract.modules import Spectral
from lorapipe_resize.extract.pair import Layer
from lorapipe_resize.extract.rules import Rule

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A module's change, decomposed, at the rank that its rule chose. See ``ModuleReport`` for the rest."""

    spectral: Spectral
    rank: int
    limit: int
    base_norm: float | None
    floor: float | None
    proved: float


class Job(Protocol):
    """A module to extract: its name in the LoRA, block, kernel (() if linear), and rows and columns of its change."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> str: ...

    @property
    def kernel(self) -> tuple[int, ...]: ...

    @property
    def conv(self) -> bool: ...

    @property
    def size(self) -> tuple[int, int]: ...


class Source(Protocol):
    """Modules to extract. ``find`` gives the reason, a word, where a module has nothing to extract."""

    @property
    def jobs(self) -> Sequence[Job]: ...

    def find(self, number: int, rule: Rule) -> Found | str: ...

    def matrix(self, number: int) -> Array: ...


UNCHANGED = "unchanged"
SMALL = "small"
NOISE = "noise"


class CheckpointSource:
    """The layers of two checkpoints. Those whose largest change is at most ``least`` are left out."""

    def __init__(self, layers: Sequence[Layer], least: float) -> None:
        self.jobs = layers
        self._least = least

    def find(self, number: int, rule: Rule) -> Found | str:
        """The change of one layer at the rank of the rule, or why there is none."""
        layer = self.jobs[number]
        change = change_of(layer)
        if change is None:
            return UNCHANGED
        if change.largest <= self._least:
            return SMALL
        limit = min(change.matrix.shape)
        choose, threshold = rule.chooser(conv=layer.conv, limit=limit, floor=change.floor)
        try:
            expected = rule.expected(conv=layer.conv, limit=limit)
            spectral = leading(change.matrix, choose, threshold=threshold, expected=expected)
        except np.linalg.LinAlgError as error:
            raise InputError(f"module {layer.name}: its singular values cannot be found ({error})") from error
        if not spectral.rank:
            return NOISE
        return Found(
            spectral=spectral,
            rank=spectral.rank,
            limit=limit,
            base_norm=change.base_norm,
            floor=change.floor,
            proved=spectral.proved,
        )

    def matrix(self, number: int) -> Array:
        """tuned - base (o, in·k·k); zeros where nothing changed."""
        layer = self.jobs[number]
        change = change_of(layer)
        return np.zeros(layer.size, np.float32) if change is None else change.matrix
