"""Networks with int8 matrix products, for CPUs: smaller, about twice as fast, scores off by a few hundredths."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_engine.models.onnxfile import check_network
from lorapipe_tagger.scoring.scores import cache_folder


def quantized(path: Path) -> Path:
    """The int8 form of a network, made once and kept in the cache folder.

    Raises MissingExtra without the package onnx, InputError for a network that cannot be converted.
    """
    check_network(path)
    state = path.stat()
    # Its time and size tell a network from another; hashing a gigabyte at every start would take a second.
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    target = cache_folder() / "int8" / f"{hashlib.sha256(os.fsencode(mark)).hexdigest()[:32]}.onnx"
    if target.is_file():
        return target
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingExtra("--int8 needs the package onnx: pip install onnx, or leave it out") from error
    say(f"lora-tag: making an int8 form of {path.name}, once")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    logging.disable(logging.WARNING)  # it advises steps that gain nothing here
    try:
        quantize_dynamic(path, draft, op_types_to_quantize=["MatMul"], weight_type=QuantType.QUInt8)
        draft.replace(target)
    except Exception as error:  # of onnx and of onnxruntime
        raise InputError(f"{path}: cannot be made int8 ({' '.join(str(error).split())[:200]})") from error
    finally:
        logging.disable(logging.NOTSET)
        draft.unlink(missing_ok=True)
    return target
