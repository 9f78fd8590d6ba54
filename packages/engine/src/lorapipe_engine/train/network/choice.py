"""The layers of a fresh network, with what each of them gets: by module, preset and blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.attach import Kind, NetworkPlan, Target
from lorapipe_engine.nn.base import Size, adapter_class
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import NetworkArgs, by_block, wants_conv
from lorapipe_engine.train.network.blocks import block_of
from lorapipe_engine.train.network.lycoris import algos
from lorapipe_engine.train.network.preset_file import (
    Chosen,
    choose,
    is_preset_file,
    read_preset_file,
    spare,
    unused,
)
from lorapipe_engine.train.network.targets import (
    as_targets,
    every_layer,
    every_norm,
    is_large,
    norms_of,
    targets_of,
    with_kinds,
)


@dataclass(frozen=True)
class Choice:
    """What is trained, the plan for it, and what the user should know."""

    targets: list[Target]
    plan: NetworkPlan
    notes: tuple[str, ...] = ()


def every_target(family: Family) -> list[Target]:
    """Every layer and norm that a file may have a change for. Call it before adapters are attached."""
    return as_targets(family, (*every_layer(family), *every_norm(family)))


def choose_layers(plan: NetworkPlan, args: NetworkArgs, family: Family, parts: Collection[str]) -> Choice:
    """The layers of the ``parts`` that are trained, for a network that does not take its sizes from a file.

    Raises ConfigError for blocks, presets and arguments that do not fit the model.
    """
    conv, notes = wants_conv(plan, args), []
    from_file = args.preset is not None and is_preset_file(args.preset)
    if from_file:
        preset = read_preset_file(Path(args.preset or ""))
        rows = choose(preset, family, every_layer(family))
        layers = as_targets(family, (chosen.row for chosen in rows))
        if missing := spare(preset, family, every_layer(family)):
            notes.append(f"note: preset: {preset.path}: {', '.join(missing)} fits no layer of this model")
        if idle := [text for text in unused(preset, rows) if text not in missing]:
            notes.append(
                f"note: preset: {preset.path}: {', '.join(idle)} does nothing: an earlier pattern or an inner class "
                "counts for its layers, or they are not chosen"
            )
    else:
        rows = []
        layers = targets_of(family, conv=conv, preset=args.preset)
    targets = [target for target in layers if target.part in parts]
    if args.numbers.get("conv_dim") and not any(is_large(target.module) for target in targets):
        hint = "" if args.preset in (None, "full") else f" by preset={args.preset}; preset=full has them"
        notes.append(f"note: network_args: conv_dim does nothing: no convolution above 1x1 is trained{hint}")
    plan = with_kinds(plan, args.preset, targets)
    plan = by_block(plan, args, targets, family.name)
    plan = _by_file(plan, rows, layers)
    plan = _stabilised(plan, targets)
    if args.train_norm:
        inside = (
            _norms_inside(family, targets) if from_file else norms_of(family, conv=conv, preset=args.preset)
        )
        norms = [target for target in inside if target.part in parts]
        plan, norms = _with_norms(plan, args, family, norms)
        targets = [*targets, *norms]
        if not norms:
            notes.append("note: network_args: train_norm finds no norm beside what is trained")
    return Choice(targets, plan, tuple(notes))


def _by_file(plan: NetworkPlan, rows: list[Chosen], layers: list[Target]) -> NetworkPlan:
    """The plan with what a preset file says of single layers."""
    if not any(row.changes for row in rows):
        return plan
    sizes, kinds = dict(plan.sizes), dict(plan.kinds)
    for row, target in zip(rows, layers, strict=True):
        size = plan.size_of(target.module, target.name)
        if size is None:
            continue
        kind = kinds.get(target.name, plan.kind)
        if row.changes:
            size, kind = _changed(row.changes, size, kind)
        sizes[target.name], kinds[target.name] = size, kind
    return replace(plan, sizes=sizes, kinds=kinds)


def _changed(changes: Mapping[str, str], size: Size, kind: Kind) -> tuple[Size, Kind]:
    """Size and kind of a layer after the table of its class or pattern. Raises ConfigError."""
    texts = dict(changes)
    algo = texts.pop("algo", None)
    if algo is not None:
        known = algos()
        if algo.lower() not in known:
            told = nearest(algo.lower(), known) or f"; those that are: {', '.join(known)}"
            raise ConfigError(f"preset: algo '{algo}' is not trained here{told}")
        kind = Kind(known[algo.lower()]) if known[algo.lower()] != kind.algorithm else kind
    rank = size.rank
    alpha = size.alpha
    for name in ("dim", "alpha"):
        if name in texts:
            value = _positive(name, texts.pop(name))
            rank, alpha = (int(value), alpha) if name == "dim" else (rank, value)
    adapter = adapter_class(kind.algorithm)
    options: dict[str, Any] = dict(kind.options)
    for name, text in texts.items():
        if name not in adapter.arguments:
            known_names = ("algo", "dim", "alpha", *adapter.arguments)
            told = nearest(name, known_names) or f"; known: {', '.join(known_names)}"
            raise ConfigError(f"preset: '{name}' is not known for {kind.algorithm}{told}")
        try:
            options[name] = adapter.arguments[name](text)
        except ValueError as error:
            raise ConfigError(f"preset: {name} takes {error}, not '{text}'") from error
    return Size(rank, alpha), Kind(kind.algorithm, options)


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or (name == "dim" and value != int(value)):
        raise ConfigError(
            f"preset: {name} takes a {'whole ' if name == 'dim' else ''}number above 0, not '{text}'"
        )
    return value


def _stabilised(plan: NetworkPlan, targets: list[Target]) -> NetworkPlan:
    """The plan with alpha · √rank where ``rs_lora`` asks for it: a scale of alpha / √rank, in training and for every
    reader of the file."""
    kinds = [plan.kinds.get(target.name, plan.kind) for target in targets]
    if not any(kind.options.get("rs_lora") for kind in kinds):
        return plan
    sizes: dict[str, Size] = {}
    for target, kind in zip(targets, kinds, strict=True):
        size = plan.size_of(target.module, target.name)
        if size is not None and kind.options.get("rs_lora"):
            size = Size(size.rank, (size.alpha or size.rank) * math.sqrt(size.rank))
        if size is not None:
            sizes[target.name] = size
    return replace(plan, sizes=sizes)


def _with_norms(
    plan: NetworkPlan, args: NetworkArgs, family: Family, norms: list[Target]
) -> tuple[NetworkPlan, list[Target]]:
    """The plan with the norms in it, but for those in blocks that are left out."""
    if args.lists or args.weights:
        there = {block_of(family.name, name) for name in plan.sizes}
        norms = [norm for norm in norms if block_of(family.name, norm.name) in there]
    kinds = {**plan.kinds, **{norm.name: Kind("norm") for norm in norms}}
    sizes = {**plan.sizes, **{norm.name: Size(0, 0.0) for norm in norms}} if plan.sizes else plan.sizes
    return replace(plan, kinds=kinds, sizes=sizes), norms


def _norms_inside(family: Family, targets: list[Target]) -> list[Target]:
    """The norms of blocks in which a preset file trains a layer."""
    part = family.facts.denoiser
    chosen = {id(target.module) for target in targets if not is_text(target.part)}
    classes = (*family.facts.targets[part], *family.facts.conv_targets.get(part, ()))
    inside: set[int] = set()
    for block in family.parts[part].modules():
        if type(block).__name__ in classes and any(id(child) in chosen for child in block.modules()):
            inside |= {
                id(child) for child in block.modules() if isinstance(child, nn.LayerNorm | nn.GroupNorm)
            }
    return as_targets(family, (row for row in every_norm(family) if id(row.module) in inside))
