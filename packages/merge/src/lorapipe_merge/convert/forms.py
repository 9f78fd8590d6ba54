"""One module in the form that a scheme has for it: the same change, its strength where the scheme keeps it.

Bytes are copied where nothing is folded. A strength goes into ``up`` alone: exact for powers of two, else one
rounding, for which the tensor becomes float32 unless a precision was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta import Module
from lorapipe_engine.delta.base import flat
from lorapipe_engine.delta.full import BIAS_SUFFIXES
from lorapipe_engine.delta.lokr import lokr_factors
from lorapipe_engine.delta.lora import lora_factors
from lorapipe_engine.delta.spectra import kernel_of, module_spectrum, spectral_rule
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.files.dtypes import Encoded, decode, encode
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.networks.algorithms import algorithm_of, is_plain
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.layers import Layer, kernel_around, kernel_in
from lorapipe_engine.networks.read import (
    FLAGS,
    magnitude_shape,
    module_label,
    read_module,
    scale_of,
)
from lorapipe_merge.convert.schemes import Scheme

Array = NDArray[Any]
Shape = tuple[int, ...]
DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
PLAIN = frozenset(
    {"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "lora_up.bias"}
)


@dataclass(frozen=True)
class Form:
    """How a module is to be written. ``strength``: what ``up`` is multiplied with. ``alpha``: the alpha tensor's value,
    None for none. ``rank``: of the factors that are written. ``to_lora``: its change is made into plain factors.
    """

    module: NetworkModule
    layer: Layer
    strength: float = 1.0
    alpha: float | None = None
    rank: int | None = None
    to_lora: bool = False


def is_exact(strength: float) -> bool:
    """Whether a factor changes exponents alone."""
    return strength != 0 and abs(math.frexp(strength)[0]) == 0.5


def why_not(scheme: Scheme, module: NetworkModule, file: WeightFile, *, to_lora: bool = False) -> str | None:
    """Why a module cannot be written in a scheme, as plain factors with ``to_lora``; None if it can."""
    suffixes = set(module.keys)
    if module.algorithm == "unknown":
        return "its tensors are not those of one known algorithm"
    if scheme.lycoris:
        # The name of its tensor is that of the layer's own weight there.
        return f"{module.algorithm} has no form there" if "weight" in suffixes and scheme.dotted else None
    row = algorithm_of(module.algorithm)
    biases = suffixes & set(BIAS_SUFFIXES)
    if biases and (to_lora or (row is not None and row.refits)):
        return f"{', '.join(sorted(biases))} has no form there"
    if to_lora:
        return None
    if row is not None and row.peft and scheme.config and "dora_scale" not in suffixes:
        return None
    if row is None or not row.plain:
        mend = "; --to-lora makes plain factors of it" if row is not None and row.refits else ""
        return f"{module.algorithm} has no form there{mend}"
    if extra := suffixes - PLAIN:
        return f"{', '.join(sorted(extra))} has no form there"
    if "lora_up.bias" in suffixes and not scheme.config:
        return "a bias of factors has no form there"
    if "dora_scale" in suffixes and scheme.name == "diffusers-old":
        return "DoRA has no form there"
    if "dora_scale" in suffixes and not _by_output(module, file):
        return "DoRA by inputs has no form there, only by outputs"
    return None


def _by_output(module: NetworkModule, file: WeightFile) -> bool:
    shape = file.tensors[module.keys["dora_scale"]].shape
    return module.magnitude_per_output or len(shape) < 2 or shape[0] != 1


def plan_form(
    scheme: Scheme, module: NetworkModule, layer: Layer, *, to_lora: bool, alpha: float | None
) -> Form:
    """The form of a module. ``alpha``: the one alpha that all modules get, None to keep each one's own."""
    plain = is_plain(module.algorithm)
    form = Form(
        module, layer, rank=module.rank, to_lora=to_lora and not plain and "dora_scale" not in module.keys
    )
    if form.to_lora or not plain:
        return replace(form, alpha=alpha if form.to_lora and scheme.alphas else None)
    scale = scale_of(module)
    if scheme.alphas:
        rank = module.rank or 1
        own = module.effective_alpha if module.effective_alpha is not None else float(rank)
        if alpha is None:
            return replace(form, alpha=own)
        if alpha == own:
            return replace(form, alpha=own)
        return replace(form, alpha=alpha, strength=scale * rank / alpha)
    return form if scheme.config else replace(form, strength=scale)


# -------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Target:
    """What a file is written as: its scheme, the family of its model, and the precision that was asked for."""

    scheme: Scheme
    family: str
    precision: str


def write_form(
    form: Form, file: WeightFile, target: Target, *, dry: bool = False, only: str | None = None
) -> dict[str, Encoded]:
    """The tensors of a module in its form, by suffix; ``only`` one of them.

    ``dry``: types and shapes, without the data of tensors that need no more than a factor. Raises InputError naming
    module and file for tensors that do not fit.
    """
    check_whole(file, form.module)
    if is_computed(form, target.scheme):
        return _computed(form, file, target)
    if not is_plain(form.module.algorithm):
        return _kept(form, file, target, dry=dry, only=only)
    return _plain(form, file, target, dry=dry, only=only)


