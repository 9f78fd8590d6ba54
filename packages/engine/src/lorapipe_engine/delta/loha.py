"""LoHa: s · (w1_a·w1_b) ∘ (w2_a·w2_b) (FedPara, arXiv:2108.06098; LyCORIS file layout).

``hada_wN_a`` (o, r), ``hada_wN_b`` (r, i·k·k). With Tucker cores ``hada_tN`` (r, r, k, k) the outer factors
are ``hada_wN_a`` (r, o) - transposed - and ``hada_wN_b`` (r, i). s = alpha / r with r the rows of
``hada_w1_b``; it is applied once (LyCORIS' own merge applies it twice, its training does not).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule, Shapes, flat
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum, kernel_of
from lorapipe_engine.networks.factors import Factors, hadamard_factors, spectrum

# Above this rank of the Khatri-Rao factors a dense SVD is the smaller work.
LARGEST_KHATRI_RAO = 512


def hada_factor(module: Module, which: int) -> Array:
    """One side of the Hadamard product: (o, i·k·k), or (o, i, k, k) with a Tucker core."""
    left, right = module.need(f"hada_w{which}_a", 2), module.need(f"hada_w{which}_b", 2)
    core_name = f"hada_t{which}"
    if not module.has(core_name):
        return module.product(left, right, f"hada_w{which}_a and hada_w{which}_b")
    return tucker_product(module, module.need(core_name, 4), left, right, core_name)


def tucker_product(module: Module, core: Array, left: Array, right: Array, name: str) -> Array:
    """Σ_ab core[a, b, k, l] · left[a, o] · right[b, i] as (o, i, k, l)."""
    if core.shape[0] != left.shape[0] or core.shape[1] != right.shape[0]:
        raise module.error(f"{name} {core.shape} does not fit its factors {left.shape} and {right.shape}")
    result: Array = np.einsum("abkl,ao,bi->oikl", core, left, right, optimize=True)
    return result


def loha_scale(module: Module) -> float:
    return module.scale(module.need("hada_w1_b", 2).shape[0])


def _change(module: Module, multiplier: float) -> Array:
    first, second = hada_factor(module, 1), hada_factor(module, 2)
    if first.shape != second.shape:  # one with a Tucker core, one flattened
        first, second = flat(first), flat(second)
    if first.shape != second.shape:
        raise module.error(f"the two factors have shapes {first.shape} and {second.shape}")
    result: Array = first * (multiplier * loha_scale(module)) * second
    return result


def _spectrum(module: Module, _vectors: int | None, decompose: Decompose) -> ModuleSpectrum:
    sides = [_hada_side(module, which) for which in (1, 2)]
    (one, kernel), (two, _) = sides
    if (one.up.shape[0], one.down.shape[1]) != (two.up.shape[0], two.down.shape[1]):
        raise module.error("its two factors have different sizes")
    rank = one.up.shape[1] * two.up.shape[1]
    smaller = min(one.up.shape[0], one.down.shape[1])
    if rank > min(LARGEST_KHATRI_RAO, smaller):
        of_product = decompose(flat(hada_factor(module, 1)) * flat(hada_factor(module, 2)))
    else:
        of_product = spectrum(*hadamard_factors(one, two))
    return ModuleSpectrum(
        algorithm="loha",
        spectrum=of_product,
        scale=loha_scale(module),
        rank=one.up.shape[1],
        limit=min(rank, smaller),
        kernel=kernel,
    )


def _hada_side(module: Module, which: int) -> tuple[Factors, tuple[int, ...]]:
    """One side of the Hadamard product as factors (o, r) and (r, i·k·k), and the kernel."""
    left, right = module.need(f"hada_w{which}_a", 2), module.need(f"hada_w{which}_b", 2)
    core_name = f"hada_t{which}"
    if not module.has(core_name):
        if left.shape[1] != right.shape[0]:
            raise module.error(f"hada_w{which}_a {left.shape} and hada_w{which}_b {right.shape} do not fit")
        return Factors(left, right), kernel_of(module.name, right.shape[1])
    core = module.need(core_name, 4)
    if core.shape[:2] != (left.shape[0], right.shape[0]):
        raise module.error(f"{core_name} {core.shape} does not fit {left.shape} and {right.shape}")
    down = np.einsum("abkl,bi->aikl", core, right, optimize=True)
    return Factors(left.T, flat(down)), core.shape[2:]


def fits_product(shapes: Shapes, side: str, core: str) -> bool:
    """Whether ``side``_a and ``side``_b can be multiplied, with the Tucker core between them where there is one."""
    left, right = shapes[f"{side}_a"], shapes[f"{side}_b"]
    if len(left) != 2 or len(right) != 2:
        return False
    if core not in shapes:
        return left[1] == right[0]
    return len(shapes[core]) == 4 and shapes[core][:2] == (left[0], right[0])


def _fits(shapes: Shapes) -> bool:
    return all(fits_product(shapes, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))


def _row_axes(tensors: Mapping[str, Array], _rows: int) -> tuple[Mapping[str, int], int]:
    return {f"hada_w{n}_a": 1 if f"hada_t{n}" in tensors else 0 for n in (1, 2)}, 1


LOHA = Rule(
    name="loha",
    change=_change,
    spectrum=_spectrum,
    row_axes=_row_axes,
    zeros=(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),),
    uses_alpha=lambda _suffixes: True,
    fits=_fits,
    needs=(("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    pairs=(("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"), ("hada_w1_a", "hada_w2_a")),
)
