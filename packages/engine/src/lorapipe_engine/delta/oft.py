"""Orthogonal rotations of output rows: Diag-OFT (arXiv:2306.07280) and BOFT (arXiv:2311.06243).

``oft_blocks`` is (n, b, b) for Diag-OFT, with n·b = out, and (stages, n, b, b) for BOFT. Q = B - Bᵀ is
brought to the norm alpha·out where that is above 0 and exceeded (norm over all blocks); R = (I + Q)(I - Q)⁻¹.
At multiplier m R becomes I + m(R - I), in BOFT for each stage. An optional ``rescale`` (out, 1, ...)
multiplies the rows of the result and is not scaled by m. kohya's OFT (prefix ``oft_unet``) has the same
tensors; its block count is its dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorapipe_engine.delta.base import STEPS, Array, Module, Rule, flat


def _turns(module: Module, blocks: Array, out: int) -> Array:
    """R - I for every block, (..., b, b) in float64; computed as 2Q(I - Q)⁻¹, so that small turns lose no digits."""
    skew = blocks.astype(np.float64)
    skew = skew - np.swapaxes(skew, -1, -2)
    limit = (module.number("alpha") or 0.0) * out
    norm = float(np.sqrt(np.sum(skew * skew)))
    if 0 < limit < norm:
        skew *= limit / norm
    inverse = np.linalg.inv(np.eye(skew.shape[-1]) - skew)
    result: Array = 2.0 * skew @ inverse
    return result


def _diagonal(turn: Array, weight: Array, multiplier: float) -> Array:
    """(m(R - I) + I)ᵀ W - W by blocks of rows; ``weight`` is (out, n)."""
    blocks, size = turn.shape[0], turn.shape[1]
    rows = weight.reshape(blocks, size, -1)
    result: Array = (np.swapaxes(turn, 1, 2) @ rows).reshape(weight.shape) * multiplier
    return result


def _butterfly(turn: Array, weight: Array, multiplier: float) -> Array:
    """Stage j multiplies blocks of rows 2^j·b/2 apart by R_j; the change is summed over the stages."""
    stages, blocks, size = turn.shape[0], turn.shape[1], turn.shape[2]
    out, columns = weight.shape
    change: Array = np.zeros_like(weight)
    for stage in range(stages):
        half = 2**stage * size // 2
        if out % (2 * half):
            raise ValueError(f"{stages} stages of blocks of {size} do not fit {out} rows")
        rows = (weight + change).reshape(-1, 2, half, columns).swapaxes(1, 2)  # (c, half, 2, columns)
        turned = (turn[stage] * multiplier) @ rows.reshape(blocks, size, columns)
        change += turned.reshape(-1, half, 2, columns).swapaxes(1, 2).reshape(out, columns)
    return change


def _change(module: Module, multiplier: float) -> Array:
    blocks = module.need("oft_blocks", 3, 4)
    base = module.base(2, 4)
    # In float64: a row is a sum over its whole block, whose rounding a small change would drown in.
    weight = flat(base).astype(np.float64)
    out, rows = weight.shape[0], blocks.shape[-3] * blocks.shape[-1]
    if blocks.shape[-1] != blocks.shape[-2] or rows != out:
        raise module.error(f"oft_blocks {blocks.shape} do not fit a base weight of {base.shape}")
    turn = _turns(module, blocks, out)
    if blocks.ndim == 3:
        change = _diagonal(turn, weight, multiplier)
    else:
        try:
            change = _butterfly(turn, weight, multiplier)
        except ValueError as error:
            raise module.error(str(error)) from error
    if module.has("rescale"):
        rescale = module.need("rescale").reshape(-1, 1)
        if rescale.shape[0] != out:
            raise module.error(f"rescale has {rescale.shape[0]} values for {out} rows")
        change = change * rescale + weight * (rescale - 1)
    return change.reshape(base.shape).astype(module.dtype, copy=False)


def _row_axes(tensors: Mapping[str, Array], _rows: int) -> tuple[Mapping[str, int] | None, int]:
    # Stages of a butterfly mix rows of all blocks, and with a bound on the norm all blocks depend on each other.
    if tensors["oft_blocks"].ndim == 4 or float(np.max(tensors.get("alpha", np.zeros(1)))):
        return None, 0
    return {"oft_blocks": STEPS, "rescale": 0}, tensors["oft_blocks"].shape[-1]


OFT = Rule(
    name="oft",
    change=_change,
    needs_base=True,
    row_axes=_row_axes,
    zeros=(("oft_blocks",),),
    needs=(("oft_blocks",),),
)
