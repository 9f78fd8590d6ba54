"""LoRA, LoCon and DyLoRA: s · up · down (arXiv:2106.09685), also with a Tucker core for kernels (LyCORIS).

Shapes for a linear layer: ``lora_down.weight`` (r, in), ``lora_up.weight`` (out, r); for a convolution
(r, in, k, k) and (out, r, 1, 1). With ``lora_mid.weight`` (r, r, k, k) the down part is (r, in, 1, 1).
DyLoRA files have the same tensors.
"""

from __future__ import annotations

import math

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule, Shapes, flat
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum
from lorapipe_engine.networks.factors import spectrum


def lora_factors(module: Module) -> tuple[Array, Array]:
    """(up, down) with ``up`` (o, r) and ``down`` (r, i) or (r, i, k, k), a Tucker core folded into ``down``.

    The scale alpha / r is not in them; r is the first dimension of the file's ``lora_down``.
    """
    up, down = module.need("lora_up.weight", 2, 4), module.need("lora_down.weight", 2, 4)
    if up.ndim == 4 and up.shape[2:] != (1, 1):
        raise module.error(f"lora_up.weight has shape {up.shape}, expected (out, rank, 1, 1)")
    up = flat(up)
    if module.has("lora_mid.weight"):
        mid = module.need("lora_mid.weight", 4)
        if mid.shape[1] != down.shape[0] or flat(down).shape[1] != down.shape[1]:
            raise module.error(f"lora_mid.weight {mid.shape} does not fit lora_down.weight {down.shape}")
        down = np.einsum("abkl,bi->aikl", mid, flat(down), optimize=True)
    if up.shape[1] != down.shape[0]:
        raise module.error(f"lora_up.weight has rank {up.shape[1]}, lora_down.weight {down.shape[0]}")
    return up, down


def lora_scale(module: Module) -> float:
    """alpha / rank, where rank is what the file's own ``lora_down`` has (also with a Tucker core)."""
    return module.scale(module.need("lora_down.weight", 2, 4).shape[0])


def _change(module: Module, multiplier: float) -> Array:
    up, down = lora_factors(module)
    delta = module.product(up * (multiplier * lora_scale(module)), flat(down), "lora_up and lora_down")
    return delta.reshape(up.shape[0], *down.shape[1:])


def _factors(module: Module) -> tuple[Array, Array, float]:
    return *lora_factors(module), lora_scale(module)


def _spectrum(module: Module, _vectors: int | None, _decompose: Decompose) -> ModuleSpectrum:
    up, down = lora_factors(module)
    matrix = flat(down)
    return ModuleSpectrum(
        algorithm="lora",
        spectrum=spectrum(up, matrix),
        scale=lora_scale(module),
        rank=module.tensors["lora_down.weight"].shape[0],
        limit=min(*up.shape, *matrix.shape),
        kernel=down.shape[2:],
    )


def _made_shape(shapes: Shapes) -> tuple[int, int] | None:
    up, down = shapes.get("lora_up.weight"), shapes.get("lora_down.weight")
    if not up or not down or len(up) < 2 or len(down) < 2:
        return None
    return up[0], math.prod(down[1:]) * math.prod(shapes.get("lora_mid.weight", ())[2:])


def _fits(shapes: Shapes) -> bool:
    up, down = shapes["lora_up.weight"], shapes["lora_down.weight"]
    if len(up) not in (2, 4) or len(down) not in (2, 4) or up[2:] not in ((), (1, 1)):
        return False
    middle = shapes.get("lora_mid.weight")
    if middle is not None:
        return len(middle) == 4 and (up[1], down[0]) == middle[:2] and set(down[2:]) <= {1}
    return up[1] == down[0]


LORA = Rule(
    name="lora",
    change=_change,
    factors=_factors,
    spectrum=_spectrum,
    row_axes=lambda _tensors, _rows: ({"lora_up.weight": 0}, 1),
    made_shape=_made_shape,
    zeros=(("lora_up.weight", "lora_down.weight", "lora_mid.weight"),),
    uses_alpha=lambda _suffixes: True,
    rank_axes={"lora_up.weight": 1, "lora_down.weight": 0},
    pairs=(("lora_up.weight", "lora_down.weight"),),
    needs=(("lora_up.weight",), ("lora_down.weight",)),
    fits=_fits,
)
