"""DoRA on top of lora, loha or lokr: V = W + ΔW, W' = V · g / ‖V‖ (arXiv:2402.09353).

``dora_scale`` g is (out, 1, ...) for norms per output row or (1, in, ...) per input column. At multiplier m
the weight becomes W + m(W' - W), as inference programs do it (LyCORIS' own rule is not W at m = 0).
"""

from __future__ import annotations

import numpy as np

from lorapipe_engine.delta.base import Array, Module

# What readers add to the norm: the smallest step of a float32 at 1.
EPSILON = float(np.finfo(np.float32).eps)


def apply_dora(module: Module, delta: Array, multiplier: float) -> Array:
    """W' - W times ``multiplier``; ``delta`` is the inner algorithm's change at multiplier 1, shaped as W."""
    base = module.base(2, 4)
    moved = base + delta
    magnitude, axis = _magnitude(module, base.shape)
    rest = tuple(d for d in range(base.ndim) if d != axis)
    norm = np.sqrt(np.sum(np.square(moved, dtype=np.float64), axis=rest, keepdims=True)) + EPSILON
    shape = [1] * base.ndim
    shape[axis] = base.shape[axis]
    ratio = magnitude.astype(np.float64).reshape(shape) / norm
    # V·ratio - W with the near-equal parts subtracted first: Δ·ratio + W·(ratio - 1).
    change = delta * ratio.astype(module.dtype) + base * (ratio - 1.0).astype(module.dtype)
    result: Array = change * np.asarray(multiplier, module.dtype)
    return result


def _magnitude(module: Module, shape: tuple[int, ...]) -> tuple[Array, int]:
    """The magnitudes as a vector and the axis of W they belong to."""
    scale = module.need("dora_scale")
    if scale.ndim >= 2 and scale.size == scale.shape[1] == shape[1] and scale.shape[0] == 1:
        return scale.reshape(-1), 1
    if scale.size == scale.shape[0] == shape[0]:
        return scale.reshape(-1), 0
    raise module.error(f"dora_scale {scale.shape} does not fit a base weight of {shape}")
