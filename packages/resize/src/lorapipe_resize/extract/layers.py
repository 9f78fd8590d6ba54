"""The tensors of two checkpoints side by side, whatever names and types their files have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.checkpoints.opened import Base, BaseFile
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import DTYPE_BITS, FLOAT_DTYPES, decode
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, quote
from lorapipe_engine.models.families import UNET_PREFIX, get_family
from lorapipe_engine.models.keys import Layout, Place, find_layout, locate, text_path, unet_to_ldm, vae_to_ldm
from lorapipe_engine.models.keys import vae_to_diffusers as vae_path

Array = NDArray[Any]

EMA = "model_ema."
# Scales of 8-bit weights by what follows a layer's name, and what else stands beside such weights.
SCALES = ("scale_weight", "weight_scale")
_BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant")
_NOTHING_TO_COMPARE = ("position_ids",)
PIECE = 1 << 20  # numbers compared at once


@dataclass(frozen=True)
class Tensor:
    """A layer's weight or bias inside a checkpoint. ``ldm_path`` tells a UNet layer's block."""

    file: WeightFile
    key: str
    place: Place
    ldm_path: str | None

    @property
    def info(self) -> TensorInfo:
        return self.file.tensors[self.key]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer's own tensor: of a slice, the slice's; of a transposed matrix, as a layer has it."""
        shape = self.info.shape
        if not shape:
            return shape
        own = (self.place.stop - self.place.start, *shape[1:])
        return own[::-1] if self.place.transposed else own

    @property
    def name(self) -> tuple[str, str, str]:
        """What the tensor answers to in any file: part, canonical path, kind."""
        return self.place.part, self.place.path, self.place.kind

    def raw(self, first: int, last: int) -> memoryview:
        """Bytes of numbers ``first`` to ``last`` of the layer's tensor, row-major; not for transposed ones."""
        width = DTYPE_BITS[self.info.dtype] // 8
        offset = self.place.start * math.prod(self.info.shape[1:])
        return self.file.raw(self.key, (offset + first) * width, (offset + last) * width)

    def read(self, dtype: type[np.floating[Any]] = np.float32) -> Array:
        """The layer's tensor in ``dtype``, its scale applied. Raises InputError for types that are no numbers."""
        count = math.prod(self.shape)
        values = self.decode(0, count, dtype).reshape(
            self.shape[::-1] if self.place.transposed else self.shape
        )
        return values.T if self.place.transposed else values

    def decode(self, first: int, last: int, dtype: type[np.floating[Any]] = np.float32) -> Array:
        """Numbers ``first`` to ``last`` as they lie in the file, scaled."""
        info = self.info
        if info.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{self.file.path}: {quote(self.key)} is of type {info.dtype}, not of a float type"
            )
        values = decode(info.dtype, self.raw(first, last), (last - first,)).astype(dtype, copy=False)
        scale = self.scale()
        if scale is None:
            return values
        columns = math.prod(self.info.shape[1:])
        rows = np.arange(first, last) // columns if scale.size > 1 else np.zeros(1, np.intp)
        result: Array = values * scale[rows].astype(dtype)
        return result

    def scale(self) -> Array | None:
        """The scale that 8-bit weights are stored with, (1,) or one a row; None without.

        Raises InputError for scales of other shapes (a block's).
        """
        layer = self.key.removesuffix("weight")
        key = next((layer + name for name in SCALES if layer + name in self.file.tensors), None)
        if key is None or layer == self.key:
            return None
        scale = self.file.read(key).astype(np.float64)
        rows = self.info.shape[0] if self.info.shape else 1
        if scale.size == 1:
            return scale.reshape(1)
        if scale.size == rows == scale.shape[0]:
            return scale.reshape(-1)[self.place.start : self.place.stop]
        raise InputError(
            f"{self.file.path}: {quote(key)} has shape {scale.shape}: weights scaled by blocks are not understood; "
            f"convert the file to fp16 first"
        )


@dataclass(frozen=True)
class Tensors:
    """All tensors of a checkpoint that layers have, and the keys of the rest. ``averages``: keys of EMA copies."""

    base: Base
    layout: Layout
    layers: dict[tuple[str, str, str], Tensor]
    averages: tuple[str, ...]
    others: tuple[str, ...]


def tensors_of(base: Base) -> Tensors:
    """Every tensor of the checkpoint under the name that it answers to in any file."""
    layers: dict[tuple[str, str, str], Tensor] = {}
    averages: list[str] = []
    others: list[str] = []
    layout = Layout()
    for file in base.files:
        if file.part is None:
            layout = find_layout(file.weights.tensors)
        elif file.part == "unet":
            layout = _diffusers_layout(file.weights.tensors)
        for key, in_layers in _tensors_in(file, base.family, layout):
            if key.startswith(EMA):
                averages.append(key)
            elif not in_layers and not key.endswith((*_NOTHING_TO_COMPARE, *_BESIDE)) and key != "scaled_fp8":
                others.append(key)
            for tensor in in_layers:
                layers.setdefault(tensor.name, tensor)
    return Tensors(base, layout, layers, tuple(averages), tuple(others))


