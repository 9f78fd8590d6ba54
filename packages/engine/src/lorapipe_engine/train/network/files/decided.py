"""What a file decides under ``dim_from_weights``, held against what the options ask for.

What would change what is trained is refused where the file has it otherwise. A rank or an alpha is only noted, since
configurations of GUIs always have them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.nn.base import adapter_class
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.network import lycoris
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.network.files.shown import Shown
from lorapipe_engine.train.network.files.trained_file import TrainedFile
from lorapipe_engine.train.network.modules import LOCON, OFT, plain_words
from lorapipe_engine.train.network.preset_file import is_preset_file

# Arguments that say how a module is trained, not what it is: they count with any file.
HOW = frozenset({"use_scalar"})
_MEND = "leave --dim_from_weights out"
_DEFAULT_MODULES = ("networks.lora", "")


@dataclass(frozen=True)
class Decided:
    """What the user should know, and the options with what is trained in the place of what was asked for."""

    notes: tuple[str, ...]
    network: NetworkSettings


class _Asked:
    """What the options ask for. ``form``: the algorithm of the files of that which is asked for. ``option``: where it
    is named; None: nowhere."""

    def __init__(self, network: NetworkSettings, args: NetworkArgs) -> None:
        self.network = network
        self.args = args
        words = [word.partition("=") for word in network.network_args]
        self.texts = {
            lycoris.RENAMED.get(name.strip(), name.strip()): text.strip() for name, _, text in words
        }
        self.algorithm = args.kind.algorithm
        self.form = form_of(self.algorithm)
        self.option: str | None = None
        if network.algorithm is not None:
            self.option = "algorithm"
        elif network.network_module not in _DEFAULT_MODULES:
            self.option = "network_module"

    @property
    def own(self) -> dict[str, Any]:
        """The arguments of the algorithm alone that were given."""
        return {name: value for name, value in self.args.kind.options.items() if name in self.texts}

    @property
    def by_file(self) -> bool:
        """Whether a preset file says the algorithms of layers."""
        return self.args.preset is not None and is_preset_file(self.args.preset)


def form_of(algorithm: str) -> str:
    """The algorithm whose files an algorithm writes."""
    row = algorithms.algorithm_of(algorithm)
    return algorithm if row is None or row.form is None else row.form


def decide(network: NetworkSettings, args: NetworkArgs, start: TrainedFile) -> Decided:
    """Hold the options against the file. Raises ConfigError where they ask for another network than it has."""
    asked, file = _Asked(network, args), Shown(start)
    _check(asked, file)
    sizes = _overridden(asked, file)
    notes = []
    if asked.option is None and file.main not in ("lora", "norm"):
        notes.append(
            f"dim_from_weights: trains {file.main}, which the file is of; network_module networks.lora does nothing"
        )
    if sizes:
        shown = ", ".join(f"{name} {text}" for name, text in sizes.items())
        notes.append(
            f"dim_from_weights: ranks and alphas are those of the file, so this does nothing: {shown}; leave it out, "
            f"or {_MEND}"
        )
    if idle := _idle_dropouts(asked, file):
        notes.append(f"dim_from_weights: {', '.join(idle)} means nothing for {file.main} networks")
    return Decided(tuple(notes), _as_trained(asked, file, sizes))


# -------------------------------------------------------------------------------- refused


def _check(asked: _Asked, file: Shown) -> None:
    if asked.option and not asked.by_file and file.algorithms and asked.form not in file.algorithms:
        raise _refused(
            f"{file.path} is of the algorithm {file.main}, not {asked.algorithm}",
            f"{asked.option} and its arguments",
        )
    network = asked.network
    wants_kernels = network.network_module == LOCON or (network.algorithm or "").lower() == "locon"
    if wants_kernels and file.algorithms == {"lora"} and not any(row.is_kernel for row in file.modules):
        raise _refused(f"{file.path} has no convolutions above 1x1, which locon trains", f"{asked.option}")
    if asked.form == asked.algorithm:  # DyLoRA's and LoRA-FA's say how LoRA's modules are trained
        odd = [
            name
            for name, value in asked.own.items()
            if name not in HOW and name != "rs_lora" and not file.has(name, value, asked.form)
        ]
        if odd:
            given = ", ".join(f"{name}={asked.texts[name]}" for name in odd)
            raise _refused(f"the modules of {file.path} are not of {given}", ", ".join(odd))
    if "train_norm" in asked.texts and asked.args.train_norm != file.has_norms:
        raise _refused(f"{file.path} has {'norms' if file.has_norms else 'no norms'}", "train_norm")


def check_preset(preset: str, chosen: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Raise ConfigError where a preset chooses other layers than a file has, or other algorithms for them. ``chosen``,
    ``there``: the algorithm of each layer by its name, without norms."""
    if chosen.keys() != there.keys():
        both = len(chosen.keys() & there.keys())
        raise _refused(
            f"preset={preset} chooses {len(chosen)} layers, the file has {len(there)}, and {both} are in both",
            "preset",
        )
    for name, algorithm in chosen.items():
        if form_of(algorithm) != there[name]:
            raise _refused(
                f"preset={preset} asks for {algorithm} in {name}, where the file has {there[name]}", "preset"
            )


