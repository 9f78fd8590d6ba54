"""Networks in a base that is drawn with: swapped in place, several on one layer, strengths by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path

from torch import nn

from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.nn.attach import Network, children_of, detach
from lorapipe_engine.nn.base import Adapter
from lorapipe_engine.nn.ia3 import Ia3
from lorapipe_engine.sampling.shelf import Loaded
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.apply import attach_file

MOST_READ = 8  # networks that stay in memory for the next swap


class NetworkProblem(InputError):
    """A network cannot be used. ``path``: which."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


class Swapper:
    """Puts sets of networks into a family and takes them out. The base's weights are never written to.

    Every network's change is that of the base's own weight, and the changes of several are added.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._places = {
            id(child): (parent, name) for parent, name, child in children_of(family.parts.values())
        }
        self._read: dict[Path, Network] = {}
        self._changed: list[tuple[nn.Module, str, nn.Module]] = []

    def use(self, rows: Iterable[Loaded]) -> None:
        """Have these networks in the model, and no others.

        Raises NetworkProblem for a file that is broken, of another family or an algorithm that is not attached; the
        model is the base by itself then.
        """
        self.clear()
        strengths: dict[Path, tuple[float, float]] = {}
        for row in rows:
            # The same network twice is one of both strengths together.
            te, unet = strengths.get(row.file.path, (0.0, 0.0))
            strengths[row.file.path] = te + row.te, unet + row.unet
        networks = {path: self._network(path) for path in strengths}
        on_layer: dict[int, list[Adapter]] = {}
        for path, network in networks.items():
            for adapter in _at_strength(network, self._family.facts.denoiser, strengths[path]):
                on_layer.setdefault(id(adapter.base), []).append(adapter)
        for key, adapters in on_layer.items():
            parent, name = self._places[key]
            self._changed.append((parent, name, adapters[0].base))
            setattr(parent, name, _chained(adapters))

    def clear(self) -> None:
        """Have the base by itself."""
        for parent, name, module in self._changed:
            setattr(parent, name, module)
        self._changed.clear()

    def _network(self, path: Path) -> Network:
        """A network that is read and not in the model."""
        if path not in self._read:
            while len(self._read) >= MOST_READ:
                self._read.pop(next(iter(self._read)))
            try:
                network = attach_file(self._family, path)
            except LoraError as error:
                raise NetworkProblem(path, str(error)) from error
            finally:
                detach(self._family.parts.values())
            self._read[path] = network
        self._read[path] = self._read.pop(path)  # the last to be dropped
        return self._read[path]


def _at_strength(network: Network, denoiser: str, strengths: tuple[float, float]) -> Iterator[Adapter]:
    """The adapters of a network with their strengths, without those of parts at 0."""
    for name, adapter in network.adapters.items():
        strength = strengths[network.parts[name] == denoiser]
        if strength:
            adapter.multiplier = strength
            yield adapter


def _chained(adapters: list[Adapter]) -> nn.Module:
    """The adapters of one layer as one module, each adding its change to what the one within gives.

    (IA)3 scales what its layer gives, so it is next to the layer.
    """
    inner, *others = sorted(adapters, key=lambda row: not isinstance(row, Ia3))
    for adapter in others:
        inner = _around(adapter, inner)
    return inner


def _around(adapter: Adapter, inner: Adapter) -> Adapter:
    """A copy of an adapter, with the same parameters, whose base is another adapter of the same layer."""
    layer = copy(adapter.base)  # its weights and shape, for the adapter to look at
    layer.forward = inner.forward
    outer = copy(adapter)
    outer._modules = {**adapter._modules, "base": layer}
    return outer
