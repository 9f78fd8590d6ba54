"""Networks in a base that is drawn with: swapped in place, several on one layer, strengths by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.nn.attach import Network, children_of, detach
from lorapipe_engine.nn.base import Adapter
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
        on_layer: dict[int, list[Adapter]] = {}
        for row in rows:
            for adapter in _at_strength(self._network(row.file.path), self._family.facts.denoiser, row):
                on_layer.setdefault(id(adapter.base), []).append(adapter)
        for key, adapters in on_layer.items():
            parent, name = self._places[key]
            self._changed.append((parent, name, adapters[0].base))
            setattr(parent, name, adapters[0] if len(adapters) == 1 else Together(adapters))

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
            except (LoraError, TypeError) as error:
                raise NetworkProblem(path, str(error)) from error
            finally:
                detach(self._family.parts.values())
            self._read[path] = network
        self._read[path] = self._read.pop(path)  # the last to be dropped
        return self._read[path]


class Together(nn.Module):
    """Several adapters of one layer: what the layer gives, and what each by itself would change of it."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.base = adapters[0].base
        self.adapters = nn.ModuleList(_with_base(adapter, self._shared_base()) for adapter in adapters)
        self._shared: tuple[Tensor, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some callers look at a layer's dtype or device through it."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if any."""
        return cast("Tensor | None", self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes."""
        out: Tensor = self.base(x)
        self._shared = x, out
        total = out
        for adapter in self.adapters:
            total = total + (adapter(x) - out)
        self._shared = None
        return total

    def _shared_base(self) -> nn.Module:
        """The layer as an adapter sees it, which is not evaluated anew for the same x."""
        layer = copy(self.base)

        def forward(x: Tensor) -> Tensor:
            if self._shared is not None and self._shared[0] is x:
                return self._shared[1]
            out: Tensor = self.base(x)
            return out

        layer.forward = forward
        return layer


def _at_strength(network: Network, denoiser: str, row: Loaded) -> Iterator[Adapter]:
    """The adapters of a network with its strengths in a picture, without those of parts at 0."""
    for name, adapter in network.adapters.items():
        strength = row.unet if network.parts[name] == denoiser else row.te
        if strength:
            # A copy with the same parameters: a network may be in a picture twice.
            own = _with_base(adapter, adapter.base)
            own.multiplier = strength
            yield own


def _with_base(adapter: Adapter, base: nn.Module) -> Adapter:
    """A copy of an adapter, with the same parameters, around another module."""
    own = copy(adapter)
    own._modules = {**adapter._modules, "base": base}
    return own
