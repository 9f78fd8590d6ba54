"""Dead modules and ranks: parts of a network that change nothing, and which of them are meant to be so."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lorapipe_engine.delta import known_rule
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_inspect.measure.counts import TensorCounts

_LAYER = re.compile(r"encoder[._]layers[._](\d+)[._]")
# Text layers of the published models, by family and part, and the width that they have there.
_DEPTHS = {("sd1", "te1"): (12, 768), ("sd2", "te1"): (23, 1024), ("sdxl", "te1"): (12, 768)}
_TEXT_PARTS = ("te1", "te2")
_UNKNOWN_DEPTH = "how many layers the text encoder has is not known, so none of them is expected to be zero"
_TEXT_NAMES = {"te1": "the text encoder", "te2": "the second text encoder"}


@dataclass(frozen=True)
class Expectation:
    """Which dead modules are as they should be. ``rule``: why, in words; ``notes``: what does not fit the rule."""

    modules: frozenset[str]
    rule: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deaths:
    """Names of dead modules in the order of the file, and dead ranks of the modules that live, by name."""

    expected: tuple[str, ...]
    unexpected: tuple[str, ...]
    rule: str
    notes: tuple[str, ...]
    ranks: Mapping[str, int]


def find_deaths(file: WeightFile, network: Network, counts: Mapping[str, TensorCounts]) -> Deaths:
    """Judge a network by its counts; only tensors with enough zeros for a dead rank are read again."""
    dead = [name for name, module in network.modules.items() if is_dead(module, counts)]
    expectation = _expect(network, frozenset(dead), file)
    buried = set(dead)
    living = (module for name, module in network.modules.items() if name not in buried)
    return Deaths(
        expected=tuple(name for name in dead if name in expectation.modules),
        unexpected=tuple(name for name in dead if name not in expectation.modules),
        rule=expectation.rule,
        notes=expectation.notes,
        ranks=_dead_ranks(file, living, counts),
    )


def is_dead(module: NetworkModule, counts: Mapping[str, TensorCounts]) -> bool:
    """Whether the module's change is exactly zero because a factor of it is, or its alpha."""
    rule = known_rule(module.keys)
    if rule is None or _is_alive_apart(module, counts):
        return False
    if module.alpha == 0 and rule.uses_alpha(module.keys):
        return True
    there = [[module.keys[suffix] for suffix in group if suffix in module.keys] for group in rule.zeros]
    return all(any(_all_zero(name, counts) for name in names) for names in there if names) and any(there)


def _is_alive_apart(module: NetworkModule, counts: Mapping[str, TensorCounts]) -> bool:
    """What acts besides the factors: biases, scales of OFT."""
    bias, scale = module.keys.get("diff_b"), module.keys.get("rescale")
    return scale is not None or (bias is not None and not _all_zero(bias, counts))


def _all_zero(name: str, counts: Mapping[str, TensorCounts]) -> bool:
    return name in counts and counts[name].all_zero


# ------------------------------------------------------------------------------------------------ ranks


def _dead_ranks(
    file: WeightFile, modules: Iterable[NetworkModule], counts: Mapping[str, TensorCounts]
) -> dict[str, int]:
    """Ranks of which a tensor has zeros alone, such as a column of lora_up or a row of lora_down."""
    dead_ranks = {}
    for module in modules:
        rule = known_rule(module.keys)
        if rule is None or not module.rank:
            continue
        dead = np.zeros(module.rank, dtype=np.bool_)
        for suffix, axis in rule.rank_axes.items():
            name = module.keys.get(suffix)
            if name is None or name not in counts or counts[name].zero * module.rank < counts[name].size:
                continue
            shape = file.tensors[name].shape
            if len(shape) > axis and shape[axis] == module.rank and counts[name].size:
                # Signalling NaNs would be warned of; they are counted elsewhere.
                with np.errstate(invalid="ignore"):
                    rows = np.moveaxis(file.read(name), axis, 0).reshape(module.rank, -1)
                    dead |= ~rows.any(axis=1)
        if dead.any():
            dead_ranks[module.name] = int(dead.sum())
    return dead_ranks


# ------------------------------------------------------------------------------------------------ rules


def _expect(network: Network, dead: Collection[str], file: WeightFile) -> Expectation:
    parts = {part: _text_modules(network, part) for part in _TEXT_PARTS}
    modules: set[str] = set()
    rules: list[str] = []
    notes: list[str] = []
    everything = len(dead) == len(network.modules)
    for part, layers in parts.items():
        names = {name for of_layer in layers.values() for name in of_layer}
        if names and names <= set(dead) and not everything:
            modules |= names
            rules.append(_untrained_rule(part, len(names), network.metadata))
            continue
        if part == "te1" and names:
            skipped, rule = _skipped_layers(network, layers, dead, file)
            modules |= {name for layer in skipped for name in layers.get(layer, ())}
            rules.append(rule)
            notes += _contradictions(skipped, layers, dead)
    if not rules:
        rules.append("nothing should be zero: the file has no text encoder")
    return Expectation(frozenset(modules & set(dead)), "; ".join(rules), tuple(notes))


