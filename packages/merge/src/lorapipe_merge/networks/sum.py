"""The sum of one layer's changes as the tensors of a plain LoRA module: exact, or the best of a given rank.

The factors of all networks are stacked: [s₁U₁ s₂U₂] · [D₁; D₂] = Σ sⱼUⱼDⱼ, exactly. ``svd`` takes the spectrum of that
stack through QR and a small SVD and keeps its largest values (Eckart-Young: no other factors of that rank come
closer). Scales are in the factors, and one alpha serves all modules, as diffusers' loader needs it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta.full import BIAS_SUFFIXES
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import DTYPE_BITS, Encoded, decode, encode
from lorapipe_engine.networks.factors import (
    Factors,
    Spectrum,
    dense_spectrum,
    product_norm,
    rounding_norm,
    spectrum,
    stack,
)
from lorapipe_engine.networks.ranks import Candidate, RankRule
from lorapipe_engine.networks.underflow import check_kept, tensor_loss, underflow_of
from lorapipe_merge.networks.layers import Layer
from lorapipe_merge.networks.report import LayerReport
from lorapipe_merge.networks.terms import Term, common_kernel, read_terms, strongest_row, sum_arrays

Array = NDArray[Any]
Mode = Literal["concat", "svd"]

ALPHA_DTYPE = "F32"
# Names of what is no matrix: of a layer, and of a norm.
_LAYER_SUFFIXES = {"weight": "diff", "bias": "diff_b"}
_NORM_SUFFIXES = {"weight": "w_norm", "bias": "b_norm"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to add up. ``rule`` chooses the ranks of ``svd``, its ``conv_rank`` those of kernels larger than 1x1.

    ``dtype``: "F16", "BF16", "F32" or "F64". ``family``: of the model, None if it is not known.
    ``alpha``: what every module gets.
    """

    mode: Mode
    rule: RankRule
    dtype: str
    shuffle: int | None
    family: str | None
    allow_nonfinite: bool
    alpha: float


@dataclass(frozen=True)
class Summed:
    """A layer done: its tensors in the new file, and what happened to it."""

    tensors: dict[str, Encoded]
    report: LayerReport


@dataclass(frozen=True)
class Measured:
    """A layer before its rank is chosen: bytes that it takes whatever its rank, what its ranks are worth (None where
    it has none), and types and shapes of its tensors at the largest rank that it can get.
    """

    fixed: int
    candidate: Candidate | None
    largest: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class _Stack:
    """The terms of a layer as one pair of factors. ``alive``: the change is not zero."""

    factors: Factors
    kernel: tuple[int, ...]
    alive: bool

    @property
    def limit(self) -> int:
        """The largest rank that the change can have."""
        (rows, rank), columns = self.factors.up.shape, self.factors.down.shape[1]
        return min(int(rows), int(rank), int(columns))

    @property
    def conv(self) -> bool:
        return max(self.kernel, default=1) > 1

    def spectrum(self) -> Spectrum:
        up, down = self.factors
        # With more ranks than rows the dense matrix is the smaller one.
        if up.shape[1] > min(up.shape[0], down.shape[1]):
            return dense_spectrum(up @ down)
        return spectrum(up, down)


def sum_layer(layer: Layer, rank: int | None, settings: Settings) -> Summed:
    """Add up one layer; ``rank`` where it is decided already.

    Raises InputError for changes that do not fit each other, and for results that the number type cannot hold.
    """
    terms = read_terms(layer, whole=settings.mode == "concat")
    arrays = sum_arrays(layer.name, terms)
    report = LayerReport(name=layer.name, networks=len(layer.parts))
    tensors, report = _write_arrays(layer, arrays, report, settings)
    stacked = _stack_terms(layer, terms, settings)
    if stacked is None:
        return Summed(tensors, report)
    exact, norm, lost = _choose(stacked, rank, settings)
    exact = _shuffled(exact, layer.name, settings.shuffle)
    new, rounded = _encode_factors(layer, exact, stacked.kernel, settings)
    cast = rounding_norm(exact, rounded)
    if stacked.alive:
        check_kept(layer.name, exact, rounded, settings.dtype)
    report = replace(
        report,
        rank=exact.up.shape[1],
        stacked=stacked.factors.up.shape[1],
        kernel=stacked.kernel,
        norm=norm,
        truncation=lost / norm if norm else 0.0,
        cast=cast / norm if norm else 0.0,
        underflow=report.underflow + underflow_of(exact, rounded),
    )
    return Summed(tensors | new, report)


