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

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.base import Adapter, Dropouts, is_low_rank
from lorapipe_engine.nn.change import kept_ranks
from lorapipe_engine.nn.fused.deferred import DeferredGradients
from lorapipe_engine.nn.fused.forms import Form, group_forms
from lorapipe_engine.nn.fused.trained.convolutions import TrainedConvolution, TrainedConvolutions
from lorapipe_engine.nn.fused.trained.differences import TrainedDifference, TrainedDifferences
from lorapipe_engine.nn.fused.trained.norms import TrainedNorm, TrainedNorms
from lorapipe_engine.nn.kernels.gradients import FactorGradients

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


def axis_of(layer: LowRank | Adapter) -> int | None:
    """Of the magnitudes of a layer that can be packed, see :meth:`.Adapter.short_axis`."""
    return layer.short_axis() if isinstance(layer, Adapter) and not is_low_rank(layer) else None


def _has_form(module: nn.Module) -> bool:
    """A subclass does not inherit a short form, since its forward may be another."""
    return isinstance(module, Adapter) and "short_form" in vars(type(module)) and module.has_short_form()


class Packed:
    """Layers packed into ``matrix`` (out + R, in + R); ``outs``, ``ranks``: theirs, one by one; ``modules``: their
    adapters.

    The layers' weights become views of it. ``weight`` (out, in), ``joined`` (out, in + R) = [W | sB], ``down`` (R, in),
    ``up`` (out, R) = sB, ``left`` (out + R, in) = [W; A], ``bias`` (out,) or None, ``left_bias`` the same with R zeros.

    ``axis``: of magnitudes, see :class:`.forms.Form`; all layers have the same. With 0 the product without its bias is
    multiplied with ``ratio`` (out,). With 1 the input of each layer's W is multiplied with its row of ``ratio``
    (layers, in), of which ``less`` is 1 less in the model's dtype. Where there is one layer, A reads that input too;
    A of several has the ratio in it. ``ratio_grad``: where its gradient goes, without what reaches it through factors
    that have it in them.
    """

    def __init__(self, layers: Sequence[LowRank | Adapter]) -> None:
        self.modules = cast("list[nn.Module]", list(layers))
        self.layers = [_low_rank(layer) for layer in layers]
        weights = [layer.weight.detach().flatten(1) for layer in self.layers]
        self.outs = [len(weight) for weight in weights]
        self.ranks = [layer.rank for layer in self.layers]
        self.width = weights[0].shape[1]
        self.out = sum(self.outs)
        self.rank = -(-sum(self.ranks) // STEP) * STEP  # 0 where there are ratios and no factors
        like = weights[0]
        self.matrix = like.new_zeros(self.out + self.rank, self.width + self.rank)
        self.scales = [layer.alpha / layer.rank if layer.rank else 1.0 for layer in self.layers]
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
        self.axis = axis_of(layers[0])
        self.less: Tensor | None = None
        self.ratio: Tensor
        self.ratio_grad: Tensor
        if self.axis is not None:
            self._make_ratios()
        self.deferred: DeferredGradients | None = None  # set by the packs of a network
        self._into: FactorGradients | None = None

    def _make_ratios(self) -> None:
        forms = cast("list[Form]", self.layers)
        shape = (self.out,) if self.axis == 0 else (len(forms), self.width)
        self.ratio, self.ratio_grad = (forms[0].lora_up.detach().new_zeros(shape) for _ in range(2))
        if self.axis == 1:
            self.less = self.matrix.new_zeros(len(forms), self.width)
        split = self.outs if self.axis == 0 else 1
        parts = zip(forms, torch.split(self.ratio, split), torch.split(self.ratio_grad, split), strict=True)
        for form, ratio, gradient in parts:
            form.ratio, form.ratio_grad = ratio.flatten(), gradient.flatten()
            form.is_alone = len(forms) == 1

    @property
    def are_even(self) -> bool:
        """Whether all layers have as many outputs."""
        return len(set(self.outs)) == 1

    @property
    def reads_input(self) -> bool:
        """Whether the backward pass needs what went in: not where there is a ratio of outputs and nothing else."""
        return self.rank > 0 or self.axis != 0

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
        if not self.rank:
            return
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
    """All that a network trains in fused blocks, brought up to date together before each step."""

    def __init__(
        self,
        packs: Sequence[Packed],
        norms: Sequence[TrainedNorm] = (),
        differences: Sequence[TrainedDifference] = (),
        convolutions: Sequence[TrainedConvolution] = (),
    ) -> None:
        self.packs = list(packs)
        self._others = (
            TrainedNorms(norms),
            TrainedDifferences(differences),
            TrainedConvolutions(convolutions),
        )
        # First of all: the factors of a form move into the buffers of its group.
        self._forms = group_forms(
            [row for pack in self.packs for row in pack.layers if isinstance(row, Form)]
        )
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        scales: list[float] = []
        for pack in self.packs:
            rows = zip(pack.layers, pack.ups, pack.downs, pack.scales, strict=True)
            for layer, up, down, scale in rows if pack.rank else ():
                sources += [layer.lora_up.detach().flatten(1), layer.lora_down.detach().flatten(1)]
                targets += [up, down]
                scales += [scale, 1.0]
            if pack.less is not None:
                forms = cast("list[Form]", pack.layers)
                sources += [form.less for form in forms]
                targets += list(torch.split(pack.less, 1))
                scales += [1.0] * len(forms)
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
        """Copy the trained factors into the packed matrices, B times its scale, and bring all else up to date."""
        self._deferred.forget()
        for group in self._forms:
            group.compute()
        self._copy.run()
        for others in self._others:
            others.refresh()


# -------------------------------------------------------------------------------- products


def product(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """rows (N, in) times matrix (out, in) plus bias (out,), in ``out`` where it is given."""
    if bias is None:
        return torch.mm(rows, matrix.mT, out=out)
    return torch.addmm(bias, rows, matrix.mT, out=out)


def back(dys: Sequence[Tensor], pack: Packed, mask: Tensor | None) -> Tensor:
    """Gradients of input and rank activation side by side, dy [W | sB]; A's share of the first is yet to be added."""
    both = added(dys, pack.joined)
    if mask is not None:
        both[:, pack.width :].mul_(mask)
    return both


def added(dys: Sequence[Tensor], matrix: Tensor) -> Tensor:
    """The sum of dy times the rows of ``matrix`` that belong to it."""
    total, row = dys[0] @ matrix[: dys[0].shape[1]], dys[0].shape[1]
    for dy in dys[1:]:
        total.addmm_(dy, matrix[row : row + dy.shape[1]])
        row += dy.shape[1]
    return total
