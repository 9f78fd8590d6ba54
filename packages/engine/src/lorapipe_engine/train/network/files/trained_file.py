"""A network file as the engine trains on it or draws with it: what each module is, and its values."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.dtypes import DTYPE_BITS
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import TensorFile, TensorInfo, WeightFile, quote
from lorapipe_engine.networks.describe import Network, NetworkModule, describe_network
from lorapipe_engine.networks.read import check_module, read_module, require_understood
from lorapipe_engine.nn.attach import Kind
from lorapipe_engine.nn.base import Size, adapter_class

MOST_HELD = (
    2**31
)  # bytes of a file that is read in one piece; a network is smaller, a checkpoint given for one is not
MOST_PINNED = 2**30  # bytes; torch keeps them for the next file
PIECE = 2**25  # bytes that a thread reads at once
MOST_READERS = 4
MOST_RUNS = 64  # of tensors of one type; a file of more is mixed tensor by tensor

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedFile:
    """Of each module, by its name in the file: rank and alpha, the algorithm, and the tensors in float32, by suffix.

    Alphas are on the CPU; the other tensors may be views of one that holds all of them. ``others``: names of tensors
    that belong to no module.
    """

    path: Path
    sizes: Mapping[str, Size]
    kinds: Mapping[str, Kind]
    tensors: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def read_trained(path: Path, option: str = "") -> TrainedFile:
    """Read a network of algorithms that are trained here, in kohya's names or others. ``option``: what named it.

    Raises InputError for any other file.
    """
    return read_stored(path, option).on(CPU)


def read_stored(path: Path, option: str = "", *, pinned: bool = False) -> StoredFile:
    """The same file as it is stored. ``pinned``: in memory that a card copies from at full speed. Raises InputError."""
    where = f"{option}: {path}" if option else f"{path}"
    with open_weights(path) as opened:
        if not isinstance(opened, TensorFile) or opened.data_bytes > MOST_HELD:
            network = _described(opened)
            rest = {n: read_module(opened, module) for n, module in network.modules.items()}
            return StoredFile(where, network, (), rest)
        data = _memory(opened.data_bytes, pinned=pinned)
        _read_data(opened, memoryview(data.numpy()))  # type: ignore[arg-type]  # arrays are buffers
        file = _HeldFile(opened, data)
        network = _described(file)
        runs = _runs(file, data)
        in_runs = {name for run in runs for name in run.tensors}
        rest = {}
        for name, module in network.modules.items():
            if _is_plain(module) and in_runs.issuperset(module.keys.values()):
                check_module(file, module)
            else:
                rest[name] = read_module(file, module)
        return StoredFile(where, network, runs, rest)


def _memory(count: int, *, pinned: bool) -> Tensor:
    if pinned and count <= MOST_PINNED:
        with suppress(RuntimeError):  # the system lends no more of it
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    return torch.empty(count, dtype=torch.uint8)


def _read_data(file: TensorFile, buffer: memoryview) -> None:
    """Fill ``buffer`` with all data. One thread alone copies slower from the system's memory than a card does."""
    starts = range(0, len(buffer), PIECE)
    with ThreadPoolExecutor(max(1, min(len(starts), MOST_READERS))) as pool:
        for _ in pool.map(lambda start: file.data_into(buffer[start : start + PIECE], start), starts):
            pass


def _described(file: WeightFile) -> Network:
    network = describe_network(file)
    require_understood(network)
    return network


def _is_plain(module: NetworkModule) -> bool:
    """Whether the values of a module are taken as they are stored."""
    keys = module.keys
    return module.scale is None and "dora_scale" not in keys and "lora_up.bias" not in keys


class _HeldFile(TensorFile):
    """An open file whose data are in memory."""

    def __init__(self, file: TensorFile, data: Tensor) -> None:
        super().__init__(file.path, file.metadata, file.tensors, file.header_bytes, file._source)
        self._held = memoryview(data.numpy())  # type: ignore[arg-type]

    def data_into(self, buffer: memoryview, start: int) -> None:
        buffer[:] = self._held[start : start + len(buffer)]


