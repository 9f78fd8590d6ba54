"""Diag-OFT (arXiv:2306.07280) and BOFT (arXiv:2311.06243): the rows of a weight turned by small rotations.

LyCORIS' file layout: ``oft_blocks`` (n, b, b), in BOFT (stages, n, b, b), with n·b = out. Q = B - Bᵀ is brought to the
norm constraint·out where that is above 0 and exceeded (norm over all blocks); R = (I + Q)(I - Q)⁻¹. ``rescale`` (out,
1, ...) multiplies the rows of the result, at any multiplier. A file keeps the constraint as alpha. There is no rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn import cayley, kernels
from lorapipe_engine.nn.adapters.lokr import split
from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size, alike
from lorapipe_engine.nn.change import frozen_weight, layer_shape, parameter
from lorapipe_engine.nn.kernels.blocks import Blocks
from lorapipe_engine.nn.options import flag, not_negative, whole
from lorapipe_engine.nn.rotations import Made, Rotated, Together, stacked, turned

Shape = tuple[int, ...]


class Rotation(Adapter):
    """Outputs without their bias are turned; blocks start at R = I. Subclasses say how blocks are cut and applied."""

    needs: ClassVar[frozenset[str]] = frozenset({"oft_blocks"})
    reads: ClassVar[frozenset[str]] = frozenset({"rescale"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "constraint": not_negative,
        "rescaled": flag,
        "block_size": whole,
    }
    drops: ClassVar[frozenset[str]] = frozenset({"module"})

    oft_blocks: nn.Parameter
    rescale: nn.Parameter
    made: Made | None = None

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        return cls(base, size, dropouts, options)

    @classmethod
    @abstractmethod
    def blocks(cls, outputs: int, rank: int, options: Options) -> Shape:
        """Shape of ``oft_blocks`` for a layer. Raises ConfigError where none fits."""

    @abstractmethod
    def applied(self, turns: Tensor) -> tuple[list[Tensor], list[Blocks]]:
        """From R - I of N layers that are alike, (N, *shape of ``oft_blocks``): the turns one after the other, each (N,
        count, size, size) for rows from the left, and of which outputs each is."""

    @classmethod
    def shapes(cls, layer: Shape, size: Size, options: Options) -> dict[str, Shape]:
        blocks = options.get("shape") or cls.blocks(layer[0], size.rank, options)
        own: dict[str, Shape] = {"oft_blocks": blocks}
        if options.get("rescaled"):
            own["rescale"] = (layer[0], *[1] * (len(layer) - 1))
        return own

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"shape": tuple(tensors["oft_blocks"].shape), "rescaled": "rescale" in tensors}

    def __init__(self, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        layer, from_file = layer_shape(base), "shape" in options
        shapes = self.shapes(layer, size, options)
        blocks = shapes["oft_blocks"]
        if blocks[-1] != blocks[-2] or blocks[-3] * blocks[-1] != layer[0]:
            raise ConfigError(f"oft: blocks of the shape {blocks} do not fit a layer of {layer}")
        self.alpha = size.alpha if from_file else float(options.get("constraint", 0.0))
        self.dropouts = dropouts
        self.options = {**options, "shape": blocks}
        for role, own in shapes.items():
            self.register_parameter(role, parameter(own, self.weight.device))
        if "rescale" in shapes:
            nn.init.ones_(self.rescale)

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        out: Tensor = self.base(x)
        is_conv = isinstance(self.base, nn.Conv2d)
        plain = out.movedim(1, -1) if is_conv else out
        rows = plain.reshape(-1, plain.shape[-1])
        # What is made together is of strength 1.
        made = self.made if self.multiplier == 1 else None
        made = made or self._make_alone(self.multiplier)
        moved = turned(rows, self.bias, made, self.oft_blocks)
        if self.training and self.dropouts.module:
            moved = torch.where(torch.rand((), device=x.device) >= self.dropouts.module, moved, rows)
        moved = moved.view(plain.shape)
        return moved.movedim(-1, 1) if is_conv else moved

    @classmethod
    def together(cls, rows: Sequence[Self]) -> Together:
        return Together(cast("list[list[Rotated]]", alike(rows)))

    def skew(self, values: Mapping[str, Tensor]) -> Tensor:
        """Q, (N, ..., b, b), of N layers that are alike with these parameters, brought to the constraint."""
        blocks = values["oft_blocks"]
        skew = blocks - blocks.mT
        if limit := self.alpha * self.weight.shape[0]:
            norms = torch.linalg.vector_norm(skew, dim=list(range(1, skew.dim())), keepdim=True)
            skew = skew * (limit / norms.clamp(min=limit))
        return skew

    def make(
        self, turns: Tensor, values: Mapping[str, Tensor], multiplier: float = 1.0
    ) -> tuple[list[Tensor], list[Blocks]]:
        """From R - I, in the shape of Q: the turns as they are applied at a strength, ``rescale`` in the last."""
        own, blocks = self.applied(turns if multiplier == 1 else turns * multiplier)
        if "rescale" in values:
            factor = blocks[-1].apart(values["rescale"].flatten(1)).transpose(0, 1)
            own[-1] = own[-1] * factor[:, :, None] + torch.diag_embed(factor - 1)
        return own, blocks

    def _make(
        self, values: Mapping[str, Tensor], multiplier: float = 1.0
    ) -> tuple[list[Tensor], list[Blocks]]:
        skew = self.skew(values)
        flat = cayley.turns(skew.reshape(-1, *skew.shape[-2:]))
        return self.make(flat.view(skew.shape), values, multiplier)

    def _make_alone(self, multiplier: float) -> Made:
        own, blocks = self._make({role: getattr(self, role)[None] for role in self.roles}, multiplier)
        return Made([turn[0] for turn in own], blocks)

    def delta(self) -> Tensor:
        return self.delta_at(1.0)

    def delta_at(self, multiplier: float) -> Tensor:
        return self._change(self._make_alone(multiplier)).mT.reshape(self.weight.shape)

    def _change(self, made: Made) -> Tensor:
        """The change of the weight, (in, out)."""
        weight = frozen_weight(self.base).to(self.oft_blocks.dtype)
        return turned(weight.flatten(1).mT.contiguous(), None, made, whole=False)

    def file_tensors(self) -> dict[str, Tensor]:
        own = {role: getattr(self, role) for role in self.roles}
        return {**own, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    # ---------------------------------------------------------------- norms

    def scale_(self, factor: Tensor) -> None:
        self._scale([self], factor.reshape(1), self.change_norms([self]))

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        norms = cls.change_norms(rows)
        cls._scale(rows, limit / norms.clamp(min=limit), norms)
        return norms

    @classmethod
    def change_norms(cls, rows: Sequence[Self]) -> Tensor:
        return cls._norms(rows, stacked(cast("Sequence[Rotated]", rows)))

    @classmethod
    @torch.no_grad()
    def _norms(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> Tensor:
        """Of the changes with these parameters, (N,)."""
        own, blocks = rows[0]._make(values)
        norms = []
        for index, row in enumerate(rows):
            made = Made([turn[index] for turn in own], blocks)
            norms.append(torch.linalg.vector_norm(row._change(made)))
        return torch.stack(norms)

    @classmethod
    @torch.no_grad()
    def _scale(cls, rows: Sequence[Self], factors: Tensor, norms: Tensor) -> None:
        """A rotation times a number is none: all angles are made smaller, until the norm is ``factors`` of ``norms``.

        The norm grows less than in proportion to Q, so a few steps of a fixed point come close from above.
        """
        values = {role: tensor.detach() for role, tensor in stacked(cast("Sequence[Rotated]", rows)).items()}
        tiny = torch.finfo(norms.dtype).tiny

        def shrink(shares: Tensor, name: str) -> Tensor:
            return values[name].mul_(shares.view(-1, *[1] * (values[name].dim() - 1)))

        if limit := rows[0].alpha * rows[0].weight.shape[0]:  # what is above the constraint has no effect
            blocks = values["oft_blocks"]
            sizes = torch.linalg.vector_norm((blocks - blocks.mT).flatten(1), dim=1)
            shrink(torch.where(factors < 1, limit / sizes.clamp(min=limit), 1.0), "oft_blocks")
        for _ in range(8):
            now = cls._norms(rows, values)
            shares = ((factors * norms).clamp(min=tiny) / now.clamp(min=tiny)).clamp(max=1.0)
            shrink(shares, "oft_blocks")
            if "rescale" in values:
                values["rescale"].sub_(1)
                shrink(shares, "rescale").add_(1)
        for name, tensor in values.items():
            torch._foreach_copy_([getattr(row, name).data for row in rows], list(tensor.unbind()))


class Oft(Rotation):
    """Block k of the outputs becomes ``(multiplier · (R_k - I) + I)ᵀ`` of itself.

    How large blocks are: with ``block_size`` the largest divisor of the outputs up to it; else outputs are split by the
    rank as LyCORIS does it (:func:`.lokr.split`), and the smaller part is the block. With ``count`` the rank is the
    number of blocks, as in sd-scripts' networks.oft.
    """

    @classmethod
    def blocks(cls, outputs: int, rank: int, options: Options) -> Shape:
        if most := options.get("block_size"):
            block = next(b for b in range(min(most, outputs), 0, -1) if outputs % b == 0)
            return (outputs // block, block, block)
        if options.get("count"):
            if outputs % rank:
                raise ConfigError(f"oft: {rank} blocks do not divide a layer of {outputs} outputs")
            return (rank, outputs // rank, outputs // rank)
        block, count = split(outputs, rank)
        return (count, block, block)

    def applied(self, turns: Tensor) -> tuple[list[Tensor], list[Blocks]]:
        return [turns], [Blocks(turns.shape[1], turns.shape[2])]


class Boft(Rotation):
    """Butterflies: stage j turns blocks of outputs that lie 2^j·b/2 apart by R_j.

    b is the largest even number up to ``block_size``, or the rank, of which the outputs have 2^p. Raises ConfigError
    where there is none.
    """

    @classmethod
    def blocks(cls, outputs: int, rank: int, options: Options) -> Shape:
        size = options.get("block_size") or rank
        fitting = _butterflies(outputs)
        if not fitting:
            raise ConfigError(
                f"boft: a layer of {outputs} outputs has no butterflies; leave it out or use oft"
            )
        block = max((b for b in fitting if b <= size), default=0)
        if not block:
            raise ConfigError(
                f"boft: a layer of {outputs} outputs needs blocks of {min(fitting)} or more, not {size}; give "
                f"--network_dim or block_size {min(fitting)}"
            )
        count = outputs // block
        return (count.bit_length(), count, block, block)

    def applied(self, turns: Tensor) -> tuple[list[Tensor], list[Blocks]]:
        """Stage j turns outputs (c, s, t, l) by s, one of 2, and l, one of b/2; t is one of 2^j. So stages that follow
        each other make one turn of what all their s and l name, and a few such turns are all."""
        stages, half = turns.shape[1], turns.shape[-1] // 2
        most = max(1, (kernels.turn_width(self.weight) // half).bit_length() - 1)
        parts = -(-stages // most)
        ends = [stages * (part + 1) // parts for part in range(parts)]
        own, blocks, start = [], [], 0
        for end in ends:
            own.append(_joined(turns[:, start:end], 2**start))
            outer = turns.shape[2] // 2 ** (end - 1)
            size, inner = 2 ** (end - start) * half, 2**start
            # Those of the first stages lie side by side.
            blocks.append(Blocks(outer, half, size // half, inner) if start else Blocks(outer, size))
            start = end
        return own, blocks


def _joined(turns: Tensor, inner: int) -> Tensor:
    """R - I of stages (N, stages, n, b, b) that follow each other, as one turn of rows, (N, n', size, size).
    ``inner``: 2^j of the first of them. Each stage joins two turns of the stages before it to one twice as large."""
    count, stages, blocks, width = turns.shape[:4]
    half = width // 2
    change = turns
    for stage in range(stages):
        outer, below = blocks // (inner * 2**stage), 2**stage
        of_stage = turns[:, stage].reshape(count, outer, below, inner, half, 2, half, 2)
        if stage == 0:
            joined = torch.einsum("nodiprls->noislrdp", of_stage)
        else:
            size = below * half
            one = torch.eye(size, device=turns.device, dtype=turns.dtype)
            before = change.view(count, outer, 2, inner, size, below, half)
            rows = (change + one).view(before.shape)
            joined = torch.einsum("nosigdl,nodiprls->noisgrdp", rows, of_stage)
            joined.diagonal(dim1=3, dim2=5).add_(torch.einsum("nosigdp->noigdps", before))
        size = 2 * below * half
        change = joined.reshape(count, outer, inner, size, size)
    return change.flatten(1, 2)


def _butterflies(outputs: int) -> list[int]:
    """Even sizes of blocks of which ``outputs`` has a power of two."""
    sizes = []
    while outputs % 2 == 0:
        sizes.append(outputs)
        outputs //= 2
    return sizes
