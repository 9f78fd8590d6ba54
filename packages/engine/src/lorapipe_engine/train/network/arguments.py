"""``network_args``: what the network is made of beyond rank and alpha."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
from lorapipe_engine.networks import algorithms
from lorapipe_engine.nn.attach import Kind, NetworkPlan, Target
from lorapipe_engine.nn.base import Adapter, Dropouts, Size, adapter_class
from lorapipe_engine.nn.options import flag
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.network import lycoris
from lorapipe_engine.train.network.blocks import (
    block_numbers,
    block_of,
    block_weights,
    layout_of,
    layouts,
    whole,
)
from lorapipe_engine.train.network.modules import Asked, asked_by, plain_words
from lorapipe_engine.train.network.targets import PRESETS

_NUMBERS = ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_lr_zero_threshold")
_DROPOUT = "dropout"
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_RANK_SCALE = "rank_dropout_scale"
COMMON = (*_NUMBERS, *_PLUS, *_LISTS, *_WEIGHTS, "train_norm", _RANK_SCALE)
_ELSEWHERE = {
    "algo": "kinds of LyCORIS need --network_module lycoris.kohya",
    "preset": "presets of LyCORIS need --network_module lycoris.kohya",
    "unit": "blocks of ranks need --network_module networks.dylora",
    "dropout": "is spelt network_dropout, an option of its own",
}


@dataclass(frozen=True)
class NetworkArgs:
    """``network_args``, checked. ``numbers`` by name; ``lists`` and ``weights`` as they were written, because the
    number of blocks shows only with the base. ``kind``: the algorithm, and the arguments that it alone has.
    ``preset``: LyCORIS' choice of modules, a name or a file; None: sd-scripts'. ``conv_follows``: kernels above 1x1
    are trained with the rank and alpha of linear layers unless conv_dim and conv_alpha say otherwise. ``train_norm``:
    norms beside trained layers are trained too. ``dropout``: LyCORIS' word for network_dropout. ``rank_scale``: see
    :class:`Dropouts`. ``unused``: names that change nothing here."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = field(default_factory=Kind)
    preset: str | None = None
    conv_follows: bool = False
    train_norm: bool = False
    dropout: float = 0.0
    rank_scale: bool | None = None
    unused: tuple[str, ...] = ()

    def plus(self, part: str) -> float | None:
        """LoRA+: how much higher the rate of its roles (``lora_up``) is in a part; None where it is not asked for."""
        return self.numbers.get(self._ratio(part))

    def _ratio(self, part: str) -> str:
        """The name of the ratio that counts in a part."""
        own = "loraplus_unet_lr_ratio" if not is_text(part) else "loraplus_text_encoder_lr_ratio"
        return own if self.numbers.get(own) else "loraplus_lr_ratio"

    def idle_ratios(self, parts: Iterable[str]) -> list[str]:
        """The ratios of LoRA+ that were given and count in none of these parts."""
        used = {self._ratio(part) for part in parts}
        return [name for name in _PLUS if name in self.numbers and name not in used]

    def weights_of(self, family: str) -> list[float] | None:
        """The factor of the rate for each block of the UNet; None where it is not asked for. Raises ConfigError."""
        if not self.weights:
            return None
        zero = self.numbers.get("block_lr_zero_threshold", 0.0)
        down, middle, up = (self.weights.get(name) for name in _WEIGHTS)
        return block_weights(down, middle, up, family, zero)

    @property
    def has_rates(self) -> bool:
        """Whether a part has more than one rate."""
        return bool(self.weights) or any(self.numbers.get(name, 1.0) != 1.0 for name in _PLUS)


