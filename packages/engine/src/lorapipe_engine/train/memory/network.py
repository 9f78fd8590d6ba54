"""What each layer of a network has and keeps, found on the meta device, which has shapes and no memory.

The adapters are those that the run will have. What is trained are their parameters. What a layer keeps for the
backward pass is counted where fused blocks have it in products of their own (see ``nn/fused``); every other adapter is
run once on the meta device, and what autograd saves of it is counted. So an algorithm is counted as what it is, and no
row of the table needs a number of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.adapters.full import Full, Norm
from lorapipe_engine.nn.adapters.lora import Lora
from lorapipe_engine.nn.attach import NetworkPlan, Target
from lorapipe_engine.nn.base import Adapter, adapter_class, is_low_rank
from lorapipe_engine.nn.flat import ALIGN
from lorapipe_engine.nn.fused.packed import axis_of, can_pack
from lorapipe_engine.nn.fused.trained.convolutions import STEP, can_convolve
from lorapipe_engine.nn.fused.trained.differences import can_differ
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.network.make import plan_network
from lorapipe_engine.train.optimizers.rates import rates_of
from lorapipe_engine.train.plan import trainable


@dataclass(frozen=True)
class Keeps:
    """Bytes that a layer keeps for the backward pass beside its frozen self: ``each`` for every position (token or
    pixel) that it reads, ``once`` whatever it reads. ``reads``: its input is kept too, which other layers that read it
    share. ``packed``: in a product of the fused blocks."""

    each: float
    once: float = 0.0
    reads: bool = True
    packed: bool = False


@dataclass(frozen=True)
class Row:
    """A layer with an adapter: where it lies, how many values it trains with the buffer's padding, how many it has
    besides, bytes of what is made of them for the products, and what it keeps. ``inputs``: values of a position that it
    reads. ``own_norm``: a norm that runs its own forward, outside of the fused blocks' operations."""

    part: str
    path: str
    trained: int
    frozen: int
    copies: int
    inputs: int
    keeps: Keeps
    own_norm: bool = False


def rows_of_run(settings: TrainSettings, args: NetworkArgs, family: Family) -> tuple[Row, ...]:
    """The rows of the network that a run trains, of a family on the meta device. Raises ConfigError for options that
    do not fit it, InputError for files that do not."""
    rates = rates_of(settings.optimizer, trainable(settings, family.train_parts))
    planned = plan_network(settings.network, args, family, rates.trained)
    return rows_of(family, planned.targets, planned.plan)


