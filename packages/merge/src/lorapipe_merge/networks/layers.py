"""Which modules of which networks change the same layer; and what cannot be added up, refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorapipe_engine.command.text import counted
from lorapipe_engine.delta import known_rule, needs_base
from lorapipe_engine.delta.full import BIAS_SUFFIXES, CHANGES
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.blocks import block_of
from lorapipe_engine.models.families import FAMILIES, get_family
from lorapipe_engine.models.keys import unet_to_ldm
from lorapipe_engine.networks.algorithms import find_algorithm, is_plain
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.kohya_names import known_layer, kohya_name
from lorapipe_engine.networks.layers import layer_of
from lorapipe_engine.networks.read import is_beside
from lorapipe_merge.blocks import BlockWeights
from lorapipe_merge.matching import Applied, left_out

SHOWN = 5


@dataclass(frozen=True)
class Part:
    """A module as it takes part."""

    weights: WeightFile
    module: NetworkModule
    ratio: float
    source: str


@dataclass(frozen=True)
class Layer:
    """A layer under kohya's name, and the modules that change it, at most one of each network."""

    name: str
    parts: tuple[Part, ...]


def common_family(networks: Sequence[Applied]) -> str | None:
    """The family that all networks are for; None if it is none of the known ones. Raises InputError if they differ."""
    families = {(network.network.family, network.network.foreign) for network in networks}
    if len(families) > 1:
        told = ", ".join(f"{network.name} is for {network.network.title}" for network in networks)
        raise InputError(f"networks for different models cannot be added up: {told}")
    return networks[0].network.family


def _title(family: str | None) -> str:
    return FAMILIES[family].title if family else "a model that is not known here"


def collect_layers(networks: Sequence[Applied], family: str | None) -> list[Layer]:
    """The layers that the networks change, in the order of the files.

    Raises InputError for modules whose change depends on the base model or of no known algorithm, and for tensors that
    belong to no module.
    """
    by_layer: dict[str, list[Part]] = {}
    for network in networks:
        _check_kinds(network)
        _check_others(network)
        for name, part in _parts_of(network, family):
            by_layer.setdefault(name, []).append(part)
    return [Layer(name, tuple(parts)) for name, parts in by_layer.items()]


def _parts_of(network: Applied, family: str | None) -> Iterator[tuple[str, Part]]:
    for module in network.network.modules.values():
        if module.keys.keys() == {"alpha"}:  # left behind, it changes nothing
            continue
        yield kohya_name(module.name, family), Part(network.weights, module, network.ratio, network.name)


def _check_kinds(network: Applied) -> None:
    bound: dict[str, list[str]] = {}
    for module in network.network.modules.values():
        if module.keys.keys() == {"alpha"}:
            continue
        if find_algorithm(module.keys) is None:
            raise InputError(
                f"{network.name}: the tensors of {_shown(module.name)} are not those of one known algorithm: "
                f"{', '.join(sorted(module.keys))}"
            )
        check_whole(network.weights, module)
        if needs_base(module.keys):
            kind = "dora" if module.dora else module.algorithm
            bound.setdefault(kind, []).append(module.name)
    if bound:
        kinds = "; ".join(
            f"{counted(len(names), f'{kind} module')} ({_listed(names, 2)})" for kind, names in bound.items()
        )
        raise InputError(
            f"{network.name}: {kinds}: what they change depends on the base model, so they cannot be added to other "
            "networks; merge such a network into a checkpoint: lora-merge BASE NETWORK:RATIO -o MERGED"
        )


def _check_others(network: Applied) -> None:
    others = [
        name for name in network.network.others if not name.endswith("position_ids") and not is_beside(name)
    ]
    if others:
        raise InputError(
            f"{network.name}: {counted(len(others), 'tensor', 'belong')} to no module that is known: "
            f"{_listed(others, SHOWN)}; nothing was written"
        )


def weigh_blocks(
    layers: Sequence[Layer], weights: BlockWeights, family: str | None
) -> tuple[list[Layer], int]:
    """The layers with the weights of their blocks in the ratios; and how many modules weigh 0 and are left out.

    Raises InputError for a layer of which no block is known, and where nothing is left.
    """
    weighted, gone = [], 0
    for layer in layers:
        weight = weights.of(_block(layer, family))
        if weight:
            parts = tuple(replace(part, ratio=part.ratio * weight) for part in layer.parts)
            weighted.append(Layer(layer.name, parts))
        else:
            gone += len(layer.parts)
    if not weighted:
        raise InputError("--blocks leaves nothing of the networks: all their blocks weigh 0")
    return weighted, gone


def _block(layer: Layer, family: str | None) -> str:
    place = None if family is None else layer_of(layer.name)
    if family is None or place is None:
        raise InputError(f"--blocks: {layer.parts[0].source}: it is not known which block {layer.name} is in")
    plain = get_family(family).plain_up_blocks
    return block_of(place.part, unet_to_ldm(place.path, 2, plain) if place.part == "unet" else None)


def unknown_layers(layers: Sequence[Layer], family: str | None) -> list[str]:
    """A note on layers that follow no pattern of the family's names: they are added up under the names they have."""
    strange = [layer for layer in layers if family is not None and known_layer(layer.name, family) is None]
    if not strange:
        return []
    names = [layer.name for layer in strange]
    sources = ", ".join(dict.fromkeys(part.source for layer in strange for part in layer.parts))
    return [
        f"{sources}: {counted(len(names), 'module', 'are')} named like no layer of {_title(family)}: "
        f"{_listed(names, SHOWN)}"
    ]


def rank_of_first(layer: Layer) -> int | None:
    """The rank that the layer has in the first network that changes it; None where that is no plain LoRA."""
    module = layer.parts[0].module
    return module.rank if is_plain(module.algorithm) else None


def _offset_twice(networks: Sequence[Applied]) -> list[str]:
    """A line where several networks were trained with offset noise: what each does to brightness adds up."""
    offset = [
        network.name for network in networks if _number(network.network.metadata.get("ss_noise_offset"))
    ]
    if len(offset) < 2:
        return []
    return [
        f"{', '.join(offset)} were trained with noise_offset: their shifts of brightness add up and burn pictures; "
        "merge one of them, or at lower ratios"
    ]


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def notes_on(networks: Sequence[Applied]) -> list[str]:
    """What is in the files and will not be in the result, or not as it was."""
    notes = [*left_out(networks), *_offset_twice(networks)]
    for network in networks:
        kinds = Counter(
            module.algorithm for module in network.network.modules.values() if _becomes_lora(module)
        )
        notes += [
            f"{network.name}: {counted(count, f'{kind} module', 'become')} plain LoRA, which takes more room"
            for kind, count in sorted(kinds.items())
        ]
    return notes


def _becomes_lora(module: NetworkModule) -> bool:
    """Whether a module changes a weight, neither by plain factors nor as a whole."""
    rule = known_rule(module.keys)
    is_whole = any(suffix in CHANGES for suffix in module.keys if suffix not in BIAS_SUFFIXES)
    is_bias = module.keys.keys() <= {*BIAS_SUFFIXES, "alpha"}
    return rule is not None and rule.factors is None and not is_whole and not is_bias


def _shown(name: str) -> str:
    return quote(name)[1:-1]


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_shown, names[:most])) + more