def read_network_args(network: NetworkSettings) -> NetworkArgs:
    """Parse ``network_module`` and ``network_args``. Raises ConfigError for an unknown name (the nearest is told) or an
    unusable value."""
    network = plain_words(network)
    preset: str | None = None
    unused: tuple[str, ...] = ()
    if network.network_module == lycoris.MODULE:
        known = {row.name: adapter_class(row.name).arguments for row in algorithms.ALGORITHMS if row.algos}
        chosen = lycoris.read_lycoris(network.network_args, PRESETS, known)
        asked, preset = Asked(chosen.algorithm, {}, conv_follows=True), chosen.preset
        network = replace(network, network_args=chosen.words)
        unused = (*chosen.unused, *_without_use(network, chosen.algorithm))
    else:
        asked = asked_by(network)
    adapter = adapter_class(asked.algorithm)
    texts = _texts(network, (*COMMON, *adapter.arguments, *([_DROPOUT] if preset else [])))
    own = {name: _own(name, texts[name], adapter) for name in adapter.arguments if name in texts}
    args = NetworkArgs(
        {name: _number(name, texts[name]) for name in (*_NUMBERS, *_PLUS) if name in texts},
        {name: texts[name] for name in _LISTS if name in texts},
        {name: texts[name] for name in _WEIGHTS if name in texts},
        Kind(asked.algorithm, {**asked.options, **own}),
        preset,
        asked.conv_follows,
        _switch("train_norm", texts) or False,
        _number(_DROPOUT, texts.get(_DROPOUT, "0")),
        _switch(_RANK_SCALE, texts),
        unused,
    )
    _check(args)
    return args


def _switch(name: str, texts: Mapping[str, str]) -> bool | None:
    """True or False; None where it is not given."""
    try:
        return flag(texts[name]) if name in texts else None
    except ValueError as error:
        raise ConfigError(f"network_args: {name} takes {error}, not '{texts[name]}'") from error


def _texts(network: NetworkSettings, known: Collection[str]) -> dict[str, str]:
    """The arguments by name, as they were written."""
    texts: dict[str, str] = {}
    for word in network.network_args:
        name, sign, text = (piece.strip() for piece in word.partition("="))
        if not sign:
            raise ConfigError(f"network_args: '{word}' is not of the form name=value")
        if name in texts:
            raise ConfigError(f"network_args: {name} is given twice")
        if name not in known:
            raise ConfigError(f"network_args: '{name}' {_unknown(name, known)}")
        texts[name] = text
    return texts


def _unknown(name: str, known: Iterable[str]) -> str:
    if name in _ELSEWHERE:
        return f"is not known: {_ELSEWHERE[name]}"
    return f"is not known{nearest(name, known) or '; known: ' + ', '.join(known)}"


def _own(name: str, text: str, adapter: type[Adapter]) -> Any:
    """The value of an argument that the algorithm alone has."""
    try:
        return adapter.arguments[name](text)
    except ValueError as error:
        raise ConfigError(f"network_args: {name} takes {error}, not '{text}'") from error


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    top = 1.0 if name.endswith("dropout") else float("inf")
    if not 0 <= value < top:
        limit = "from 0 to under 1" if top == 1 else "of 0 or more"
        raise ConfigError(f"network_args: {name} takes a number {limit}, not '{text}'")
    if name == "conv_dim" and value != int(value):
        raise ConfigError(f"network_args: conv_dim takes a whole number, not '{text}'")
    return value


def _check(args: NetworkArgs) -> None:
    """Raise ConfigError for lists that fit no family, or that mean nothing without another option."""
    needs = {"block_alphas": "block_dims", "conv_block_alphas": "conv_block_dims"}
    for name, other in needs.items():
        if name in args.lists and other not in args.lists:
            raise ConfigError(f"network_args: {name} needs {other}")
    if "block_lr_zero_threshold" in args.numbers and not args.weights:
        raise ConfigError(
            "network_args: block_lr_zero_threshold needs down_lr_weight, mid_lr_weight or up_lr_weight"
        )
    errors: list[ConfigError] = []
    for family in layouts():
        try:
            args.weights_of(family)
            for name, text in args.lists.items():
                block_numbers(name, text, family)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(layouts()):
        raise errors[0]


# -------------------------------------------------------------------------------- the plan


def network_plan(network: NetworkSettings, args: NetworkArgs) -> NetworkPlan:
    """Ranks and dropouts from the network options, of which ``args`` are read already. Raises ConfigError for a dropout
    that the algorithm knows nothing of."""
    _check_dropouts(network, args)
    rank = network.network_dim or 0
    alpha = float(network.network_alpha or rank)
    # 0 leaves kernels above 1x1 as they are, under LyCORIS' module too.
    conv_rank = int(args.numbers.get("conv_dim", rank if args.conv_follows else 0)) or None
    known, asked = adapter_class(args.kind.algorithm).drops, _dropouts(network, args)
    return NetworkPlan(
        rank=rank,
        alpha=alpha,
        conv_rank=conv_rank,
        conv_alpha=args.numbers.get("conv_alpha", alpha if args.conv_follows else 1.0),
        kind=args.kind,
        dropouts=Dropouts(
            **{kind: value for kind, value in asked.values() if kind in known}, rank_scale=args.rank_scale
        ),
    )