def measure_layer(layer: Layer, settings: Settings) -> Measured:
    """What a layer costs and what its ranks are worth, for the choice of ranks within a size."""
    terms = read_terms(layer, whole=False)
    kinds = {
        _array_key(layer, role): (settings.dtype, array.shape)
        for role, array in sum_arrays(layer.name, terms).items()
    }
    item = DTYPE_BITS[settings.dtype] // 8
    fixed = sum(math.prod(shape) for _, shape in kinds.values()) * item
    stacked = _stack_terms(layer, terms, settings)
    if stacked is None:
        return Measured(fixed, None, kinds)
    singular = stacked.spectrum().singular if stacked.alive else np.zeros(1)
    bound = min(settings.rule.bound(conv=stacked.conv), stacked.limit)
    up, down, alpha = _factor_keys(layer.name)
    shapes = _factor_shapes(stacked.factors, stacked.kernel, bound)
    kinds |= {key: (settings.dtype, shape) for key, shape in zip((up, down), shapes, strict=True)}
    if alpha:
        kinds[alpha] = (ALPHA_DTYPE, ())
        fixed += DTYPE_BITS[ALPHA_DTYPE] // 8
    sides = stacked.factors.up.shape[0] + stacked.factors.down.shape[1]
    return Measured(fixed, Candidate(np.square(singular), sides * item, bound), kinds)


# -------------------------------------------------------------------------------- factors


def _stack_terms(layer: Layer, terms: Sequence[Term], settings: Settings) -> _Stack | None:
    """Everything that is a matrix, stacked; what is exactly zero is left out. None where nothing is a matrix.

    A layer whose change is zero altogether keeps one rank, its up zero and its down the strongest row of the files,
    so that the result still shows what was never trained.
    """
    kernel = common_kernel(layer.name, terms, settings.family)
    matrices = [(term.factors, term.scale) for term in terms if term.factors is not None]
    if not matrices:
        return None
    kept = [(f, scale) for f, scale in matrices if scale and np.any(f.up) and np.any(f.down)]
    if not kept:
        rows = matrices[0][0].up.shape[0]
        return _Stack(Factors(np.zeros((rows, 1)), strongest_row(terms)), kernel, False)
    return _Stack(stack(kept), kernel, True)


def _choose(stacked: _Stack, rank: int | None, settings: Settings) -> tuple[Factors, float, float]:
    """The new factors, the Frobenius norm of the change, and that of what they leave out."""
    if not stacked.alive:
        return stacked.factors, 0.0, 0.0
    if settings.mode == "concat" or (settings.allow_nonfinite and not _are_finite(stacked.factors)):
        return _balanced(stacked.factors), product_norm(*stacked.factors), 0.0
    spectrum = stacked.spectrum()
    # Ratios are in these values, so that only the largest can say what is small.
    relative = spectrum.singular / (spectrum.singular[0] or 1.0)
    limit = min(stacked.limit, max(1, int(np.count_nonzero(relative))))
    chosen = min(rank, limit) if rank else settings.rule.choose(relative, limit=limit, conv=stacked.conv)
    return spectrum.truncate(chosen), spectrum.norm(), spectrum.dropped(chosen)


def _balanced(factors: Factors) -> Factors:
    """Each column of up and its row of down brought to about one norm by a power of two, which rounds nothing.

    Trained factors differ in size by orders of magnitude, and fp16 has few digits for the smallest numbers.
    """
    up, down = np.linalg.norm(factors.up, axis=0), np.linalg.norm(factors.down, axis=1)
    share = np.divide(down, up, out=np.ones_like(up), where=(up > 0) & (down > 0))
    share[~np.isfinite(share)] = 1.0
    power = np.exp2(np.round(np.log2(share) / 2))
    return Factors(factors.up * power, factors.down / power[:, None])


