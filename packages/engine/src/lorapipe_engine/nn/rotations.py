"""Rotations of a layer's outputs, R = (I + Q)(I - Q)⁻¹ by blocks: how they are applied, and made once for many layers.

What is kept for the backward pass are the outputs of the frozen layer; what lies between several turns is computed
again. Rotations of all layers are made together before the passes of a step, as their inverses are many small steps one
after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import cayley, kernels
from lorapipe_engine.nn.kernels.blocks import Blocks


@dataclass(frozen=True)
class Made:
    """The turns of a layer, R - I one after the other, each (count, size, size), of :class:`Blocks`. ``into``: where
    their gradients are added up; without it they go back through the turns."""

    turns: Sequence[Tensor]
    blocks: Sequence[Blocks]
    into: Sequence[Tensor] | None = None


def turned(
    rows: Tensor, bias: Tensor | None, made: Made, source: Tensor | None = None, *, whole: bool = True
) -> Tensor:
    """Outputs ``rows`` (N, out) of a layer, its ``bias`` among them, turned without that: all of it, or with ``whole``
    False what is added. ``source``: what the turns were made of where ``made`` has ``into``, so that autograd knows."""
    result: Tensor = _Turn.apply(rows, bias, made, whole, source, *made.turns)  # type: ignore[no-untyped-call]
    return result


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        bias: Tensor | None,
        made: Made,
        whole: bool,
        source: Tensor | None,  # noqa: ARG004
        *turns: Tensor,
    ) -> Tensor:
        ctx.blocks, ctx.into, ctx.whole = made.blocks, made.into, whole
        ctx.by_channels = kernels.prefers_channels(rows, made.blocks)
        if ctx.by_channels:
            rows = kernels.lay(rows, by_channels=True)
        ctx.save_for_backward(rows, bias, *turns)
        *_, last = _changes(rows, bias, turns, made.blocks, whole)
        assert last is not None
        return kernels.lay(last, by_channels=False) if ctx.by_channels else last

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, bias, *turns = ctx.saved_tensors
        into = ctx.into
        if ctx.by_channels:
            grad = kernels.lay(grad, by_channels=True)
        if into is None:
            into = [turn.new_zeros(turn.shape) for turn in turns]
        changes = _changes(rows, bias, turns[:-1], ctx.blocks, False)
        also: Tensor | None = None
        for place in reversed(range(len(turns))):
            whole = ctx.whole and place == 0
            also = kernels.rotate_back(
                rows,
                bias,
                changes[place],
                grad,
                also,
                turns[place],
                ctx.blocks[place],
                into[place],
                whole=whole,
            )
        own = [None] * len(turns) if ctx.into is not None else into
        return also, None, None, None, None, *own


def _changes(
    rows: Tensor, bias: Tensor | None, turns: Sequence[Tensor], blocks: Sequence[Blocks], whole: bool
) -> list[Tensor | None]:
    """What is added to the rows before and after each turn; with ``whole`` the last is the rows and all of it."""
    changes: list[Tensor | None] = [None]
    for place, turn in enumerate(turns):
        last = whole and place == len(turns) - 1
        changes.append(kernels.rotate(rows, bias, changes[-1], turn, blocks[place], whole=last))
    return changes


# -------------------------------------------------------------------------------- made together


class Rotated(Protocol):
    """A layer whose outputs are turned. ``made``: its turns for the passes of a step, if they are made together."""

    made: Made | None
    roles: tuple[str, ...]

    def skew(self, values: Mapping[str, Tensor]) -> Tensor:
        """Q of N layers that are alike, (N, ..., b, b), from their parameters, stacked by name."""

    def make(self, turns: Tensor, values: Mapping[str, Tensor]) -> tuple[Sequence[Tensor], Sequence[Blocks]]:
        """From R - I in the shape of Q: the turns as they are applied, (N, count, size, size) each."""


@dataclass
class _Alike:
    """Layers that are alike: what was made for them, of what, and its gradients."""

    rows: Sequence[Rotated]
    values: dict[str, Tensor]
    turns: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()


class Together:
    """The rotations of a network, made in few steps for all layers: those of one size of block at once."""

    def __init__(self, groups: Sequence[Sequence[Rotated]]) -> None:
        self._groups = list(groups)
        self._made: list[_Alike] = []

    def begin(self) -> None:
        """Make all rotations of the parameters as they are now."""
        self._made = [_Alike(rows, stacked(rows)) for rows in self._groups]
        with torch.enable_grad():
            skews = [group.rows[0].skew(group.values) for group in self._made]
            for group, turns in zip(self._made, _turns_of(skews), strict=True):
                group.turns, blocks = group.rows[0].make(turns, group.values)
                group.gradients = [turn.detach().new_zeros(turn.shape) for turn in group.turns]
                shown = [turn.detach().contiguous() for turn in group.turns]
                for index, row in enumerate(group.rows):
                    into = [gradient[index] for gradient in group.gradients]
                    row.made = Made([turn[index] for turn in shown], blocks, into)

    @property
    def bytes(self) -> int:
        """Of the turns' gradients."""
        gradients = [gradient for group in self._made for gradient in group.gradients]
        return sum(gradient.numel() * gradient.element_size() for gradient in gradients)

    def finish(self) -> None:
        """Add the gradients of a backward pass to the parameters'. May be called after each of several."""
        if not self._made:
            return
        made = [turn for group in self._made for turn in group.turns]
        reached = [gradient for group in self._made for gradient in group.gradients]
        values = [value for group in self._made for value in group.values.values()]
        gradients = iter(torch.autograd.grad(made, values, reached, retain_graph=True))
        for group in self._made:
            for name in group.values:
                into = [cast(Tensor, getattr(row, name).grad) for row in group.rows]
                torch._foreach_add_(into, list(next(gradients).unbind()))
        torch._foreach_zero_(reached)

    def end(self) -> None:
        """Let go of them: the parameters change now."""
        for rows in self._groups:
            for row in rows:
                row.made = None
        self._made = []


def stacked(rows: Sequence[Rotated]) -> dict[str, Tensor]:
    """Copies of the parameters of layers that are alike, by name, (N, ...)."""
    parts = {
        name: [cast(nn.Parameter, getattr(row, name)).detach() for row in rows] for name in rows[0].roles
    }
    return {name: torch.stack(tensors).requires_grad_() for name, tensors in parts.items()}


def _turns_of(skews: Sequence[Tensor]) -> list[Tensor]:
    """R - I of matrices in groups (..., b, b), all of one size at once."""
    results: dict[int, Tensor] = {}
    for size in dict.fromkeys(skew.shape[-1] for skew in skews):
        places = [place for place, skew in enumerate(skews) if skew.shape[-1] == size]
        flat = [skews[place].reshape(-1, size, size) for place in places]
        split = torch.split(
            cayley.turns(torch.cat(flat) if len(flat) > 1 else flat[0]), [len(part) for part in flat]
        )
        results |= {place: part.view(skews[place].shape) for place, part in zip(places, split, strict=True)}
    return [results[place] for place in range(len(skews))]
