"""GLoRA: s · (W·a1·a2 + b1·b2) (arXiv:2306.07967; LyCORIS file layout).

``a1.weight`` (i, r), ``a2.weight`` (r, i), ``b1.weight`` (o, r), ``b2.weight`` (r, i) or (r, i, k, k);
convolutions store the others as (., ., 1, 1). Files of early LyCORIS versions hold each pair the other way
round (a1 (r, i), a2 (i, r), b1 (r, i·k·k), b2 (o, r)); the shapes tell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule, flat


def _factors(module: Module) -> tuple[Array, Array, Array, Array]:
    a1, a2, b1, b2 = (flat(module.need(f"{name}.weight", 2, 4)) for name in ("a1", "a2", "b1", "b2"))
    if a1.shape[1] == a2.shape[0] and b1.shape[1] == b2.shape[0]:
        return a1, a2, b1, b2
    if a2.shape[1] == a1.shape[0] and b2.shape[1] == b1.shape[0]:
        return a2, a1, b2, b1
    raise module.error(f"a1 {a1.shape}, a2 {a2.shape}, b1 {b1.shape}, b2 {b2.shape} do not fit each other")


def _change(module: Module, multiplier: float) -> Array:
    base = module.base(2, 4)
    a1, a2, b1, b2 = _factors(module)
    if a1.shape[0] != base.shape[1] or a2.shape[1] != base.shape[1]:
        raise module.error(f"a1 {a1.shape} and a2 {a2.shape} do not fit a base weight of {base.shape}")
    if (b1.shape[0], b2.shape[1]) != flat(base).shape:
        raise module.error(f"b1 {b1.shape} and b2 {b2.shape} do not fit a base weight of {base.shape}")
    # The A part mixes input channels, for every kernel position alike.
    mixed = np.moveaxis(np.moveaxis(base, 1, -1) @ a1 @ a2, -1, 1)
    scale = multiplier * module.scale(a1.shape[1])
    result: Array = (mixed + (b1 @ b2).reshape(base.shape)) * np.asarray(scale, module.dtype)
    return result


def _row_axes(tensors: Mapping[str, Array], rows: int) -> tuple[Mapping[str, int], int]:
    old_order = tensors["b1.weight"].shape[0] != rows
    return {"b2.weight" if old_order else "b1.weight": 0}, 1


GLORA = Rule(
    name="glora",
    change=_change,
    needs_base=True,
    row_axes=_row_axes,
    zeros=(("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")),
    uses_alpha=lambda _suffixes: True,
    needs=tuple((f"{name}.weight",) for name in ("a1", "a2", "b1", "b2")),
    pairs=(("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")),
)