def _tensors_in(file: BaseFile, family: str, layout: Layout) -> Iterator[tuple[str, list[Tensor]]]:
    for key, info in file.weights.tensors.items():
        if key.startswith(EMA) or key.endswith(_BESIDE):
            yield key, []
        elif file.part is None:
            places = locate(key, info.shape, family, layout)
            ldm = key.removeprefix(UNET_PREFIX).rpartition(".")[0]
            yield key, [Tensor(file.weights, key, p, ldm if p.part == "unet" else None) for p in places]
        else:
            place = _part_place(file.part, key, info)
            ldm_path = None
            if place and file.part == "unet":
                plain = get_family(family).plain_up_blocks
                ldm_path = unet_to_ldm(place.path, layout.layers_per_block, plain)
            yield key, [Tensor(file.weights, key, place, ldm_path)] if place else []


def _diffusers_layout(keys: Iterable[str]) -> Layout:
    """The layout of a UNet with diffusers' names; the usual one for what its keys do not show."""
    numbers = [int(m[1]) for key in keys if (m := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", key))]
    return Layout(layers_per_block=max(numbers) + 1) if numbers else Layout()


def _part_place(part: str, key: str, info: TensorInfo) -> Place | None:
    path, _, kind = key.rpartition(".")
    if kind not in ("weight", "bias") or not path or not info.shape:
        return None
    if part == "vae":  # old files name its attention otherwise
        path = vae_path(vae_to_ldm(path) or path) or path
    elif part != "unet":
        path = text_path(path)
    return Place(part, path, kind, 0, info.shape[0])


# -------------------------------------------------------------------------------- comparing


def are_equal(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one layer have the same bytes; False where their files store them otherwise."""
    if one.info.dtype != two.info.dtype or one.place.transposed or two.place.transposed:
        return False
    if _flat(one.shape) != _flat(two.shape) or one.scale() is not None or two.scale() is not None:
        return False
    count = math.prod(one.shape)
    return all(
        one.raw(start, min(count, start + PIECE)) == two.raw(start, min(count, start + PIECE))
        for start in range(0, count, PIECE)
    )


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape in which a linear layer and a 1x1 convolution are the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def fit(one: Tensor, two: Tensor) -> bool:
    """Whether the tensors are of the same layer sizes."""
    return _flat(one.shape) == _flat(two.shape)


def are_comparable(one: Tensor, two: Tensor) -> bool:
    """Whether the tensors are of the same sizes, or first convolutions that take 4 and 9 channels."""
    same_but_inputs = (one.shape[:1], one.shape[2:]) == (two.shape[:1], two.shape[2:])
    return fit(one, two) or (len(one.shape) == len(two.shape) == 4 and same_but_inputs)


def distance(tuned: Tensor, base: Tensor) -> tuple[float, float]:
    """‖tuned - base‖² and ‖base‖², in pieces. Of an inpainting model's first layer the first inputs are compared.

    Raises InputError for values that are not finite.
    """
    if tuned.place.transposed or base.place.transposed or not fit(tuned, base):
        inputs = min(tuned.shape[1], base.shape[1]) if len(base.shape) > 1 else 0
        pairs = [(tuned.read()[:, :inputs], base.read()[:, :inputs])]
        return _sums(pairs, tuned, base)
    count = math.prod(base.shape)
    pieces = ((start, min(count, start + PIECE)) for start in range(0, count, PIECE))
    return _sums(((tuned.decode(a, b), base.decode(a, b)) for a, b in pieces), tuned, base)


def _sums(pairs: Any, tuned: Tensor, base: Tensor) -> tuple[float, float]:
    change = whole = 0.0
    for one, two in pairs:
        difference = np.subtract(one, two).reshape(-1)
        change += float(np.dot(difference, difference))
        whole += float(np.dot(two.reshape(-1), two.reshape(-1)))
    if not math.isfinite(change + whole):
        raise not_finite(tuned, base)
    return change, whole


def not_finite(tuned: Tensor, base: Tensor) -> InputError:
    """The error that names the tensor with NaN or infinite values."""
    bad = next((t for t in (tuned, base) if not np.isfinite(t.read()).all()), tuned)
    return InputError(
        f"{bad.file.path}: {quote(bad.key)} has NaN or infinite values; mend or replace the file"
    )
