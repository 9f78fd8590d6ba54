"""Weights stored as numbers of 8 bits with a scale beside them: which they are, and what marks them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile

# What programs write beside numbers of 8 bits; none of it is a weight.
_MARKS = re.compile(r"(.*\.)?(scaled_fp8|comfy_quant|scale_input|input_scale)")
_SCALE = re.compile(r"(.+)\.(?:scale_weight|weight_scale)")


MARK, HEADER_MARK = "scaled_fp8", "_quantization_metadata"


def scales_of(keys: Collection[str]) -> dict[str, str]:
    """The weights among a file's tensors whose numbers are stored divided by a scale, with the scale's name."""
    scales = {}
    for key in keys:
        if (match := _SCALE.fullmatch(key)) and (weight := f"{match[1]}.weight") in keys:
            scales[weight] = key
    return scales


def scaled_by(keys: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """What shows that a file keeps scaled numbers: a tensor, or an entry of its metadata; None where nothing does."""
    scale = next(iter(scales_of(keys).values()), None)
    return scale or (MARK if MARK in keys else None) or (HEADER_MARK if HEADER_MARK in metadata else None)


def is_mark(key: str, scales: Mapping[str, str], keys: Collection[str]) -> bool:
    """Whether a tensor only says how others are stored."""
    if key in scales.values():
        return True
    match = _MARKS.fullmatch(key)
    return match is not None and (match[2] == MARK or f"{match[1] or ''}weight" in keys)


def refuse_scaled(file: WeightFile) -> None:
    """Raise InputError for a checkpoint of scaled numbers, whose stored numbers are not its weights."""
    if scaled_by(file.tensors, file.metadata) is not None:
        count = len(scales_of(file.tensors))
        raise InputError(
            f"{file.path}: keeps scaled numbers of 8 bits ({count} weights with a scale); make a plain one of it "
            f"first: lora-merge --models {file.path} --save-precision fp16 -o plain.safetensors"
        )
