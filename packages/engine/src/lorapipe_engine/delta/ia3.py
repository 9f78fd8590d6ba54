"""IA3: W scaled along one axis (arXiv:2205.05638; LyCORIS file layout).

``weight`` holds [in] or [out] values, for a convolution as (1, c, 1, 1); ``on_input`` (one number) says which
axis.
"""

from __future__ import annotations

from lorapipe_engine.delta.base import Array, Module, Rule


def _change(module: Module, multiplier: float) -> Array:
    on_input = module.number("on_input")
    if on_input is None:
        raise module.error("on_input is missing, so the axis of weight is unknown")
    base = module.base(2, 4)
    axis = 1 if on_input else 0
    values = module.need("weight").reshape(-1) * multiplier
    if values.size != base.shape[axis]:
        side = "inputs" if on_input else "outputs"
        raise module.error(f"weight has {values.size} values, the base weight {base.shape} other {side}")
    shape = [1] * base.ndim
    shape[axis] = values.size
    result: Array = base * values.reshape(shape)
    return result


IA3 = Rule(
    name="ia3",
    change=_change,
    needs_base=True,
    zeros=(("weight",),),
    needs=(("weight",), ("on_input",)),
)
