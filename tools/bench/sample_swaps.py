"""What a swap of networks takes, and its parts: for sample.py."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.nn.fused.drawing.slots import Slots
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.files import trained_file
from lorapipe_engine.train.sample import networks as swapping
from lorapipe_engine.train.sample.moulds import Moulds

MEMORY = Path("/dev/shm")  # for files that are in memory anyway, and are removed at the end
ROOM = 4 * 2**30  # bytes that have to be free there

# The functions that a swap to a new file consists of; what "read" takes holds the two behind it.
PARTS: Mapping[str, tuple[Any, str]] = {
    "read": (swapping, "read_stored"),
    "data": (trained_file, "_read_data"),
    "names": (trained_file, "describe_network"),
    "to_card": (trained_file.StoredFile, "on"),
    "attach": (Moulds, "adapters"),
    "factors": (swapping, "read_factors"),
    "slots": (Slots, "fill"),
}


def swap_row(
    use: Callable[[Sequence[Loaded]], None], networks: Sequence[Loaded], wait: Callable[[], None]
) -> dict[str, float]:
    """Median milliseconds of a swap to a file that is not read yet, to one that is, and of the parts of the former.

    ``use``: put networks in; ``wait``: for the device. Files lie in the system's memory, none is read ahead.
    """
    use(networks[:1])  # room in the slots

    def times(rows: Sequence[Loaded]) -> list[float]:
        return [_seconds(lambda row=row: use((row,)), wait) for row in rows]  # type: ignore[misc]

    new, known = times(networks[1:]), times(networks)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    whole: list[float] = []
    with _timed(parts, wait):
        for network in networks[1:]:
            for seconds in parts.values():
                seconds.append(0.0)
            # By another name a file is a new one.
            whole += times([_renamed(network)])
    row = {"new_file_ms": _median_ms(new), "known_ms": _median_ms(known), "in_parts_ms": _median_ms(whole)}
    return row | {f"{name}_ms": _median_ms(rows) for name, rows in parts.items()}


def _seconds(work: Callable[[], None], wait: Callable[[], None]) -> float:
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def _median_ms(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 1) if seconds else 0.0


def _renamed(row: Loaded) -> Loaded:
    path = row.file.path.with_name(f"again-{row.file.path.name}")
    os.link(row.file.path, path)
    return Loaded(NetworkFile(path, path.stem))


@contextmanager
def _timed(parts: Mapping[str, list[float]], wait: Callable[[], None]) -> Iterator[None]:
    """Add what each part takes, the device's share with it, to its last number; the whole is a little slower by it."""
    before = {name: getattr(*place) for name, place in PARTS.items()}

    def timed(work: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
        @wraps(work)
        def run(*args: Any, **more: Any) -> Any:
            wait()
            began = time.perf_counter()
            result = work(*args, **more)
            wait()
            times[-1] += time.perf_counter() - began
            return result

        return run

    for name, (holder, attribute) in PARTS.items():
        setattr(holder, attribute, timed(before[name], parts[name]))
    try:
        yield
    finally:
        for name, (holder, attribute) in PARTS.items():
            setattr(holder, attribute, before[name])


# ---------------------------------------------------------------- networks


@contextmanager
def network_folder() -> Iterator[Path]:
    """A folder for network files, in memory where there is room."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(dir=MEMORY if roomy else None) as folder:
        yield Path(folder)


def write_network(path: Path, family: Family, rank: int) -> Loaded:
    """A file of small random values on all attention and feed-forward layers, in fp16."""
    tensors: dict[str, Encoded] = {}
    for name, tensor in _network_tensors(family, rank):
        values = tensor.half().cpu().contiguous().numpy()
        tensors[name] = Encoded("F16", tuple(values.shape), values)
    write_tensors(path, dict(sorted(tensors.items())), {}, force=False)
    return Loaded(NetworkFile(path, path.stem))


def _network_tensors(family: Family, rank: int) -> Iterator[tuple[str, Any]]:
    """Names and values of a network's tensors."""
    for part, place_of, module in family.target_modules():
        name, weight = family.lora_name(part, place_of), module.weight
        shape = weight.shape
        down = torch.randn(rank, *shape[1:], device=weight.device) / 100
        yield f"{name}.lora_down.weight", down
        yield f"{name}.lora_up.weight", torch.randn(shape[0], rank, *shape[2:], device=weight.device) / 100
        yield f"{name}.alpha", torch.tensor(float(rank))
