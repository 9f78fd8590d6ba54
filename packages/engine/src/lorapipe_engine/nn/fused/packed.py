"""Linear layers that read the same input, packed with their LoRA into one matrix.

The matrix of layers W (out, in) with factors A (r, in) and B (out, r) is

    [ W  sB ]
    [ A   · ]

so that [y | h] = x [W; A]ᵀ is one product, and y + h·sBᵀ a short one on top; where the input is made by a kernel that
can leave room for h, y = [x | h] [W | sB]ᵀ is the whole. Gradients go the same ways back. Nothing small is lost by
that, where a merged weight W + sBA in half precision would lose small changes. The layers of one pack (query, key,
value) stand under each other; their factors lie block by block. Masters of A and B stay in float32 in the network's
flat buffers; :meth:`Packs.refresh` copies them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.base import Adapter, Dropouts, is_low_rank
from lorapipe_engine.nn.change import kept_ranks
from lorapipe_engine.nn.fused import kernels
from lorapipe_engine.nn.fused.deferred import DeferredGradients
from lorapipe_engine.nn.fused.forms import Form, group_forms
from lorapipe_engine.nn.fused.gradients import FactorGradients

STEP = 16  # ranks are padded to this, which keeps rows on 32-byte boundaries in half precision
HALF = (torch.float16, torch.bfloat16)


class LowRank(Protocol):
    """What is packed of an adapter whose class says that it is ``low_rank``."""

    base: nn.Module
    rank: int
    alpha: float
    dropouts: Dropouts
    lora_down: nn.Parameter
    lora_up: nn.Parameter

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


def can_pack(module: nn.Module) -> bool:
    """Whether a module is a low-rank adapter of exactly the class that says so, or one whose change has a short form,
    on a linear layer or a 1x1 convolution without stride."""
    if not (is_low_rank(module) or _has_form(module)):
        return False
    base = module.base
    if isinstance(base, nn.Conv2d):
        return base.kernel_size == (1, 1) and base.stride == (1, 1) and base.groups == 1
    return isinstance(base, nn.Linear)


def _has_form(module: nn.Module) -> bool:
    """A subclass does not inherit a short form, since its forward may be another."""
    return isinstance(module, Adapter) and "short_form" in vars(type(module)) and module.short_rank() > 0


class Packed:
    """Layers packed into ``matrix`` (out + R, in + R); ``outs``, ``ranks``: theirs, one by one.

    The layers' weights become views of it. ``weight`` (out, in), ``joined`` (out, in + R) = [W | sB], ``down`` (R, in),
    ``up`` (out, R) = sB, ``left`` (out + R, in) = [W; A], ``bias`` (out,) or None, ``left_bias`` the same with R zeros.
    """

    def __init__(self, layers: Sequence[LowRank | Adapter]) -> None:
        self.layers = [_low_rank(layer) for layer in layers]
        weights = [layer.weight.detach().flatten(1) for layer in self.layers]
        self.outs = [len(weight) for weight in weights]
        self.ranks = [layer.rank for layer in self.layers]
        self.width = weights[0].shape[1]
        self.out = sum(self.outs)
        self.rank = -(-sum(self.ranks) // STEP) * STEP
        like = weights[0]
        self.matrix = like.new_zeros(self.out + self.rank, self.width + self.rank)
        self.scales = [layer.alpha / layer.rank for layer in self.layers]
        self.ups: list[Tensor] = []
        self.downs: list[Tensor] = []
        row, column = 0, 0
        for layer, weight, rank in zip(self.layers, weights, self.ranks, strict=True):
            place = self.matrix[row : row + len(weight), : self.width]
            place.copy_(weight)
            base: nn.Linear | nn.Conv2d = layer.base  # type: ignore[assignment]
            base.weight.data = place.view(len(weight), self.width, *[1] * (base.weight.dim() - 2))
            self.ups.append(
                self.matrix[row : row + len(weight), self.width + column : self.width + column + rank]
            )
            self.downs.append(self.matrix[self.out + column : self.out + column + rank, : self.width])
            row, column = row + len(weight), column + rank
        self.weight = self.matrix[: self.out, : self.width]
        self.joined = self.matrix[: self.out]
        self.down = self.matrix[self.out :, : self.width]
        self.up = self.matrix[: self.out, self.width :]
        self.left = self.matrix[:, : self.width]
        biases = [layer.bias for layer in self.layers]
        self.bias = (
            torch.cat([bias.detach() for bias in biases if bias is not None])
            if biases[0] is not None
            else None
        )
        self.left_bias = None if self.bias is None else torch.cat([self.bias, like.new_zeros(self.rank)])
        self.trained = [p for layer in self.layers for p in (layer.lora_down, layer.lora_up)]
        self.deferred: DeferredGradients | None = None  # set by the packs of a network
        self._into: FactorGradients | None = None

    @property
    def dropping(self) -> bool:
        """Whether any dropout is on."""
        p = self.layers[0].dropouts
        return bool(p.element or p.rank or p.module)

    def mask(self, rows: int, samples: int) -> Tensor | None:
        """What the rank activation (rows, R) is multiplied with: the dropouts of the layers, drawn anew."""
        if not self.dropping:
            return None
        p, like = self.layers[0].dropouts, self.matrix
        mask = torch.ones(rows, self.rank, device=like.device)
        column = 0
        for rank in self.ranks:
            part = mask[:, column : column + rank]
            if p.element:
                part.mul_(torch.rand_like(part) >= p.element).div_(1 - p.element)
            if p.rank:
                kept, share = kept_ranks((samples, 1, rank), 2, p, like.device)
                part.view(samples, -1, rank).mul_(kept).div_(share)
            if p.module:
                part.mul_(torch.rand((), device=like.device) >= p.module)
            column += rank
        return mask.to(like.dtype)

    def add_gradients(self, x: Tensor, hidden: Tensor, dys: Sequence[Tensor], dhidden: Tensor) -> None:
        """Add the factors' gradients to the flat buffers. ``x`` (N, in), ``hidden`` (N, R) = xAᵀ, ``dys`` one (N, out)
        or one for each layer, ``dhidden`` (N, R) = s·dy·B. None of these may be written to afterwards.
        """
        into = self.gradients()
        if self.deferred is not None and kernels.can_batch(into, x, len(dys)):
            self.deferred.add(into, x, hidden, dys, dhidden)
        else:
            into.add(x, hidden, dys, dhidden)

    def gradients(self) -> FactorGradients:
        """Where the factors' gradients go, looked up once: the flat buffers stay where they are."""
        if self._into is None:
            downs, ups = [], []
            for layer in self.layers:
                down, up = layer.lora_down.grad, layer.lora_up.grad
                if down is None or up is None:
                    raise RuntimeError("a gradient buffer was taken away")
                downs.append(down.flatten(1))
                ups.append(up.flatten(1))
            self._into = FactorGradients(downs, ups, self.scales)
        return self._into


