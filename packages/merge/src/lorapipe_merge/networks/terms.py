"""What one module contributes to its layer: plain factors for a matrix, arrays for what is no matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta import Module, find_rule
from lorapipe_engine.delta.base import flat
from lorapipe_engine.delta.full import CHANGES
from lorapipe_engine.delta.spectra import kernel_of, module_spectrum
from lorapipe_engine.errors import InputError, naming
from lorapipe_engine.networks.factors import Factors
from lorapipe_engine.networks.layers import kernel_in
from lorapipe_engine.networks.read import read_module
from lorapipe_merge.networks.layers import Layer, Part

Array = NDArray[Any]


@dataclass(frozen=True)
class Term:
    """One module's change: ``scale`` · up · down, a matrix (o, i·k·k), and ``arrays``, by what they change
    ("weight", "bias"), times ``ratio``. All float64.

    ``scale`` has the ratio in it. ``kernel``: (k, k) of a convolution, () of a linear layer.
    """

    source: str
    ratio: float
    factors: Factors | None
    scale: float
    kernel: tuple[int, ...]
    arrays: Mapping[str, Array]


def read_terms(layer: Layer, *, whole: bool) -> list[Term]:
    """The terms of a layer. ``whole``: full changes are kept as arrays where all modules of the layer have one.

    Raises InputError naming file and module for tensors that do not fit.
    """
    return [_read_term(part, whole and _are_full(layer)) for part in layer.parts]


def _are_full(layer: Layer) -> bool:
    shapes = {
        part.weights.tensors[part.module.keys["diff"]].shape if "diff" in part.module.keys else None
        for part in layer.parts
    }
    return len(shapes) == 1 and None not in shapes


def _read_term(part: Part, dense: bool) -> Term:
    tensors = read_module(part.weights, part.module)
    arrays = {
        role: tensors.pop(suffix).astype(np.float64)
        for suffix, role in CHANGES.items()
        if suffix in tensors and (suffix != "diff" or dense or tensors[suffix].ndim not in (2, 4))
    }
    try:
        with naming(part.source):
            factors, scale, kernel = _plain_factors(part, tensors)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"{part.source}: module {part.module.name}: its factors cannot be found ({error})"
        ) from error
    return Term(part.source, part.ratio, factors, part.ratio * scale, kernel, arrays)


def _plain_factors(part: Part, tensors: Mapping[str, Array]) -> tuple[Factors | None, float, tuple[int, ...]]:
    """up · down of whatever the module has, its own scale and its kernel. Factors that the file holds stay as they
    are, others come from an SVD that drops nothing but zeros.
    """
    if not tensors.keys() - {"alpha"}:
        return None, 1.0, ()
    name = part.module.name
    rule = find_rule(name, tensors)
    if rule.factors is not None:
        up, down, scale = rule.factors(Module(name=name, tensors=tensors))
        return Factors(up, flat(down)), scale, down.shape[2:]
    decomposed = module_spectrum(name, tensors)
    rank = max(1, int(np.count_nonzero(decomposed.spectrum.singular)))
    return decomposed.spectrum.truncate(rank), decomposed.scale, decomposed.kernel


def common_kernel(layer: str, terms: Sequence[Term], family: str | None) -> tuple[int, ...]:
    """The kernel of the layer's factors; () where they are those of a linear layer.

    Files do not agree on 1x1 kernels, nor do all hold large ones unflattened. Around attention the family tells; else a
    layer is a convolution if one file has a kernel larger than 1x1, or if its name says so. Raises InputError if the
    changes have different sizes.
    """
    matrices = [(term, term.factors) for term in terms if term.factors is not None]
    sizes = {term.source: (f.up.shape[0], f.down.shape[1]) for term, f in matrices}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{source} has {rows} x {columns}" for source, (rows, columns) in sizes.items())
        raise InputError(
            f"the layer {layer} has different sizes: {told}; the networks are for different models"
        )
    kernels = {term.kernel for term, _ in matrices}
    if kernels <= {()}:
        flattened = bool(sizes) and family is not None
        return kernel_in(family, layer, kernel_of(layer, next(iter(sizes.values()))[1]) if flattened else ())
    if len(kernels) == 1:
        return kernel_in(family, layer, kernels.pop())
    large = {kernel for kernel in kernels if max(kernel, default=1) > 1}
    if len(large) > 1 or (large and (1, 1) in kernels):
        told = ", ".join(
            f"{term.source} has {'x'.join(map(str, term.kernel))}" for term, _ in matrices if term.kernel
        )
        raise InputError(
            f"the layer {layer} has different kernels: {told}; the networks are for different models"
        )
    if large:
        return large.pop()
    columns = next(columns for _, columns in sizes.values())
    return kernel_of(layer, columns) or kernel_in(family, layer, ())


def sum_arrays(layer: str, terms: Sequence[Term]) -> dict[str, Array]:
    """Σ ratio · array for the weight and the bias, where terms have them.

    Raises InputError for shapes that differ, and for a weight that other terms change by factors.
    """
    sums: dict[str, Array] = {}
    for term in terms:
        for role, array in term.arrays.items():
            if role in sums and sums[role].shape != array.shape:
                told = ", ".join(
                    f"{other.source} has {other.arrays[role].shape}"
                    for other in terms
                    if role in other.arrays
                )
                raise InputError(f"the {role} of {layer} has different shapes: {told}")
            sums[role] = sums.get(role, np.zeros(array.shape)) + term.ratio * array
    if "weight" in sums and any(term.factors is not None for term in terms):
        told = ", ".join(term.source for term in terms)
        raise InputError(f"{layer} is a matrix in one of {told} and none in another")
    return sums


def strongest_row(terms: Iterable[Term]) -> Array:
    """The row (1, n) of all ``down`` with the largest norm; some row if there are none but zeros."""
    rows = np.concatenate([term.factors.down for term in terms if term.factors is not None])
    best = int(np.argmax(np.einsum("rn,rn->r", rows, rows)))
    row: Array = rows[best : best + 1]
    return row