def is_computed(form: Form, scheme: Scheme) -> bool:
    """Whether a module's tensors are worked out together, not one by one."""
    keys = form.module.keys
    core = "lora_mid.weight" in keys and not scheme.lycoris
    return form.to_lora or core or ("lokr_t2" in keys and scheme.whole_kronecker)


def _plain(
    form: Form, file: WeightFile, target: Target, *, dry: bool, only: str | None
) -> dict[str, Encoded]:
    module, scheme = form.module, target.scheme
    tensors: dict[str, Encoded] = {}
    kernel = _kernel(form, file, target.family)
    for suffix, key in module.keys.items():
        new, folded = suffix, form.strength if suffix == "lora_up.weight" else 1.0
        if suffix == "lora_up.bias" and not scheme.config:
            # PEFT multiplies this bias by the module's scale; elsewhere it is a change of the layer's bias itself.
            new, folded = "diff_b", scale_of(module)
        if suffix != "alpha" and only in (None, new):
            shape = _shape_for(new, file.tensors[key].shape, kernel, module, scheme)
            tensors[new] = _cast(file, key, shape, folded, target, dry=dry)
    return _with_alpha(tensors, form)


def _kernel(form: Form, file: WeightFile, family: str) -> Shape:
    """The kernel that the layer's factors are written with; () for a linear layer."""
    module, path = form.module, form.layer.path
    down = file.tensors[module.keys["lora_down.weight"]].shape
    around = kernel_around(path, family)
    if around is not None:
        return around
    if len(down) == 4:
        return down[2:]
    return kernel_of(_tree_path(form.layer), down[1])


def _tree_path(layer: Layer) -> str:
    return f"unet.{layer.path}" if layer.part == "unet" else layer.path


