"""Diag-OFT (arXiv:2306.07280) and BOFT (arXiv:2311.06243): the rows of a weight turned by small rotations.

LyCORIS' file layout: ``oft_blocks`` (n, b, b), in BOFT (stages, n, b, b), with n·b = out. Q = B - Bᵀ is brought to the
norm constraint·out where that is above 0 and exceeded (norm over all blocks); R = (I + Q)(I - Q)⁻¹. ``rescale`` (out,
1, ...) multiplies the rows of the result, at any multiplier. A file keeps the constraint as alpha. There is no rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.adapters.lokr import split
from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size
from lorapipe_engine.nn.change import frozen_weight, layer_shape, parameter
from lorapipe_engine.nn.options import flag, not_negative, whole

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

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        return cls(base, size, dropouts, options)

    @classmethod
    @abstractmethod
    def blocks(cls, outputs: int, rank: int, options: Options) -> Shape:
        """Shape of ``oft_blocks`` for a layer. Raises ConfigError where none fits."""

    @abstractmethod
    def turned(self, rows: Tensor, turns: Tensor) -> Tensor:
        """The change of ``rows`` (..., out) by ``turns``, rotations minus one in the shape of ``oft_blocks``."""

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
        if self.bias is not None:
            plain = plain - self.bias
        change = self._moved(plain, self.multiplier)
        if self.training and self.dropouts.module:
            change = change * (torch.rand((), device=x.device) >= self.dropouts.module).to(x.dtype)
        return out + (change.movedim(-1, 1) if is_conv else change)

    def _moved(self, rows: Tensor, multiplier: float) -> Tensor:
        """The change of ``rows`` (..., out)."""
        change = self.turned(rows, (self._turns() * multiplier).to(rows.dtype))
        if "rescale" in self._parameters:
            factor = self.rescale.flatten()
            change = change * factor.to(rows.dtype) + rows * (factor - 1).to(rows.dtype)
        return change

    def _turns(self) -> Tensor:
        """R - I of every block, as 2Q(I - Q)⁻¹, so that small turns lose no digits."""
        skew = self.oft_blocks - self.oft_blocks.mT
        if limit := self.alpha * self.weight.shape[0]:
            skew = skew * (limit / torch.linalg.vector_norm(skew).clamp(min=limit))
        one = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype)
        # I - Q of a skew Q is never singular, so there is nothing to check, and nothing waits for the device.
        inverse: Tensor = torch.linalg.inv_ex(one - skew)[0]
        return 2 * skew @ inverse

    def delta(self) -> Tensor:
        return self.delta_at(1.0)

    def delta_at(self, multiplier: float) -> Tensor:
        weight = frozen_weight(self.base).to(self.oft_blocks.dtype)
        return self._moved(weight.flatten(1).mT, multiplier).mT.reshape(weight.shape)

    def file_tensors(self) -> dict[str, Tensor]:
        own = {role: getattr(self, role) for role in self.roles}
        return {**own, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def scale_(self, factor: Tensor) -> None:
        """A rotation times a number is none: all angles are made smaller, until the norm is ``factor`` of what it was.

        The norm grows less than in proportion to Q, so a few steps of a fixed point come close from above.
        """
        before = self.delta().square().sum().sqrt()
        tiny = torch.finfo(before.dtype).tiny
        blocks, limit = self.oft_blocks.data, self.alpha * self.weight.shape[0]
        if limit:  # what is above the constraint has no effect
            norm = torch.linalg.vector_norm(blocks - blocks.mT)
            blocks.mul_((limit / norm.clamp(min=limit)) * (factor < 1) + (factor >= 1))
        rescaled = "rescale" in self._parameters
        for _ in range(8):
            now = self.delta().square().sum().sqrt()
            share = ((factor * before).clamp(min=tiny) / now.clamp(min=tiny)).clamp(max=1.0)
            blocks.mul_(share)
            if rescaled:
                self.rescale.data.sub_(1).mul_(share).add_(1)


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

    def turned(self, rows: Tensor, turns: Tensor) -> Tensor:
        count, size = turns.shape[0], turns.shape[1]
        parts = rows.reshape(*rows.shape[:-1], count, 1, size)
        return (parts @ turns).reshape(rows.shape)


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

    def turned(self, rows: Tensor, turns: Tensor) -> Tensor:
        stages, count, size = turns.shape[0], turns.shape[1], turns.shape[2]
        change = torch.zeros_like(rows)
        for stage in range(stages):
            half = 2**stage * size // 2
            now = (
                (rows + change).reshape(*rows.shape[:-1], -1, 2, half).transpose(-1, -2)
            )  # (..., c, half, 2)
            parts = now.reshape(*rows.shape[:-1], count, 1, size)
            turned = (parts @ turns[stage].mT).reshape(now.shape)
            change = change + turned.transpose(-1, -2).reshape(rows.shape)
        return change


def _butterflies(outputs: int) -> list[int]:
    """Even sizes of blocks of which ``outputs`` has a power of two."""
    sizes = []
    while outputs % 2 == 0:
        sizes.append(outputs)
        outputs //= 2
    return sizes
