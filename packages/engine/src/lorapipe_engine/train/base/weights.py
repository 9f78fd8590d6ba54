"""Tensors of model files as torch tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights:
    """The tensors of one or several files (shards): ``shapes`` by name, ``load`` one by one.

    Safetensors and torch's pickles alike, by what is in them. A context manager, which closes them.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[str, WeightFile] = {}
        with ExitStack() as stack:
            for path in paths:
                file = stack.enter_context(open_weights(path))
                self.metadata.update(file.metadata)
                for name, info in file.tensors.items():
                    self.shapes[name] = info.shape
                    self._files[name] = file
            self._stack = stack.pop_all()

    def load(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """A tensor, or its rows ``start`` to ``stop``, on the CPU in the dtype of its file."""
        file = self._files[name]
        info = file.tensors[name]
        if info.dtype not in _DTYPES:
            raise InputError(f"{file.path}: {name} is of type {info.dtype}, which this torch cannot hold")
        shape, first, last = info.shape, 0, info.size
        if shape and stop is not None:
            row = info.size // max(1, shape[0])
            shape, first, last = (stop - start, *shape[1:]), start * row, stop * row
        raw = file.raw(name, first, last)  # memory of its own, so the tensor may keep it
        if not raw:
            return torch.empty(shape, dtype=_DTYPES[info.dtype])
        return torch.frombuffer(raw, dtype=_DTYPES[info.dtype]).reshape(shape)

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
