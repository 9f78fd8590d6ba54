"""Put a network into a model: choose modules, wrap each one, gather the parameters in flat buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size, adapter_class
from lorapipe_engine.nn.flat import FlatGroup, RateGroup

RateOf = Callable[[str, str, bool], RateGroup]


@dataclass(frozen=True)
class Target:
    """A module to adapt: the part of the model ("unet", "te1", "te2"), its name in a LoRA file, itself."""

    part: str
    name: str
    module: nn.Module


@dataclass(frozen=True)
class Kind:
    """An algorithm by its name in the table, and its own options."""

    algorithm: str = "lora"
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """What the modules get. Linear layers and 1x1 convolutions take ``rank``, larger kernels ``conv_rank``.

    ``alpha`` scales the change by alpha / rank. ``conv_rank`` None leaves larger kernels alone. ``sizes``: rank and
    alpha by the module's name in a file; where there are any, they alone count, and other modules stay as they are.
    ``kinds``: of single modules, by name, where theirs is not ``kind``.
    """

    rank: int
    alpha: float
    conv_rank: int | None = None
    conv_alpha: float = 1.0
    dropouts: Dropouts = field(default_factory=Dropouts)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    kind: Kind = field(default_factory=Kind)
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def size_of(self, module: nn.Module, name: str = "") -> Size | None:
        """Rank and alpha for a module, or None where it stays as it is."""
        if self.sizes:
            return self.sizes.get(name)
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return None if self.conv_rank is None else Size(self.conv_rank, self.conv_alpha)
        return Size(self.rank, self.alpha)


class Network:
    """The adapters of a model: ``adapters`` by LoRA name, ``groups`` of parameters by part.

    ``rate_of``: the rate group of a parameter, from its part, its module and whether LoRA+ trains it faster; None:
    one for each part.
    """

    def __init__(
        self, adapters: Mapping[str, Adapter], parts: Mapping[str, str], rate_of: RateOf | None = None
    ) -> None:
        self.adapters = dict(adapters)
        self.parts = dict(parts)
        self.groups: dict[str, FlatGroup] = {}
        for part in dict.fromkeys(self.parts[name] for name in self.adapters):
            owned = [
                (
                    getattr(adapter, role),
                    rate_of(part, name, role in adapter.faster) if rate_of else RateGroup(part),
                    place,
                )
                for name, adapter in self.adapters.items()
                if self.parts[name] == part
                for place, role in enumerate(adapter.roles)
            ]
            # In each rate group all parameters of one role, then all of the next: those of query, key and value lie
            # side by side, and one product gives the gradients of their downs. The groups stay in the order of the
            # modules, as sd-scripts has them.
            places = {rate: place for place, rate in enumerate(dict.fromkeys(rate for _, rate, _ in owned))}
            owned.sort(key=lambda row: (places[row[1]], row[2]))
            self.groups[part] = FlatGroup(part, [p for p, _, _ in owned], [rate for _, rate, _ in owned])

        classes: dict[type[Adapter], list[Adapter]] = {}
        for adapter in self.adapters.values():
            classes.setdefault(type(adapter), []).append(adapter)
        works = [kind.together(rows) for kind, rows in classes.items()]
        self.together = [work for work in works if work is not None]

    def begin(self) -> None:
        """Before the passes of a step: what adapters compute together. Then :meth:`finish` after each backward pass,
        and :meth:`end` before the parameters change."""
        for work in self.together:
            work.begin()

    def finish(self) -> None:
        """Bring the gradients of what is computed together to the parameters."""
        for work in self.together:
            work.finish()

    def end(self) -> None:
        """Forget what was computed together."""
        for work in self.together:
            work.end()

    def file_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the LoRA file, by its key, on the CPU in float32 and sorted by key."""
        tensors = {
            f"{name}.{role}": tensor.detach().to("cpu", torch.float32)
            for name, adapter in self.adapters.items()
            for role, tensor in adapter.file_tensors().items()
        }
        return dict(sorted(tensors.items()))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values and alphas of a file with exactly these modules.

        Raises InputError naming the first module or tensor that is missing, left over, or of another size.
        """
        modules: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, suffix = key.partition(".")
            modules.setdefault(name, {})[suffix] = tensor
        if odd := sorted(modules.keys() ^ self.adapters.keys()):
            raise InputError(f"the file does not fit this network: {len(odd)} modules differ, first {odd[0]}")
        for name, adapter in self.adapters.items():
            try:
                adapter.load(modules[name])
            except InputError as error:
                raise InputError(f"{name}: {error}") from error

    def state(self) -> dict[str, Tensor]:
        """Every value of the network as it is, by module and role. A file may hold it in another form, as a product."""
        return {
            f"{name}.{role}": getattr(adapter, role)
            for name, adapter in self.adapters.items()
            for role in (*adapter.roles, *adapter.frozen)
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave. Raises ConfigError where names or shapes differ."""
        own = self.state()
        odd = sorted(own.keys() ^ tensors.keys())
        odd += [name for name in own if not odd and own[name].shape != tensors[name].shape]
        if odd:
            raise ConfigError(f"the state is of another network: {len(odd)} tensors differ, first {odd[0]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def train(self, mode: bool = True) -> None:
        """Switch the dropouts of all adapters on or off."""
        for adapter in self.adapters.values():
            adapter.training = mode

    def set_multiplier(self, value: float) -> None:
        """Set the strength of every adapter."""
        for adapter in self.adapters.values():
            adapter.multiplier = value

    @contextmanager
    def scaled(self, value: float) -> Iterator[None]:
        """Use another strength for a while (0 is the base model)."""
        before = {name: adapter.multiplier for name, adapter in self.adapters.items()}
        self.set_multiplier(value)
        try:
            yield
        finally:
            for name, adapter in self.adapters.items():
                adapter.multiplier = before[name]

    def scaled_as_now(self) -> AbstractContextManager[None]:
        """To use the strength of now again, for a while, later."""
        return self.scaled(next(iter(self.adapters.values())).multiplier)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Have the frozen layers alone for a while: the base model, at no more than its own cost, and nothing of the
        network's is drawn."""
        before = {name: vars(adapter).get("forward") for name, adapter in self.adapters.items()}
        for adapter in self.adapters.values():
            vars(adapter)["forward"] = adapter.base
        try:
            yield
        finally:
            for name, adapter in self.adapters.items():
                own = before[name]
                if own is None:
                    del vars(adapter)["forward"]
                else:
                    vars(adapter)["forward"] = own

    def count(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for a in self.adapters.values() for p in a.parameters() if p.requires_grad)


def attach(
    roots: Iterable[nn.Module],
    targets: Iterable[Target],
    plan: NetworkPlan,
    rate_of: RateOf | None = None,
) -> Network:
    """Wrap every target that the plan gives a size, in place, inside the trees of ``roots``. ``rate_of``: see
    :class:`Network`.

    Raises ConfigError if nothing is left to train, or for an algorithm that is not trained here.
    """
    places = {id(child): (parent, name) for parent, name, child in children_of(roots)}
    adapters: dict[str, Adapter] = {}
    parts: dict[str, str] = {}
    for target in targets:
        size = plan.size_of(target.module, target.name)
        if size is None:
            continue
        kind = plan.kinds.get(target.name, plan.kind)
        adapter = adapter_class(kind.algorithm).create(target.module, size, plan.dropouts, kind.options)
        parent, name = places[id(target.module)]
        setattr(parent, name, adapter)
        adapters[target.name] = adapter
        parts[target.name] = target.part
    if not adapters:
        raise ConfigError("the network has nothing to train: no module of this model is a target")
    return Network(adapters, parts, rate_of)


def detach(roots: Iterable[nn.Module]) -> int:
    """Take every adapter out again, leaving the frozen modules in their places; returns how many there were."""
    count = 0
    for parent, name, child in list(children_of(roots)):
        if isinstance(child, Adapter):
            setattr(parent, name, child.base)
            count += 1
    return count


def children_of(roots: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for root in roots:
        for parent in root.modules():
            for name, child in parent.named_children():
                yield parent, name, child
