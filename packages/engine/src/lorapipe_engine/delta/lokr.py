"""LoKr: s · w1 ⊗ w2 (KronA, arXiv:2212.10650; LyCORIS file layout).

Each of w1 and w2 is stored whole (``lokr_w1`` (o1, i1), ``lokr_w2`` (o2, i2) or (o2, i2, k, k)) or as two
factors (``_a`` (o, r), ``_b`` (r, i·k·k)), w2 also with a Tucker core ``lokr_t2`` (r, r, k, k), ``_a`` (r,
o2) and ``_b`` (r, i2). s = alpha / r, r the rows of ``lokr_w2_b``, else of ``lokr_w1_b``; with both stored
whole s = 1 whatever alpha says.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorapipe_engine.delta.base import STEPS, Array, Module, Rule, Shapes, flat
from lorapipe_engine.delta.loha import fits_product, tucker_product
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum, kernel_of
from lorapipe_engine.networks.factors import kron_spectrum


def lokr_factors(module: Module) -> tuple[Array, Array]:
    """(w1, w2): w1 is (o1, i1); w2 is (o2, i2), (o2, i2, k, k), or (o2, i2·k·k) where it was stored
    flattened.
    """
    if module.has("lokr_w1"):
        first = module.need("lokr_w1", 2)
    else:
        parts = module.need("lokr_w1_a", 2), module.need("lokr_w1_b", 2)
        first = module.product(*parts, "lokr_w1_a and lokr_w1_b")
    if module.has("lokr_w2"):
        return first, module.need("lokr_w2", 2, 4)
    left, right = module.need("lokr_w2_a", 2), module.need("lokr_w2_b", 2)
    if module.has("lokr_t2"):
        return first, tucker_product(module, module.need("lokr_t2", 4), left, right, "lokr_t2")
    return first, module.product(left, right, "lokr_w2_a and lokr_w2_b")


def lokr_scale(module: Module) -> float:
    for suffix in ("lokr_w2_b", "lokr_w1_b"):
        if module.has(suffix):
            return module.scale(module.need(suffix, 2).shape[0])
    return 1.0


def kron(first: Array, second: Array) -> Array:
    """first ⊗ second over the two leading dimensions: (o1·o2, i1·i2, ...)."""
    (o1, i1), (o2, i2) = first.shape, second.shape[:2]
    outer = first.reshape(o1, 1, i1, 1, *(1 for _ in second.shape[2:])) * second.reshape(
        1, o2, 1, i2, *second.shape[2:]
    )
    result: Array = outer.reshape(o1 * o2, i1 * i2, *second.shape[2:])
    return result


def _change(module: Module, multiplier: float) -> Array:
    first, second = lokr_factors(module)
    return kron(first * np.asarray(multiplier * lokr_scale(module), module.dtype), second)


def _spectrum(module: Module, vectors: int | None, _decompose: Decompose) -> ModuleSpectrum:
    first, second = lokr_factors(module)
    matrix = flat(second)
    limit = min(first.shape) * min(matrix.shape)
    of_product = kron_spectrum(first, matrix, limit if vectors is None else vectors)
    stored = [s for s in ("lokr_w2_b", "lokr_w1_b") if module.has(s)]
    kernel = second.shape[2:] or kernel_of(module.name, first.shape[1] * matrix.shape[1])
    return ModuleSpectrum(
        algorithm="lokr",
        spectrum=of_product,
        scale=lokr_scale(module),
        rank=module.tensors[stored[0]].shape[0] if stored else limit,
        limit=limit,
        kernel=kernel,
    )


def _fits(shapes: Shapes) -> bool:
    for side in ("lokr_w1", "lokr_w2"):
        if side in shapes:
            if len(shapes[side]) not in ((2,) if side == "lokr_w1" else (2, 4)):
                return False
        elif not fits_product(shapes, side, side.replace("w", "t")):
            return False
    return True


def _row_axes(tensors: Mapping[str, Array], rows: int) -> tuple[Mapping[str, int] | None, int]:
    first = next((tensors[s] for s in ("lokr_w1", "lokr_w1_a") if s in tensors), None)
    if first is None or first.shape[0] == 0 or rows % first.shape[0]:
        return None, 0
    return {"lokr_w1": STEPS, "lokr_w1_a": STEPS}, rows // first.shape[0]


LOKR = Rule(
    name="lokr",
    change=_change,
    spectrum=_spectrum,
    row_axes=_row_axes,
    zeros=(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),),
    uses_alpha=lambda suffixes: not {"lokr_w1", "lokr_w2"} <= set(suffixes),
    fits=_fits,
    needs=(("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a")),
    pairs=(("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
)