def _refused(what: str, option: str) -> ConfigError:
    return ConfigError(f"dim_from_weights: {what}; leave {option} out, or {_MEND}")


# -------------------------------------------------------------------------------- noted


def _overridden(asked: _Asked, file: Shown) -> dict[str, str]:
    """The options of ranks and alphas that the file has otherwise, with their values."""
    network, numbers = asked.network, asked.args.numbers
    row = algorithms.algorithm_of(file.main)
    by_rank = row is None or row.has_rank
    turns = file.main in ("oft", "boft")  # the rank makes the blocks, and sd-scripts' alpha is the constraint
    stable = bool(asked.own.get("rs_lora"))
    has: dict[str, tuple[object, bool]] = {}
    if network.network_dim and (by_rank or turns):
        has["network_dim"] = network.network_dim, file.has_dim(network.network_dim)
    if network.network_alpha and (by_rank or (turns and network.network_module == OFT)):
        has["network_alpha"] = (
            f"{network.network_alpha:g}",
            file.has_alpha(network.network_alpha, stable=stable),
        )
    for name in ("conv_dim", "conv_alpha") if by_rank else ():
        if name in numbers:
            has[name] = f"{numbers[name]:g}", file.has_of_kernels(name, numbers[name], stable=stable)
    if "rs_lora" in asked.own:
        agrees = file.states("rs_lora", stable, asked.algorithm) or not (
            stable or "rs_lora" in file.arguments
        )
        has["rs_lora"] = stable, agrees
    return {name: str(value) for name, (value, agrees) in has.items() if not agrees}


def _idle_dropouts(asked: _Asked, file: Shown) -> list[str]:
    """Dropouts that no module of the file knows, though the algorithm that was asked for does."""
    known = frozenset().union(*(adapter_class(name).drops for name in file.algorithms))
    network, numbers = asked.network, asked.args.numbers
    given = {
        "network_dropout": ("element", asked.args.dropout or network.network_dropout),
        "rank_dropout": ("rank", numbers.get("rank_dropout", 0.0)),
        "module_dropout": ("module", numbers.get("module_dropout", 0.0)),
    }
    return [
        name
        for name, (kind, chance) in given.items()
        if chance and kind not in known and name not in asked.args.unused
    ]


# -------------------------------------------------------------------------------- told in metadata


def _as_trained(asked: _Asked, file: Shown, overridden: Collection[str]) -> NetworkSettings:
    """The options as they ask for what is trained."""
    network = plain_words(asked.network)
    dropped = {*overridden, *(() if "preset" in asked.texts else ("preset",))}  # algorithm implies a preset
    words = [word for word in network.network_args if word.partition("=")[0].strip() not in dropped]
    row = algorithms.algorithm_of(file.main)
    if row is not None and row.algos and not asked.by_file:
        if file.main != asked.form:
            words = [word for word in words if word.partition("=")[0].strip() not in ("algo", "preset")]
            words.insert(0, f"algo={row.algos[0]}")
            network = replace(network, network_module=algorithms.LYCORIS)
        given = {word.partition("=")[0].strip() for word in words}
        options = [module.options for module in file.modules if module.algorithm == file.main]
        for name in adapter_class(file.main).arguments:
            if name not in given and all(one.get(name) is True for one in options):
                words.append(f"{name}=True")
    # Where no rank is in use: what the file says, or nothing.
    stated = None if file.stated_dim is None else int(file.stated_dim)
    dim, alpha = (stated, file.stated_alpha) if file.size is None else file.size
    return replace(network, network_dim=dim, network_alpha=alpha, network_args=tuple(words))
