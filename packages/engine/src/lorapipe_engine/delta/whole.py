"""Whether the tensors of a module make one change, told by their names and shapes alone."""

from __future__ import annotations

from lorapipe_engine.delta.base import Shapes
from lorapipe_engine.delta.full import BIAS_SUFFIXES
from lorapipe_engine.delta.registry import known_rule
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.read import check_module, module_label


def why_broken(shapes: Shapes) -> str | None:
    """Why a module with tensors of these shapes, by suffix, changes nothing that is known; None where it does.

    What the layer itself has to say, its size, is not asked.
    """
    rule = known_rule(shapes)
    if rule is None:
        return f"its tensors are not those of one known algorithm: {', '.join(sorted(shapes))}"
    there = set(shapes)
    lacking = [two for pair in rule.pairs for one, two in (pair, pair[::-1]) if one in there - {two}]
    groups = rule.needs if there - {*BIAS_SUFFIXES, "alpha"} else ()
    lacking = [name for name in lacking if name not in there] + [
        group[-1] for group in groups if there.isdisjoint(group)
    ]
    if lacking:
        return f"{lacking[0]} is missing (the module has {', '.join(sorted(shapes))})"
    for suffix, shape in shapes.items():
        if 0 in shape:
            return f"{suffix} is empty: its shape is {shape}"
        if suffix in BIAS_SUFFIXES and len(shape) != 1:
            return f"{suffix} has shape {shape}, expected 1 dimension"
    if "dora_scale" in there and rule.needs_base:
        return f"dora_scale has no meaning on {rule.name}"
    if rule.fits is not None and not rule.fits(shapes):
        told = ", ".join(f"{s} {shape}" for s, shape in shapes.items() if shape and s not in BIAS_SUFFIXES)
        return f"it has factors of different ranks or shapes, which do not fit each other: {told}"
    return None


def check_whole(file: WeightFile, module: NetworkModule) -> None:
    """Raise InputError, naming file and module, where a module's tensors are no weights or make no change."""
    check_module(file, module)
    if why := why_broken({suffix: file.tensors[key].shape for suffix, key in module.keys.items()}):
        raise InputError(f"module {module_label(file, module)}: {why}")