def _shuffled(factors: Factors, name: str, seed: int | None) -> Factors:
    """The ranks in another order: one that seed and name decide, whatever thread comes first."""
    if seed is None:
        return factors
    order = np.random.default_rng([abs(seed), zlib.crc32(name.encode())]).permutation(factors.up.shape[1])
    return Factors(factors.up[:, order], factors.down[order])


def _are_finite(factors: Factors) -> bool:
    return all(bool(np.isfinite(side).all()) for side in factors)


# -------------------------------------------------------------------------------- tensors


def _factor_keys(name: str) -> tuple[str, str, str | None]:
    """Keys of up, down and alpha. Names with dots, of models that kohya has no names for, have PEFT's suffixes and no
    alpha, which means a scale of 1.
    """
    if "." in name:
        return f"{name}.lora_B.weight", f"{name}.lora_A.weight", None
    return f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha"


def _factor_shapes(
    factors: Factors, kernel: tuple[int, ...], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of up and down in the file."""
    columns = factors.down.shape[1] // math.prod(kernel)
    return (factors.up.shape[0], rank, *(1 for _ in kernel)), (rank, columns, *kernel)


def _encode_factors(
    layer: Layer, factors: Factors, kernel: tuple[int, ...], settings: Settings
) -> tuple[dict[str, Encoded], Factors]:
    """The tensors of the factors, and the factors as they are after rounding."""
    rank = factors.up.shape[1]
    up_key, down_key, alpha_key = _factor_keys(layer.name)
    shapes = _factor_shapes(factors, kernel, rank)
    tensors = {}
    rounded = []
    strength = rank / settings.alpha if alpha_key else 1.0
    sides = (factors.up * strength if strength != 1.0 else factors.up, factors.down)
    for key, side, shape in zip((up_key, down_key), sides, shapes, strict=True):
        encoded, decoded = _encode(layer, side, settings)
        tensors[key] = Encoded(encoded.dtype, shape, encoded.data)
        rounded.append(decoded)
    if alpha_key:
        tensors[alpha_key] = encode(np.asarray(settings.alpha), ALPHA_DTYPE)
    # As float64: dividing float32 would round once more, and be told as a loss of the file's.
    return tensors, Factors(rounded[0].astype(np.float64) / strength, rounded[1])


def _write_arrays(
    layer: Layer, arrays: Mapping[str, Array], report: LayerReport, settings: Settings
) -> tuple[dict[str, Encoded], LayerReport]:
    """The tensors of what is no product of factors, and the report with their norms and losses.

    Raises InputError where the number type cannot hold them, or makes zeros of the whole change.
    """
    tensors = {}
    for role, array in arrays.items():
        encoded, rounded = _encode(layer, array, settings)
        tensors[_array_key(layer, role)] = encoded
        if role == "weight" or not _changes_weight(layer):
            check_kept(layer.name, [array], [rounded], settings.dtype)
        loss = tensor_loss(layer.name, array, rounded)
        norm = float(np.linalg.norm(array))
        report = replace(
            report, arrays=(*report.arrays, (norm, loss.share)), underflow=report.underflow + loss.underflow
        )
    return tensors, report


def _changes_weight(layer: Layer) -> bool:
    return any(part.module.keys.keys() - {*BIAS_SUFFIXES, "alpha"} for part in layer.parts)


def _array_key(layer: Layer, role: str) -> str:
    norm = any(part.module.algorithm == "norm" for part in layer.parts)
    return f"{layer.name}.{(_NORM_SUFFIXES if norm else _LAYER_SUFFIXES)[role]}"


def _encode(layer: Layer, array: Array, settings: Settings) -> tuple[Encoded, Array]:
    """An array in the file's type, and what that type makes of it. Raises InputError for numbers that do not fit."""
    with np.errstate(over="ignore"):
        source = array if settings.dtype == "F64" else array.astype(np.float32)
    encoded = encode(source, settings.dtype)
    rounded = decode(encoded.dtype, encoded.data, encoded.shape)
    if not settings.allow_nonfinite and not np.isfinite(rounded).all():
        told = ", ".join(part.source for part in layer.parts)
        raise InputError(
            f"{layer.name} of {told}: the sum's values do not fit {settings.dtype}; give --save-precision bf16 or fp32"
        )
    return encoded, rounded