def _shape_for(suffix: str, shape: Shape, kernel: Shape, module: NetworkModule, scheme: Scheme) -> Shape:
    if suffix == "lora_up.weight":
        return (shape[0], shape[1], *(1 for _ in kernel))
    if suffix == "lora_down.weight":
        own = (1, 1) if "lora_mid.weight" in module.keys else kernel
        return (shape[0], math.prod(shape[1:]) // math.prod(own), *own)
    if suffix == "dora_scale" and math.prod(shape) != 1:
        return _magnitude_shape(shape, kernel, module, scheme)
    return shape


def _magnitude_shape(shape: Shape, kernel: Shape, module: NetworkModule, scheme: Scheme) -> Shape:
    """kohya's shape tells outputs from inputs; elsewhere magnitudes go by outputs, shaped as PEFT has them."""
    if scheme.lycoris:
        return magnitude_shape(shape, kernel, per_output=module.magnitude_per_output)
    size = math.prod(shape)
    return (1, size, *(1 for _ in kernel)) if kernel else (size,)


def _cast(
    file: WeightFile, key: str, shape: Shape, folded: float, target: Target, *, dry: bool = False
) -> Encoded:
    """A tensor of the file, times ``folded``, in the type that this takes."""
    info = file.tensors[key]
    dtype = DTYPES.get(target.precision, info.dtype)
    if target.precision == "keep" and not target.scheme.alphas and folded != 1.0 and not is_exact(folded):
        dtype = "F32"  # one rounding to float32 in the place of one to half precision
    if dtype not in DTYPES.values() and dtype != "F64":
        dtype = "F16"  # 8-bit types hold no factors that are worked on
    if dry:
        return Encoded(dtype, shape, b"")
    if dtype == info.dtype and folded == 1.0:
        return Encoded(dtype, shape, file.raw(key))
    values = file.read(key)
    if folded != 1.0:
        wide = np.float64 if dtype == "F64" else np.float32
        own = values.flags.writeable and values.dtype == wide
        values = np.multiply(values, folded, out=values if own else None, dtype=wide)
    return replace_shape(encode(values, dtype), shape)


def replace_shape(tensor: Encoded, shape: Shape) -> Encoded:
    """The same bytes under another shape."""
    return Encoded(tensor.dtype, shape, tensor.data)


def _with_alpha(tensors: dict[str, Encoded], form: Form) -> dict[str, Encoded]:
    if form.alpha is not None:
        tensors["alpha"] = encode(np.asarray(form.alpha, np.float32), "F32")
    return tensors


def _kept(
    form: Form, file: WeightFile, target: Target, *, dry: bool = False, only: str | None = None
) -> dict[str, Encoded]:
    """LyCORIS' algorithms as they are; what PEFT's configuration says of them becomes alphas."""
    module = form.module
    tensors: dict[str, Encoded] = {}
    configured = module.scale is not None and not target.scheme.config
    for suffix, key in module.keys.items():
        info = file.tensors[key]
        if suffix in FLAGS:
            tensors[suffix] = Encoded(info.dtype, info.shape, b"" if dry else file.raw(key))
        elif only in (None, suffix):
            # LoKr without a rank has no place for a strength but its first factor.
            folded = module.scale if configured and suffix == "lokr_w1" and not module.rank else None
            tensors[suffix] = _cast(file, key, info.shape, 1.0 if folded is None else folded, target, dry=dry)
    if configured and module.rank:
        tensors["alpha"] = encode(np.asarray((module.scale or 0.0) * module.rank, np.float32), "F32")
    elif "alpha" not in module.keys and module.algorithm in ("loha", "lokr") and target.scheme.alphas:
        # LyCORIS cannot read these without one; where LoKr has no rank it counts for nothing.
        tensors["alpha"] = encode(np.asarray(module.rank or 1, np.float32), "F32")
    return tensors


def _computed(form: Form, file: WeightFile, target: Target) -> dict[str, Encoded]:
    label = module_label(file, form.module)
    tensors = read_module(file, form.module)
    if not form.to_lora and is_plain(form.module.algorithm):
        # A Tucker core, multiplied into "down": the same rank.
        up, down = lora_factors(Module(name=label, tensors=tensors))
        return _encoded_factors(form, file, up * form.strength, down, target)
    if not form.to_lora:
        return _whole_lokr(form, file, target, tensors)
    spectrum = module_spectrum(label, tensors)
    rank = max(1, int(np.count_nonzero(spectrum.spectrum.singular)))
    factors = spectrum.spectrum.truncate(rank)
    alpha = form.alpha
    if alpha is None and (target.scheme.alphas or target.scheme.config):
        alpha = float(rank)
    strength = spectrum.scale * (1.0 if alpha is None else rank / alpha)
    kernel = spectrum.kernel or kernel_of(_tree_path(form.layer), factors.down.shape[1])
    spectrum = replace(spectrum, kernel=kernel_in(target.family, form.module.name, kernel))
    down = factors.down.reshape(spectrum.down_shape(rank))
    form = replace(form, alpha=alpha if target.scheme.alphas else None)
    return _encoded_factors(form, file, factors.up * strength, down, target)


def _whole_lokr(
    form: Form, file: WeightFile, target: Target, tensors: Mapping[str, Array]
) -> dict[str, Encoded]:
    """LoKr with the core of its second factor multiplied out, and its strength in it."""
    kept = _kept(form, file, target)
    module = Module(name=module_label(file, form.module), tensors=tensors)
    _, second = lokr_factors(module)
    strength = module.scale(tensors["lokr_w2_b"].shape[0])
    largest = kept["lokr_t2"].dtype
    for suffix in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"):
        kept.pop(suffix)
    kept["lokr_w2"] = encode(second * strength, DTYPES.get(target.precision, largest))
    if "lokr_w1_b" in tensors:  # readers divide the alpha by its rank now
        kept["alpha"] = encode(np.asarray(tensors["lokr_w1_b"].shape[0], np.float32), "F32")
    return kept


def _encoded_factors(
    form: Form, file: WeightFile, up: Array, down: Array, target: Target
) -> dict[str, Encoded]:
    largest = max((file.tensors[key] for key in form.module.keys.values()), key=lambda info: info.size)
    kept = largest.dtype if largest.dtype in DTYPES.values() else "F32"
    dtype = DTYPES.get(target.precision, kept)
    kernel = down.shape[2:]
    up_shape = (up.shape[0], up.shape[1], *(1 for _ in kernel))
    encoded = {
        "lora_down.weight": encode(down, dtype),
        "lora_up.weight": replace_shape(encode(flat(up), dtype), up_shape),
    }
    if "dora_scale" in form.module.keys:
        key = form.module.keys["dora_scale"]
        shape = _magnitude_shape(file.tensors[key].shape, kernel, form.module, target.scheme)
        encoded["dora_scale"] = _cast(file, key, shape, 1.0, target)
    for suffix in form.module.keys.keys() & set(BIAS_SUFFIXES):
        key = form.module.keys[suffix]
        encoded[suffix] = _cast(file, key, file.tensors[key].shape, 1.0, target)
    return _with_alpha(encoded, form)


def can_be_lora(module: NetworkModule, file: WeightFile) -> bool:
    """Whether plain factors can be made of what the module changes of a weight."""
    if is_plain(module.algorithm):
        return False
    shapes = {suffix: file.tensors[key].shape for suffix, key in module.keys.items()}
    return "dora_scale" not in shapes and spectral_rule(module.name, shapes) is not None


# Types whose numbers are not finite where all bits of the exponent are set.
_EXPONENTS: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F80_0000),
}


def finite(tensor: Encoded) -> bool:
    """Whether all numbers of a written tensor are finite."""
    if tensor.dtype not in _EXPONENTS:
        return bool(np.isfinite(decode(tensor.dtype, tensor.data, tensor.shape)).all())
    kind, exponent = _EXPONENTS[tensor.dtype]
    bits = np.frombuffer(tensor.data, np.dtype(kind).newbyteorder("<"))
    return not bits.size or bool(np.bitwise_and(bits, kind(exponent)).max() < exponent)