def _text_modules(network: Network, part: str) -> dict[int, list[str]]:
    """Modules of a text encoder by layer; -1 for those outside of the layers."""
    by_number: dict[int, list[str]] = {}
    for name, module in network.modules.items():
        if module.part == part:
            layer = _LAYER.search(name)
            by_number.setdefault(int(layer[1]) if layer else -1, []).append(name)
    return by_number


def _untrained_rule(part: str, count: int, metadata: Mapping[str, str]) -> str:
    text = f"all {count} modules of {_TEXT_NAMES[part]} are zero: it was not trained and is kept in the file"
    rate = metadata.get("ss_text_encoder_lr", "")
    numbers = re.findall(r"[\d.]+(?:[eE][-+]?\d+)?", rate)
    zero = bool(numbers) and all(float(number) == 0 for number in numbers if number.strip("."))
    return f"{text} ({f'ss_text_encoder_lr is {rate}' if zero else 'inferred from the zeros'})"


def _skipped_layers(
    network: Network, layers: Mapping[int, list[str]], dead: Collection[str], file: WeightFile
) -> tuple[range, str]:
    """Layers of the first text encoder that get no gradient, and the rule that says so."""
    depth = max(layers, default=-1) + 1
    published, width = _DEPTHS.get((network.family or "", "te1"), (0, 0))
    if _text_width(network, layers, file) == width:
        depth = max(depth, published)
    is_known = depth == published

    def are_plausible(skipped: range) -> bool:
        """Whether they may be the last layers: of an unknown depth the file's last layers tell it by being dead."""
        return is_known or all(set(layers.get(layer, ())) <= set(dead) for layer in skipped)

    if network.family == "sdxl":
        last = range(depth - 1, depth)
        if not are_plausible(last):
            return range(0), _UNKNOWN_DEPTH
        return last, (
            f"SDXL takes the first text encoder's output before its last layer, so layer {depth - 1} gets no gradient; "
            "the second's last layer is trained through its pooled output"
        )
    stored = network.metadata.get("ss_clip_skip")
    if stored is not None:
        skip = _number(stored)
        where = f"ss_clip_skip is {stored}"
    else:
        skip = 1 + _dead_at_the_end(layers, dead)
        where = "inferred from the zeros: the file has no ss_clip_skip"
    skipped = range(max(0, depth - max(0, skip - 1)), depth)
    if not skipped:
        return skipped, f"clip skip {skip} ({where}) trains every text layer, so nothing should be zero"
    if not are_plausible(skipped):
        return range(0), _UNKNOWN_DEPTH
    named = f"layer {skipped[0]}" if len(skipped) == 1 else f"layers {skipped[0]} to {skipped[-1]}"
    verb = "gets" if len(skipped) == 1 else "get"
    return skipped, (
        f"clip skip {skip} ({where}) takes the text encoder's output before {named}, which {verb} no gradient: "
        f"6 modules a layer, lora_up stays at the zeros it starts with"
    )


def _number(text: str) -> int:
    """A clip skip as metadata have it; "None" is 1."""
    try:
        return max(1, int(float(text)))
    except (ValueError, OverflowError):
        return 1


def _dead_at_the_end(layers: Mapping[int, list[str]], dead: Collection[str]) -> int:
    descending = sorted((layer for layer in layers if layer >= 0), reverse=True)
    for count, layer in enumerate(descending):
        if not set(layers[layer]) <= set(dead):
            return count
    return 0  # all of them are dead: that tells no clip skip


def _text_width(network: Network, layers: Mapping[int, list[str]], file: WeightFile) -> int | None:
    """Width of the text encoder, from the input of a layer that takes it as it is; LoRA only."""
    for names in layers.values():
        for name in names:
            down = network.modules[name].keys.get("lora_down.weight")
            if (
                down
                and re.search(r"(self_attn[._][qkv]_proj|mlp[._]fc1)$", name)
                and len(file.tensors[down].shape) >= 2
            ):
                return file.tensors[down].shape[1]
    return None


def _contradictions(skipped: range, layers: Mapping[int, list[str]], dead: Collection[str]) -> Iterable[str]:
    for layer in skipped:
        alive = [name for name in layers.get(layer, ()) if name not in dead]
        if alive:
            yield f"text layer {layer} should be zero by this rule, but {len(alive)} of its modules are not"