def rows_of(family: Family, targets: Iterable[Target], plan: NetworkPlan) -> tuple[Row, ...]:
    """The rows of a plan's adapters for ``targets``; none is put into the model."""
    paths = {id(module): path for root in family.parts.values() for path, module in root.named_modules()}
    known: dict[object, Keeps] = {}
    rows = []
    for target in targets:
        size = plan.size_of(target.module, target.name)
        if size is None:
            continue
        kind = plan.kinds.get(target.name, plan.kind)
        adapter = adapter_class(kind.algorithm).create(target.module, size, plan.dropouts, kind.options)
        own = [p for p in adapter.parameters(recurse=False) if p.requires_grad]
        rows.append(
            Row(
                target.part,
                paths[id(target.module)],
                sum(-(-p.numel() // ALIGN) * ALIGN for p in own),
                sum(getattr(adapter, role).numel() for role in adapter.frozen),
                _copies(adapter),
                _inputs(target.module),
                _keeps(adapter, known),
                isinstance(adapter, Norm) and not _is_beside(adapter),
            )
        )
    return tuple(rows)


def _inputs(layer: nn.Module) -> int:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.shape[0] if weight.dim() < 2 else weight.shape[1]


def _packed_rank(adapter: Adapter) -> int:
    return adapter.rank if is_low_rank(adapter) else adapter.short_rank()


def _copies(adapter: Adapter) -> int:
    """Bytes of the copy that products read; of a change that is made into factors also of these, their gradients and
    what autograd holds of the making."""
    size, own = adapter.weight.element_size(), list(adapter.parameters(recurse=False))
    if _is_beside(adapter):
        if isinstance(adapter, Norm):  # weights and biases, their frozen ones, and the changes
            return 24 * len(adapter.weight)
        change = adapter.weight.numel() if isinstance(adapter, Full) else sum(p.numel() for p in own)
        return change * size if own[0].dtype != adapter.weight.dtype else 0
    if not can_pack(adapter):
        return 0
    factors = _packed_rank(adapter) * sum(adapter.weight.flatten(1).shape)
    copy = factors * size
    if is_low_rank(adapter):
        return copy
    return copy + 4 * (3 * factors + sum(p.numel() for p in own))


def _keeps(adapter: Adapter, known: dict[object, Keeps]) -> Keeps:
    """``known``: of adapters that are alike, which this one may join."""
    layer = adapter.base
    form = [getattr(layer, name, None) for name in ("stride", "padding", "dilation", "groups", "num_groups")]
    shapes = tuple((name, tuple(p.shape)) for name, p in adapter.named_parameters())
    key = (
        type(adapter),
        type(layer),
        shapes,
        str(form),
        adapter.rank,
        axis_of(adapter),
        str(adapter.options),
    )
    if key not in known:
        known[key] = _of_fused(adapter) or _measured(adapter)
    return known[key]


def _is_beside(adapter: Adapter) -> bool:
    """Whether the fused blocks train it beside their packs: see ``nn/fused/trained``."""
    fits = isinstance(adapter, Norm) or can_differ(adapter) or can_convolve(adapter)
    return fits and not (isinstance(adapter, Norm | Full | Lora) and adapter.dropouts.any)


def _of_fused(adapter: Adapter) -> Keeps | None:
    """What the fused blocks keep of it; None where it runs its own forward there."""
    if can_pack(adapter):
        return _of_pack(adapter)
    if not _is_beside(adapter):
        return None
    if isinstance(adapter, Lora):
        return Keeps(-(-adapter.rank // STEP) * STEP * adapter.weight.element_size())
    return Keeps(0.0, reads=not isinstance(adapter, Norm))  # what a frozen norm reads is kept too


def _of_pack(adapter: Adapter) -> Keeps:
    """The rank activation, and under magnitudes of outputs what they multiply."""
    rank, outputs = _packed_rank(adapter), len(adapter.weight)
    values = rank if axis_of(adapter) != 0 else 2 * rank + outputs
    reads = rank > 0 or axis_of(adapter) != 0
    return Keeps(values * adapter.weight.element_size(), reads=reads, packed=True)


def _measured(adapter: Adapter) -> Keeps:
    """What autograd saves of the adapter's own forward, found with two sizes of input."""
    few, many = _saved(adapter, 1), _saved(adapter, 2)
    each = (many.bytes - few.bytes) / (many.positions - few.positions)
    return Keeps(each, few.bytes - each * few.positions, few.reads)


@dataclass(frozen=True)
class _Saved:
    positions: int
    bytes: int
    reads: bool


def _saved(adapter: Adapter, rows: int) -> _Saved:
    layer, training = adapter.base, adapter.training
    is_picture = isinstance(layer, nn.Conv2d | nn.GroupNorm)
    shape = (1, _inputs(layer), 64 * rows, 64) if is_picture else (1, 64 * rows, _inputs(layer))
    x = torch.empty(shape, dtype=adapter.weight.dtype, device="meta", requires_grad=True)
    kept: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    adapter.train()
    work = type(adapter).together([adapter])
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        if work is not None:
            work.begin()
        adapter(x)
    room = 0 if work is None else work.bytes
    if work is not None:
        work.end()
    adapter.train(training)
    own = {value.untyped_storage()._cdata for value in (*adapter.parameters(), *adapter.buffers())}
    reads = x.untyped_storage()._cdata
    counted = [tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in {*own, reads}]
    return _Saved(64 * rows * (64 if is_picture else 1), sum(counted) + room, reads in kept)
