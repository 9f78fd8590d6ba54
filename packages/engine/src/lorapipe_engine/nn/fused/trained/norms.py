"""Trained norms as the fused operations read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.adapters.full import Norm
from lorapipe_engine.nn.base import is_off

MARK = "trained_norm"


class TrainedNorm:
    """A trained layer norm or group norm with its change: ``weight`` and ``bias`` (C,) are float32, as of the last
    :meth:`TrainedNorms.refresh`. ``trained``: its parameters, of which autograd has to know."""

    weight: Tensor
    bias: Tensor

    def __init__(self, adapter: Norm) -> None:
        base = adapter.base
        assert isinstance(base, nn.LayerNorm | nn.GroupNorm)
        self.adapter = adapter
        self.eps = base.eps
        self.num_groups = base.num_groups if isinstance(base, nn.GroupNorm) else 0
        self.trained = [getattr(adapter, role) for role in adapter.roles]
        object.__setattr__(adapter, MARK, self)

    @property
    def ready(self) -> bool:
        """Whether the whole change counts now: nothing is dropped, and the network is on."""
        adapter = self.adapter
        dropping = adapter.training and bool(adapter.dropouts.module)
        return adapter.multiplier == 1 and not dropping and not is_off(adapter)

    @property
    def into(self) -> tuple[Tensor, Tensor | None]:
        """Where the gradients of weight and bias go."""
        weight, bias = self.adapter.w_norm.grad, None
        if "b_norm" in self.adapter.roles:
            bias = self.adapter.b_norm.grad
        if weight is None or (bias is None and len(self.trained) > 1):
            raise RuntimeError("a gradient buffer was taken away")
        return weight, bias


class TrainedNorms:
    """The trained norms of a network, brought up to date together."""

    def __init__(self, norms: Sequence[TrainedNorm]) -> None:
        self.norms = list(norms)
        if not self.norms:
            return
        frozen: list[Tensor] = []
        for norm in self.norms:
            like, bias = norm.adapter.w_norm.detach(), norm.adapter.bias
            frozen += [norm.adapter.weight.to(like.dtype)]
            frozen += [torch.zeros_like(like) if bias is None else bias.to(like.dtype)]
        self._frozen = torch.cat([part.detach() for part in frozen])
        self._values, self._changes = self._frozen.clone(), torch.zeros_like(self._frozen)
        sizes = [len(part) for part in frozen]
        values, changes = torch.split(self._values, sizes), torch.split(self._changes, sizes)
        sources, targets = [], []
        for place, norm in enumerate(self.norms):
            norm.weight, norm.bias = values[2 * place : 2 * place + 2]
            for parameter, change in zip(norm.trained, changes[2 * place : 2 * place + 2], strict=False):
                sources.append(parameter.detach()[None])
                targets.append(change[None])
        self._copy = kernels.many_copies(sources, targets, [1.0] * len(sources))

    def refresh(self) -> None:
        """Add the changes as they are now to the frozen weights and biases."""
        if self.norms:
            self._copy.run()
            torch.add(self._frozen, self._changes, out=self._values)


def trained_norm(norm: nn.Module) -> TrainedNorm | None:
    """A norm's place among the trained ones, while its whole change counts; None for a frozen norm, and where it has to
    run its own forward."""
    place: TrainedNorm | None = vars(norm).get(MARK)
    return place if place is not None and place.ready else None


def trained_of(norm: object) -> Sequence[Tensor]:
    """The parameters of a trained norm, none of a frozen one."""
    return norm.trained if isinstance(norm, TrainedNorm) else ()


def into_of(norm: object) -> tuple[Tensor, Tensor | None] | None:
    """Where the gradients of a trained norm go, None for a frozen one."""
    return norm.into if isinstance(norm, TrainedNorm) else None
