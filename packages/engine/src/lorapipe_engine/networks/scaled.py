"""Weights stored as numbers of 8 bits with a scale beside them: which they are, and what marks them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import WeightFile

# What programs write beside numbers of 8 bits; none of it is a weight.
_MARKS = re.compile(r"(.*\.)?(scaled_fp8|comfy_quant|scale_input|input_scale)")
_SCALE = re.compile(r"(.+)\.(?:scale_weight|weight_scale)")


def scales_of(file: WeightFile) -> dict[str, str]:
    """The weights of a file whose numbers are stored divided by a scale, with the scale's name."""
    scales = {}
    for key in file.tensors:
        if (match := _SCALE.fullmatch(key)) and (weight := f"{match[1]}.weight") in file.tensors:
            scales[weight] = key
    return scales


def is_mark(key: str, scales: Mapping[str, str], keys: Collection[str]) -> bool:
    """Whether a tensor only says how others are stored."""
    if key in scales.values():
        return True
    match = _MARKS.fullmatch(key)
    return match is not None and (match[2] == "scaled_fp8" or f"{match[1] or ''}weight" in keys)


def refuse_scaled(file: WeightFile) -> None:
    """Raise InputError for a checkpoint of scaled numbers, whose stored numbers are not its weights."""
    scales = scales_of(file)
    if scales or "scaled_fp8" in file.tensors or "_quantization_metadata" in file.metadata:
        raise InputError(
            f"{file.path}: keeps scaled numbers of 8 bits ({len(scales)} weights with a scale); make a plain one of it "
            f"first: lora-merge --models {file.path} --save-precision fp16 -o plain.safetensors"
        )
