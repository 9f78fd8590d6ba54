"""What a file decides under ``dim_from_weights``: algorithm, layers, ranks and alphas are those of its modules.

Another algorithm is refused. What else was asked for is noted, and stands in no metadata.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.networks.metadata import parse_metadata
from lorapipe_engine.nn.base import Size, adapter_class
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.network import lycoris
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.network.files.trained_file import TrainedFile
from lorapipe_engine.train.network.modules import plain_words
from lorapipe_engine.train.network.preset_file import is_preset_file

# Arguments that say how a module is trained, not what it is: they count with any file.
HOW = frozenset({"use_scalar"})
_LAYERS = ("preset", "conv_dim", "conv_alpha", "train_norm")
# Those that a file's tensors show, and other names for them.
_SHOWN = frozenset({"dora_wd", "wd_on_output", "use_tucker", "rescaled"})
_ALSO = {"use_cp": "use_tucker", "wd_on_out": "wd_on_output"}
_NORM = "norm"
_NOTHING = ("", "0", "0.0", "false", "none", "no")
_MEND = "leave --dim_from_weights out"


class Decided:
    """What the file ``start`` makes of the options ``network``, whose ``network_args`` are ``args``."""

    def __init__(self, network: NetworkSettings, args: NetworkArgs, start: TrainedFile) -> None:
        self._network, self._args, self._start = network, args, start
        self._asked = args.kind.algorithm
        self._by_preset_file = args.preset is not None and is_preset_file(args.preset)
        counts = Counter(kind.algorithm for kind in start.kinds.values() if kind.algorithm != _NORM)
        self._algorithms = frozenset(counts)
        self._main = counts.most_common(1)[0][0] if counts else _NORM
        self._stated = parse_metadata(start.metadata)
        arguments = self._stated.get("ss_network_args")
        self._arguments: Mapping[str, Any] = arguments if isinstance(arguments, dict) else {}

    def check(self) -> None:
        """Raise ConfigError where another algorithm was asked for than the file has."""
        named = "algorithm" if self._network.algorithm is not None else "network_module"
        if named == "network_module" and self._network.network_module in ("networks.lora", ""):
            return
        if self._algorithms and not self._by_preset_file and _form(self._asked) not in self._algorithms:
            raise ConfigError(
                f"dim_from_weights: {self._start.path} is of the algorithm {self._main}, not {self._asked}; leave "
                f"{named} and its arguments out, or {_MEND}"
            )

    def notes(self) -> list[str]:
        """A line on the options that do nothing, because the file has it otherwise, or does not say."""
        network, size = self._network, self._size()
        idle = [
            f"{name}={text}"
            for name, text in _texts(network).items()
            if name in self._names() and not self._agrees(name, text.lower())
        ]
        dim, alpha = self._sizes(size)
        if network.network_dim and network.network_dim != dim:
            idle.append(f"network_dim={network.network_dim}")
        if network.network_alpha and network.network_alpha != alpha:
            idle.append(f"network_alpha={network.network_alpha:g}")
        idle += self._idle_dropouts()
        if not idle:
            return []
        what, them = ("this does nothing", "it") if len(idle) == 1 else ("these do nothing", "them")
        return [
            f"dim_from_weights: the file decides on algorithm, layers, ranks and alphas, so {what}: "
            f"{', '.join(idle)}; leave {them} out, or {_MEND}"
        ]

    def _idle_dropouts(self) -> list[str]:
        """Dropouts that no algorithm of the file knows, but for those that the one asked for does not know either."""
        known = frozenset().union(*(adapter_class(name).drops for name in self._algorithms))
        numbers = self._args.numbers
        given = {
            "network_dropout": ("element", self._args.dropout or self._network.network_dropout),
            "rank_dropout": ("rank", numbers.get("rank_dropout", 0.0)),
            "module_dropout": ("module", numbers.get("module_dropout", 0.0)),
        }
        return [
            f"{name}={chance:g}"
            for name, (kind, chance) in given.items()
            if chance and kind not in known and name not in self._args.unused
        ]

    def _agrees(self, name: str, text: str) -> bool:
        """Whether the file's modules, or its metadata where these do not show it, are as an argument asks for."""
        is_off, shown = text in _NOTHING, self._shown(name)
        if shown is not None:
            return shown != is_off
        return is_off or str(self._arguments.get(name)).lower() == text

    def _shown(self, name: str) -> bool | None:
        """What the tensors show of an argument; None where they do not."""
        kinds, name = self._start.kinds.values(), _ALSO.get(name, name)
        if name == "train_norm":
            return any(kind.algorithm == _NORM for kind in kinds)
        return any(kind.options.get(name) is True for kind in kinds) if name in _SHOWN else None

    def as_trained(self) -> NetworkSettings:
        """The options as they ask for what is trained."""
        network = plain_words(self._network)
        dropped = self._names()
        if _form(self._asked) != self._main and not self._by_preset_file:
            dropped |= {"algo"}
        words = [word for word in network.network_args if word.partition("=")[0].strip() not in dropped]
        row = algorithms.algorithm_of(self._main)
        if "algo" in dropped and row is not None and row.algos:
            words.insert(0, f"algo={row.algos[0]}")
            network = replace(network, network_module=lycoris.MODULE)
        for name in sorted(dropped - {"algo"}):
            shown = self._shown(name)
            if shown and name not in _ALSO:
                words.append(f"{name}=True")
            elif (
                shown is None
                and name in self._arguments
                and (name != "preset" or network.network_module == lycoris.MODULE)
            ):
                words.append(f"{name}={self._arguments[name]}")
        dim, alpha = self._sizes(self._size())
        return replace(network, network_dim=dim, network_alpha=alpha, network_args=tuple(words))

    def _names(self) -> set[str]:
        """The arguments on which the file decides."""
        names = {*_LAYERS, *(adapter_class(self._main).arguments if self._main != _NORM else ())}
        if _form(self._asked) == self._asked:  # DyLoRA's say how LoRA's modules are trained
            names |= set(adapter_class(self._asked).arguments)
        return names - HOW

    def _size(self) -> Size | None:
        """Rank and alpha of most modules; None where none has a rank."""
        sizes = Counter(size for size in self._start.sizes.values() if size.rank)
        return sizes.most_common(1)[0][0] if sizes else None

    def _sizes(self, size: Size | None) -> tuple[int | None, float | None]:
        """Rank and alpha to tell: where no rank is in use what the file says, or nothing."""
        if size is not None:
            return size.rank, size.alpha
        dim = _number(self._stated.get("ss_network_dim"))
        return None if dim is None else int(dim), _number(self._stated.get("ss_network_alpha"))


def _form(algorithm: str) -> str:
    """The algorithm whose files an algorithm writes."""
    row = algorithms.algorithm_of(algorithm)
    return algorithm if row is None or row.form is None else row.form


def _texts(network: NetworkSettings) -> dict[str, str]:
    words = (word.partition("=") for word in network.network_args)
    return {lycoris.RENAMED.get(name.strip(), name.strip()): text.strip() for name, _, text in words}


def _number(value: object) -> float | None:
    """A number above 0 from metadata, which may hold anything."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
