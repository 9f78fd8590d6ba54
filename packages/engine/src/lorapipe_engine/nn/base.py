"""What the network asks of an algorithm that is trained: one class, named by the algorithm's row in
:data:`lorapipe_engine.networks.algorithms.ALGORITHMS`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.networks.algorithms import Algorithm

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dropouts:
    """The three dropouts of an adapter, each a probability in 0..1 and active in training only.

    ``element``: of single values of the rank activation (``network_dropout``); ``rank``: of whole rank
    channels per sample; ``module``: of the whole branch, one draw a forward. ``rank_scale``: whether what a dropout of
    ranks keeps is divided by the share that is kept (LyCORIS' ``rank_dropout_scale``); None: as the algorithm has it.
    """

    element: float = 0.0
    rank: float = 0.0
    module: float = 0.0
    rank_scale: bool | None = None

    @property
    def any(self) -> bool:
        """Whether anything is dropped."""
        return bool(self.element or self.rank or self.module)


NO_DROPOUT = Dropouts()


class Size(NamedTuple):
    """How large a module's change may be, and how strong: by alpha / rank. Algorithms without ranks read neither."""

    rank: int
    alpha: float


class OverLayer(nn.Module):
    """Stands in a model's tree in the place of a layer, ``base``."""

    base: nn.Module

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some callers look at a layer's dtype or device through it."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if any."""
        return cast("Tensor | None", self.base.bias)


class Together(Protocol):
    """Work for the passes of a step that adapters have in common."""

    def begin(self) -> None:
        """Compute it from the parameters as they are."""

    @property
    def bytes(self) -> int:
        """Of what :meth:`begin` made room for, beside what autograd saves of it."""

    def finish(self) -> None:
        """After a backward pass: add what it gave to the gradients of the parameters."""

    def end(self) -> None:
        """The parameters change: forget it. Until the next :meth:`begin` each adapter computes its own."""


class Adapter(OverLayer):
    """A frozen module with a trainable change beside it; stands in the model's tree in the module's place.

    Subclasses add parameters in float32 and compute ``base(x) + multiplier · change(x)`` in the dtype of ``x``.
    ``multiplier`` is the strength of the change; 0 gives the base module's own result.

    What a subclass must have: ``needs``, :meth:`create`, :meth:`shapes`, ``forward``, :meth:`delta`,
    :meth:`file_tensors`, :meth:`scale_`. Everything else has an answer that is right for any algorithm, and may be
    given a quicker one.
    """

    faster: ClassVar[frozenset[str]] = frozenset()
    """The roles that LoRA+ trains at a higher rate."""
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {}
    """What ``network_args`` may say to this algorithm alone: the names, and how a text is read. A reader raises
    ValueError with what it takes ("a whole number of 1 or more")."""
    drops: ClassVar[frozenset[str]] = frozenset()
    """The fields of :class:`Dropouts` that it has a use for."""
    needs: ClassVar[frozenset[str]]
    """Suffixes that a file's module must have to be trained on, beside the alpha."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Suffixes that it may have too."""
    low_rank: ClassVar[bool] = False
    """True where ``forward`` is exactly ``base(x) + alpha / rank · up(drop(down(x)))`` of the parameters ``lora_down``
    and ``lora_up``, which fused blocks compute in products of their own. It counts for the class that says so, not for
    its subclasses: see :func:`is_low_rank`."""

    frozen: ClassVar[tuple[str, ...]] = ()
    """Parameters of its own that are not trained: they are no roles, and a state has them all the same."""
    draws: ClassVar[bool] = False
    """Whether its forward draws random numbers in training, beside the dropouts'."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.multiplier = 1.0
        self.rank = 0
        self.alpha = 0.0
        self.options: Options = {}

    @classmethod
    @abstractmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        """A fresh adapter of ``base`` that changes nothing yet. ``options``: read from ``arguments``.

        Raises ConfigError for options that do not fit the layer, TypeError for a layer that cannot be adapted.
        """

    @classmethod
    @abstractmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by role (their name), for a weight of shape ``layer``: (out, in) or (out, in, k, k).
        The flat buffer has the roles in this order, all parameters of one role side by side."""

    @classmethod
    def count(cls, layer: tuple[int, ...], size: Size, options: Options) -> int:
        """Number of trained values for a weight of shape ``layer``."""
        return sum(math.prod(shape) for shape in cls.shapes(layer, size, options).values())

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:  # noqa: ARG003
        """The options that the tensors of a file's module show, by suffix."""
        return {}

    def short_rank(self) -> int:
        """The rank of :meth:`short_form`; 0 where the change has no such form here, or dropouts in its way, or one that
        costs more than the base's own product."""
        return 0

    def has_short_form(self) -> bool:
        """Whether fused blocks may compute it by its :meth:`short_form`."""
        return self.short_rank() > 0

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The changes of N adapters that are :func:`alike` as products of two factors: down (N, R, in), up (N, out, R).
        Each up · down is a change at strength 1, as ``forward`` has it in training.

        ``values``: their parameters by name, those of all ``rows`` stacked, (N, ...) in float32. Gradients go back to
        them.
        """
        raise NotImplementedError

    def plain_factors(self) -> tuple[str, str] | None:
        """The names of the parameters that are down and up of :meth:`short_form` as they are, up but for alpha / rank;
        None where it makes them of others."""
        return None

    def short_axis(self) -> int | None:
        """0 where base and change together are multiplied with a number for each output, 1 where the input is, with one
        for each input: :meth:`short_ratio`. None: neither."""
        return None

    @classmethod
    def short_ratio(
        cls, rows: Sequence[Self], values: Mapping[str, Tensor], down: Tensor, up: Tensor
    ) -> Tensor:
        """The numbers of :meth:`short_axis` for N adapters that are :func:`alike`, (N, out) or (N, in), beside the
        factors of :meth:`short_form`, without the change's share of them in it. Gradients go back to ``values``."""
        raise NotImplementedError

    @classmethod
    def together(cls, rows: Sequence[Self]) -> Together | None:  # noqa: ARG003
        """What all adapters of the class in a network compute together for the passes of a step, before them; None:
        nothing."""
        return None

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of :meth:`shapes`."""
        return tuple(self.shapes(tuple(self.weight.shape), Size(self.rank, self.alpha), self.options))

    # ---------------------------------------------------------------- files

    def delta(self) -> Tensor:
        """The dense change of the weight at strength 1, in float32 and the weight's shape."""
        raise NotImplementedError

    def delta_at(self, multiplier: float) -> Tensor:
        """The dense change at a strength; :meth:`delta` times it, but for changes that do not grow in a line."""
        return self.delta() * multiplier

    def bias_delta(self) -> Tensor | None:
        """The change of the bias at strength 1, in float32; None for an algorithm that leaves it alone."""
        return None

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors of a file, by the part of the key after the module's name; views of parameters where they are
        stored as they are."""
        raise NotImplementedError

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values and the alpha of a file's module, by suffix. Linear layers and 1x1 convolutions are stored
        either way, so only the number of values has to fit.

        Raises InputError naming the tensor that is missing, left over, or of another size.
        """
        own = self.file_tensors()
        if odd := sorted((own.keys() ^ tensors.keys()) - {"alpha"}):
            raise InputError(f"{odd[0]} {'is missing' if odd[0] in own else 'has no place in this network'}")
        for suffix, tensor in own.items():
            if suffix != "alpha" and tensors[suffix].numel() != tensor.numel():
                given, wanted = tuple(tensors[suffix].shape), tuple(tensor.shape)
                raise InputError(f"{suffix} has shape {given}, the model's layer needs {wanted}")
        with torch.no_grad():
            self.fill({s: tensors[s].reshape(tensor.shape) for s, tensor in own.items() if s != "alpha"})
        if "alpha" in own:
            self.alpha = float(tensors["alpha"]) if "alpha" in tensors else float(self.rank)
            self.alpha = self.alpha or float(self.rank)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a file's values, which fit, into the parameters. An algorithm whose file holds something else than its
        parameters says how."""
        memory = {p.untyped_storage().data_ptr() for p in self.parameters()}
        for suffix, tensor in self.file_tensors().items():
            if suffix == "alpha":
                continue
            if tensor.untyped_storage().data_ptr() not in memory:
                raise TypeError(
                    f"{type(self).__name__}.fill: {suffix} is no parameter, so it must be given here"
                )
            tensor.copy_(tensors[suffix])

    # ---------------------------------------------------------------- norms

    @abstractmethod
    def scale_(self, factor: Tensor) -> None:
        """Multiply the change by ``factor``, a 0-d tensor of 0 or more, in place, without waiting for the device."""

    def change_norm(self) -> Tensor:
        """Frobenius norm of the change at strength 1, 0-d. Nothing in it waits for the device."""
        return torch.sqrt(self.delta().square().sum())

    @classmethod
    def change_norms(cls, rows: Sequence[Self]) -> Tensor:
        """:meth:`change_norm` of adapters that are :func:`alike`, (N,)."""
        return torch.stack([row.change_norm() for row in rows])

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        """Scale the changes of adapters that are :func:`alike` down to a norm of ``limit`` where they are above it;
        their norms before, (N,)."""
        norms = cls.change_norms(rows)
        factors = limit / norms.clamp(min=limit)
        for row, factor in zip(rows, factors.unbind(), strict=True):
            row.scale_(factor)
        return norms


def is_low_rank(module: nn.Module) -> bool:
    """Whether fused blocks may compute an adapter's forward in products of their own. A subclass does not inherit that:
    its forward may be another."""
    return isinstance(module, Adapter) and bool(vars(type(module)).get("low_rank", False))


def is_off(adapter: Adapter) -> bool:
    """Whether its frozen layer alone runs now (see :meth:`.attach.Network.off`)."""
    return vars(adapter).get("forward") is adapter.base


def counts_whole(adapter: Adapter) -> bool:
    """Whether an adapter's whole change counts now: it is at strength 1, nothing is dropped, and the network is on."""
    dropping = adapter.training and adapter.dropouts.any
    return adapter.multiplier == 1 and not dropping and not is_off(adapter)


def alike(adapters: Iterable[Adapter]) -> list[list[Adapter]]:
    """Adapters of one class, strength and shape together, in their order."""
    groups: dict[object, list[Adapter]] = {}
    for adapter in adapters:
        shapes = [p.shape for p in adapter.parameters() if p.requires_grad]
        shapes += [getattr(adapter, role).shape for role in adapter.frozen]
        key = (type(adapter), tuple(shapes), adapter.rank, adapter.alpha)
        groups.setdefault(key, []).append(adapter)
    return list(groups.values())


# -------------------------------------------------------------------------------- the table


def adapter_class(name: str) -> type[Adapter]:
    """The class that trains an algorithm of the table. Raises ConfigError where the engine reads it, but does not train
    it."""
    row = algorithms.algorithm_of(name)
    if row is None or row.adapter is None:
        known = ", ".join(row.name for row in algorithms.ALGORITHMS if row.adapter)
        raise ConfigError(f"'{name}' networks are not trained here; those that are: {known}")
    return _class_of(row)


@cache
def _class_of(row: Algorithm) -> type[Adapter]:
    module, _, name = (row.adapter or "").partition(":")
    adapter = getattr(import_module(module), name)
    assert issubclass(adapter, Adapter), row.adapter
    return cast("type[Adapter]", adapter)
