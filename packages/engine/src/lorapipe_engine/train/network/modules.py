"""What ``network_module`` and ``algorithm`` ask for, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.network import lycoris

LOCON, OFT = "locon.locon_kohya", "networks.oft"
# Algorithms that have a module of their own in sd-scripts; LyCORIS' module asks for the others.
_OWN = ("lora", "dylora", "lora_fa")
_PRESETS: Mapping[str, str] = {"locon": "full", "ia3": "ia3"}
_PRESET, _WITH_CONVOLUTIONS = "attn-mlp", "full"


@dataclass(frozen=True)
class Asked:
    """An algorithm of the table and the options that its module implies. ``conv_follows``: kernels above 1x1 are
    trained, with the rank and alpha of linear layers unless conv_dim and conv_alpha say otherwise."""

    algorithm: str
    options: Mapping[str, Any]
    conv_follows: bool = False


def plain_words(network: NetworkSettings) -> NetworkSettings:
    """The options with ``algorithm`` said by ``network_module`` and ``network_args``, as metadata have it.

    Raises ConfigError for a name that is not known, or where both are given.
    """
    if network.algorithm is None:
        return network
    if network.network_module not in ("networks.lora", ""):
        raise ConfigError(
            f"algorithm: network_module {network.network_module} says it too; leave one of the two out"
        )
    name = network.algorithm.lower()
    known = (*_OWN, *(algo for row in algorithms.ALGORITHMS if row.adapter for algo in row.algos))
    if name not in known:
        told = nearest(name, known) or f"; known: {', '.join(dict.fromkeys(known))}"
        raise ConfigError(f"algorithm: '{network.algorithm}' is not trained here{told}")
    if name in _OWN:
        return replace(network, algorithm=None, network_module=f"networks.{name}")
    if any(word.partition("=")[0].strip() == "algo" for word in network.network_args):
        raise ConfigError("algorithm: algo in network_args says it too; leave one of the two out")
    words = [f"algo={name}"]
    given = {name.strip(): text.strip() for name, _, text in (w.partition("=") for w in network.network_args)}
    if "preset" not in given:
        usual = _WITH_CONVOLUTIONS if given.get("conv_dim", "").strip("0.") else _PRESET
        words.append(f"preset={_PRESETS.get(name, usual)}")
    return replace(
        network,
        algorithm=None,
        network_module=lycoris.MODULE,
        network_args=(*words, *network.network_args),
    )


def asked_by(network: NetworkSettings) -> Asked:
    """What a ``network_module`` that is not LyCORIS' asks for. Raises ConfigError, naming the nearest known one."""
    module = network.network_module
    known = {name: row.name for row in algorithms.ALGORITHMS if row.adapter for name in row.modules}
    if module not in known:
        names = (*known, lycoris.MODULE)
        told = nearest(module, names) or f"; known: {', '.join(names)}"
        raise ConfigError(f"network_module: '{module}' is not trained here{told}")
    options: dict[str, Any] = {}
    if module == OFT:  # sd-scripts' words: dim is the number of blocks, alpha the constraint
        options = {"count": True, "constraint": float(network.network_alpha or 0.0)}
    return Asked(known[module], options, conv_follows=module == LOCON)