@dataclass(frozen=True)
class _Run:
    """Neighbours of one type: their ``values``, one behind the other, and which part of them is whose."""

    values: Tensor
    tensors: Mapping[str, TensorInfo]

    def on(self, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """All values in float32, and each tensor as a view of them."""
        flat = self.values.to(device, non_blocking=device.type == "cuda").float()
        sizes = [info.size * 8 // DTYPE_BITS[info.dtype] for info in self.tensors.values()]
        parts = torch.split(flat, sizes)
        named = zip(self.tensors.items(), parts, strict=True)
        return flat, {name: part.view(info.shape) for (name, info), part in named}


def _runs(file: TensorFile, data: Tensor) -> tuple[_Run, ...]:
    """The tensors of the usual types; none where they are mixed too much, or lie at odd places."""
    rows: list[list[tuple[str, TensorInfo]]] = []
    last: TensorInfo | None = None
    for name, info in sorted(file.tensors.items(), key=lambda row: (row[1].start, row[1].end)):
        if last is not None and last.dtype == info.dtype and last.end == info.start:
            rows[-1].append((name, info))
        else:
            rows.append([(name, info)])
        last = info
    runs = []
    for row in rows:
        dtype, start, end = row[0][1].dtype, row[0][1].start, row[-1][1].end
        if dtype in _DTYPES and start * 8 % DTYPE_BITS[dtype] == 0:
            runs.append(_Run(data[start:end].view(_DTYPES[dtype]), dict(row)))
    return tuple(runs) if len(runs) <= MOST_RUNS else ()


@dataclass(frozen=True)
class StoredFile:
    """A network's file in memory, of the numbers that it is stored in. ``where``: what errors call it; ``rest``: the
    modules that are not in ``runs``, or not as they are stored."""

    where: str
    network: Network
    runs: tuple[_Run, ...]
    rest: Mapping[str, Mapping[str, np.ndarray]]

    def on(self, device: torch.device) -> TrainedFile:
        """The values in float32 on a device, in one copy for each run. Raises InputError for values that are not finite
        numbers, and for modules that are not trained here."""
        made = [run.on(device) for run in self.runs]
        values = {name: tensor for _, parts in made for name, tensor in parts.items()}
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, module in self.network.modules.items():
            if name in self.rest:
                arrays = self.rest[name].items()
                own = {suffix: torch.from_numpy(np.array(array)).float() for suffix, array in arrays}
                self._check(name, own)
                tensors[name] = {s: t if s == "alpha" else t.to(device) for s, t in own.items()}
            else:
                tensors[name] = {suffix: values[key] for suffix, key in module.keys.items()}
                if "alpha" in module.keys and module.alpha is not None:
                    tensors[name]["alpha"] = torch.tensor(float(module.alpha))
        if not all(_are_finite(flat) for flat, _ in made):
            for name, row in tensors.items():
                self._check(name, row)
        modules = self.network.modules.items()
        sizes = {n: Size(m.rank or 0, _alpha(m)) for n, m in modules}
        kinds = {n: _kind(self.where, module, tensors[n]) for n, module in modules}
        return TrainedFile(
            self.network.path, sizes, kinds, tensors, self.network.metadata, self.network.others
        )

    def _check(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        for suffix, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{self.where}: {quote(name)}: {suffix} has values that are not finite numbers"
                )


def _are_finite(flat: Tensor) -> bool:
    """Whether all of many values are finite, without a mask of them."""
    return not len(flat) or bool(torch.isfinite(torch.stack(torch.aminmax(flat))).all())


def _alpha(module: NetworkModule) -> float:
    alpha = module.effective_alpha
    return float(module.rank or 0) if alpha is None else alpha


def _kind(where: str, module: NetworkModule, tensors: Mapping[str, Tensor]) -> Kind:
    try:
        adapter = adapter_class(module.algorithm)
    except ConfigError as error:
        raise InputError(f"{where}: {quote(module.name)}: {error}") from error
    if (
        module.alpha == 0 and module.rank
    ):  # sd-scripts takes it for the rank, programs that draw for no change at all
        raise InputError(
            f"{where}: {quote(module.name)} has the alpha 0, a strength that programs read differently"
        )
    if lacking := sorted(adapter.needs - tensors.keys()):
        raise InputError(f"{where}: {quote(module.name)} has no {lacking[0]}")
    if odd := sorted(tensors.keys() - adapter.needs - adapter.reads - {"alpha"}):
        raise InputError(
            f"{where}: {quote(module.name)} is no plain {module.algorithm} (it has {odd[0]}), and only those can be "
            "trained on here"
        )
    return Kind(module.algorithm, adapter.options_in(tensors))