def _low_rank(layer: LowRank | Adapter) -> LowRank:
    if isinstance(layer, Adapter) and not is_low_rank(layer):
        return Form(layer)
    return cast(LowRank, layer)


class Packs:
    """All packs of a network, brought up to date together before each step."""

    def __init__(self, packs: Sequence[Packed]) -> None:
        self.packs = list(packs)
        # First of all: the factors of a form move into the buffers of its group.
        self._forms = group_forms(
            [row for pack in self.packs for row in pack.layers if isinstance(row, Form)]
        )
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        scales: list[float] = []
        for pack in self.packs:
            for layer, up, down, scale in zip(pack.layers, pack.ups, pack.downs, pack.scales, strict=True):
                sources += [layer.lora_up.detach().flatten(1), layer.lora_down.detach().flatten(1)]
                targets += [up, down]
                scales += [scale, 1.0]
        self._copy = kernels.many_copies(sources, targets, scales)
        self._deferred = DeferredGradients()
        for pack in self.packs:
            pack.deferred = self._deferred

    def finish(self) -> None:
        """Bring all gradients of the factors into their buffers, after a backward pass."""
        self._deferred.finish()
        for group in self._forms:
            group.pass_on()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the trained factors into the packed matrices, B times its scale."""
        self._deferred.forget()
        for group in self._forms:
            group.compute()
        self._copy.run()
