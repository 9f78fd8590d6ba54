"""LoHa: s · (w1_a·w1_b) ∘ (w2_a·w2_b) (FedPara, arXiv:2108.06098; LyCORIS file layout).

``hada_wN_a`` (o, r), ``hada_wN_b`` (r, i·k·k). With Tucker cores ``hada_tN`` (r, r, k, k) the outer factors
are ``hada_wN_a`` (r, o) - transposed - and ``hada_wN_b`` (r, i). s = alpha / r with r the rows of
``hada_w1_b``; it is applied once (LyCORIS' own merge applies it twice, its training does not).
"""

from __future__ import annotations

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule


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
    if first.shape != second.shape:
        raise module.error(f"the two factors have shapes {first.shape} and {second.shape}")
    result: Array = first * (multiplier * loha_scale(module)) * second
    return result


LOHA = Rule("loha", _change)
