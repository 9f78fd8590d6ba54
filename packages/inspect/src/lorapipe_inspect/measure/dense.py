"""Dense changes computed one module at a time, so that a file of gigabytes takes the memory of one layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.progress import progress
from lorapipe_engine.delta import dense_delta, needs_base
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import InputError, naming
from lorapipe_engine.files.dtypes import decode, encode
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, build_header, check_weights_output, quote
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.families import recognise
from lorapipe_engine.models.keys import Place, find_layout, lora_names_of
from lorapipe_engine.networks.algorithms import find_algorithm
from lorapipe_engine.networks.describe import Network, NetworkModule, describe_network, find_modules
from lorapipe_engine.networks.read import read_module, require_understood

Array = NDArray[Any]

PRECISIONS: Mapping[str, str] = MappingProxyType({"fp32": "F32", "fp16": "F16", "bf16": "BF16"})
LARGE = 1 << 22  # numbers; larger layers are computed in float32
_DIGITS = (2**40,) * 6  # a shape that takes more room in a header than any true one


@dataclass(frozen=True)
class BaseWeights:
    """The weights that a network changes, by module name. ``places`` maps (module, kind) to a tensor's part."""

    file: WeightFile
    places: Mapping[tuple[str, str], tuple[str, Place | None]]

    def read(self, module: str, kind: str) -> Array | None:
        """The layer's "weight" or "bias"; None where the base has none."""
        for name in (module, re.sub(r"^(oft|lycoris)_", "lora_", module)):
            if (name, kind) in self.places:
                key, place = self.places[name, kind]
                tensor = self.file.read(key)
                if place is None:
                    return tensor
                rows = tensor[place.start : place.stop]
                return np.ascontiguousarray(rows.T) if place.transposed else rows
        return None


def write_deltas(
    network_file: WeightFile,
    base_name: str | None,
    output: Path | None,
    *,
    multiplier: float,
    precision: str,
    dry_run: bool,
    force: bool,
) -> int:
    """Write the changes of all modules; how many there are. ``output``: None where nothing is written.

    Raises InputError naming the module that has none."""
    network = describe_network(network_file)
    require_understood(network)
    with ExitStack() as stack:
        base = open_base(base_name, stack) if base_name else None
        _check_base(network, base)
        dtype = PRECISIONS[precision]
        changes = (
            (name, change.shape, _bytes_of(name, change, dtype))
            for name, change in compute(network_file, network, base, multiplier)
        )
        if dry_run or output is None:
            return sum(1 for _ in changes)
        check_weights_output(output, force=force)
        names = [_named(module) + end for module in network.modules.values() for end in ("", ".bias")]
        room = len(build_header(dict.fromkeys(names, (dtype, _DIGITS)))[0])
        with atomic_write(output, force=force) as file:
            file.seek(room)
            kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
            for name, shape, data in changes:
                kinds[name] = (dtype, shape)
                file.write(data)
            file.seek(0)
            file.write(_padded(build_header(kinds)[0], room))
    return len(kinds)


def _bytes_of(name: str, change: Array, dtype: str) -> bytes:
    """A change as it is stored. Raises InputError for values that are no finite numbers, or too large for the type."""
    with np.errstate(over="ignore"):
        encoded = encode(change, dtype)
    if not np.isfinite(decode(encoded.dtype, encoded.data, encoded.shape)).all():
        if not np.isfinite(change).all():
            raise InputError(f"{quote(name)}: its change has values that are not finite numbers")
        raise InputError(
            f"{quote(name)}: its change does not fit {dtype}; give --save-precision bf16 or fp32, or a smaller "
            "--multiplier"
        )
    return np.ascontiguousarray(encoded.data).tobytes()


def compute(
    file: WeightFile, network: Network, base: BaseWeights | None, multiplier: float
) -> Iterator[tuple[str, Array]]:
    """(name, change) sorted by name, as the header has them: "MODULE" for weights, "MODULE.bias"."""
    with progress(len(network.modules), "delta", "module") as bar:
        for module in sorted(network.modules.values(), key=lambda module: _named(module).encode()):
            yield from _module_changes(file, module, base, multiplier)
            bar.update()


def _module_changes(
    file: WeightFile, module: NetworkModule, base: BaseWeights | None, multiplier: float
) -> Iterator[tuple[str, Array]]:
    if set(module.keys) <= {"alpha"}:
        return
    check_whole(file, module)
    tensors = read_module(file, module)
    weight = base.read(module.name, "weight") if base else None
    size = max(tensor.size for tensor in tensors.values()) if weight is None else weight.size
    with naming(file.path):
        change = dense_delta(
            tensors,
            weight,
            multiplier=multiplier,
            name=module.name,
            dtype=np.float32 if size > LARGE else np.float64,
        )
    if change.weight is not None:
        yield _named(module), change.weight
    if change.bias is not None:
        yield f"{_named(module)}.bias", change.bias


def _named(module: NetworkModule) -> str:
    """What a change is called: its module, under LyCORIS' wrapper as the file spells it, with or without the part."""
    return module.path if module.name.startswith("lycoris_") and "." not in module.path else module.name


def open_base(name: str, stack: ExitStack) -> BaseWeights:
    """Open a base: one whose keys are module names, or a checkpoint. Raises InputError."""
    path = resolve_base(name)
    if not isinstance(path, Path) or path.is_dir():
        raise InputError(f"{name}: give the base as one file")
    file = stack.enter_context(open_weights(path))
    if any(find_algorithm(module.keys) for module in find_modules(file.tensors)[0]):
        raise InputError(
            f"--base {path}: is a network itself, no base; give the model that it goes on top of"
        )
    places: dict[tuple[str, str], tuple[str, Place | None]] = {}
    for key in file.tensors:
        module, _, kind = key.rpartition(".")
        if kind in ("weight", "bias"):
            places[module, kind] = (key, None)
    shapes = {key: info.shape for key, info in file.tensors.items()}
    model = recognise(shapes)
    if model.family is not None and model.kind in ("checkpoint", "unet", "text_encoder"):
        layout = find_layout(shapes)
        for key, shape in shapes.items():
            for module, place in lora_names_of(key, shape, model.family, layout).items():
                places.setdefault((module, place.kind), (key, place))
    return BaseWeights(file, places)


def _check_base(network: Network, base: BaseWeights | None) -> None:
    """Raise InputError for the first module that needs a weight which is not there."""
    for module in network.modules.values():
        if not needs_base(module.keys):
            continue
        if base is None:
            raise InputError(
                f"{network.path}: the change of {quote(module.name)[1:-1]} ({module.algorithm}"
                f"{' with DoRA' if module.dora else ''}) depends on the weights it changes; give --base BASE"
            )
        if base.read(module.name, "weight") is None:
            raise InputError(
                f"{base.file.path}: has no weight for {quote(module.name)[1:-1]}, which its change depends on"
            )


def _padded(header: bytes, room: int) -> bytes:
    """A header with spaces behind it, which the format allows, up to ``room`` bytes in all."""
    text = header[8:].ljust(room - 8)
    return len(text).to_bytes(8, "little") + text