def _dropouts(network: NetworkSettings, args: NetworkArgs) -> dict[str, tuple[str, float]]:
    """The dropouts that were asked for: kind and chance by the option's name."""
    return {
        "network_dropout": ("element", args.dropout or network.network_dropout),
        "rank_dropout": ("rank", args.numbers.get("rank_dropout", 0.0)),
        "module_dropout": ("module", args.numbers.get("module_dropout", 0.0)),
    }


def _check_dropouts(network: NetworkSettings, args: NetworkArgs) -> None:
    """Raise ConfigError for a dropout that the algorithm knows nothing of. Under LyCORIS' module it is only noted, as
    LyCORIS takes it without using it."""
    if plain_words(network).network_module == lycoris.MODULE:
        return
    known = adapter_class(args.kind.algorithm).drops
    for name, (kind, value) in _dropouts(network, args).items():
        if value and kind not in known:
            raise ConfigError(f"{name}: means nothing for {args.kind.algorithm} networks; leave it out")
    if args.rank_scale and "rank" not in known:
        raise ConfigError(f"{_RANK_SCALE}: means nothing for {args.kind.algorithm} networks; leave it out")
    if args.rank_scale and not args.numbers.get("rank_dropout"):
        raise ConfigError(f"network_args: {_RANK_SCALE} needs rank_dropout")


def _without_use(network: NetworkSettings, algorithm: str) -> list[str]:
    """Dropouts that are asked for and that the algorithm knows nothing of."""
    known = adapter_class(algorithm).drops
    texts = dict(word.partition("=")[::2] for word in network.network_args)
    given = {
        "network_dropout": ("element", str(network.network_dropout)),
        _DROPOUT: ("element", texts.get(_DROPOUT, "0")),
        "rank_dropout": ("rank", texts.get("rank_dropout", "0")),
        "module_dropout": ("module", texts.get("module_dropout", "0")),
    }
    unused = [name for name, (kind, text) in given.items() if kind not in known and text.strip("0.")]
    dropped = "rank" in known and given["rank_dropout"][1].strip("0.")
    if not dropped and texts.get(_RANK_SCALE, "0").lower() not in lycoris.OFF:
        unused.append(_RANK_SCALE)
    return unused


def wants_conv(plan: NetworkPlan, args: NetworkArgs) -> bool:
    """Whether layers of residual blocks and samplers are targets."""
    return plan.conv_rank is not None or "conv_block_dims" in args.lists


def by_block(plan: NetworkPlan, args: NetworkArgs, targets: Iterable[Target], family: str) -> NetworkPlan:
    """The plan with a size for every module, where sizes or rates go by block; else the plan as it is.

    Blocks of rank 0 or rate 0 stay as they are; text encoders keep the plan's rank. Raises ConfigError.
    """
    weights = args.weights_of(family)
    if not args.lists and weights is None:
        return plan
    sizes: dict[str, Size] = {}
    linear, conv = _sizes(plan, args, family)
    for target in targets:
        size = plan.size_of(target.module)
        block = block_of(family, target.name) if not is_text(target.part) else None
        if block is not None:
            large = max(getattr(target.module, "kernel_size", (1,))) > 1
            size = (conv if large else linear)[block]
            if weights is not None and weights[block] == 0:
                continue
        if size is not None and size[0]:
            sizes[target.name] = size
    if not sizes:
        raise ConfigError("network_args: every block has rank or rate 0, so there is nothing to train")
    return replace(plan, sizes=sizes)


def _sizes(plan: NetworkPlan, args: NetworkArgs, family: str) -> tuple[list[Size], list[Size]]:
    """Rank and alpha for each block: of linear layers and 1x1 convolutions, and of larger kernels."""
    count = layout_of(family).count

    def ranks(name: str, default: int) -> list[int]:
        text = args.lists.get(name)
        return [default] * count if text is None else whole(name, block_numbers(name, text, family))

    def alphas(name: str, default: float) -> list[float]:
        text = args.lists.get(name)
        return [default] * count if text is None else block_numbers(name, text, family)

    linear = map(Size, ranks("block_dims", plan.rank), alphas("block_alphas", plan.alpha))
    conv = map(
        Size, ranks("conv_block_dims", plan.conv_rank or 0), alphas("conv_block_alphas", plan.conv_alpha)
    )
    return list(linear), list(conv)
