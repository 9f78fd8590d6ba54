"""Torch's tensors in safetensors files, bit for bit and of any kind."""

from __future__ import annotations

import torch
from torch import Tensor

from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.tensorfile import TensorFile

NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in NAMES.items()}


def encoded(tensor: Tensor) -> Encoded:
    """A tensor as a file has it. Raises TypeError for a kind that no file holds."""
    if tensor.dtype not in NAMES:
        raise TypeError(f"no file can hold a tensor of {tensor.dtype}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return Encoded(
        NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy() if flat.numel() else b""
    )


def decoded(file: TensorFile, name: str) -> Tensor:
    """A tensor of a file, on the CPU. Raises KeyError for one that is not there."""
    info = file.tensors[name]
    if not info.size:
        return torch.zeros(info.shape, dtype=_TYPES[info.dtype])
    return torch.frombuffer(file.raw(name), dtype=_TYPES[info.dtype]).reshape(info.shape)
