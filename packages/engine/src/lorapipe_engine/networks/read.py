"""Reading a module's tensors as one form, whatever program wrote them.

Strengths that a file keeps elsewhere become alphas, magnitudes get the shape of their axis, biases of factors become
changes of the bias. What cannot be a network's weights is refused with the names of file and module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.kohya_names import layer_named_twice
from lorapipe_engine.networks.names import read_name
from lorapipe_engine.networks.scaled import scaled_by

Array = NDArray[Any]
# Single numbers that may be of any type.
FLAGS = ("alpha", "on_input")
# Tensors of no layer that programs put into the same file, by their beginnings: textual inversions, and what tools for
# sliders note.
BESIDE: Mapping[str, str] = MappingProxyType({"bundle_emb.": "embeddings", "_aux.": "tools' own tensors"})
# Tensors that change what a module does, and that are not understood: A1111's strength, LyCORIS' scalar, a third factor
# (AdaLoRA), a bias between the factors, sparse changes beside them, weights to begin with (ComfyUI).
_CHANGING = re.compile(
    r"(?P<path>.+?)\.(scale|scalar|lora_E(\..+)?|lora_(down|A)(\..+)?\.bias|bias_(indices|values|size)"
    r"|(set|reshape)_weight)",
    re.DOTALL,
)
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors")


def network_path(path: Path) -> Path:
    """The network's file that ``path`` means: itself, or the one in an adapter's folder. Raises InputError."""
    if not path.is_dir():
        return path
    for name in PEFT_FILES:
        if (path / name).is_file():
            return path / name
    parts = [str(file.parent) for name in PEFT_FILES for file in sorted(path.glob(f"*/{name}"))]
    if parts:
        raise InputError(f"{path}: holds a network for each part of a model; name one: {', '.join(parts)}")
    raise InputError(f"{path}: is a folder without {PEFT_FILES[0]}; name the network's file")


def is_beside(name: str) -> bool:
    """Whether a tensor of no module is none of the network, so that a merge goes on without it."""
    return name.startswith(tuple(BESIDE))


def require_understood(network: Network) -> None:
    """Raise InputError for a network of which it is not known what it changes (:func:`why_unknown`)."""
    if why := why_unknown(network):
        raise InputError(why)


def why_unknown(network: Network) -> str | None:
    """Why it is not known what a network changes, in a line with the file's name; None where it is known.

    Its names are those of two families, two modules are one layer, its numbers are stored with scales, modules have a
    tensor that changes what they do, or their strengths are unknown. So they are with an alpha that belongs to no
    module while others lack theirs: its name may be misspelt.
    """
    if why := why_strange(network):
        return why
    if network.scale_unknown:
        return (
            f"{network.path}: PEFT's tensors without their strengths; put the adapter_config.json that PEFT wrote "
            "(r and lora_alpha are in it) beside the file"
        )
    lost = lost_alphas(network)
    lacking = [
        m for m in network.modules.values() if m.alpha is None and m.scale is None and m.rank is not None
    ]
    if lost and lacking:
        return (
            f"{network.path}: has the alpha of {quote(lost[0])[1:-1]} but no such module, and none for "
            f"{quote(lacking[0].name)[1:-1]}, whose strength is unknown then"
        )
    return None


def why_strange(network: Network) -> str | None:
    """As :func:`why_unknown`, apart from strengths that are missing."""
    if network.mixed is not None:
        one, two = (f"{title} ({quote(name)[1:-1]})" for title, name in network.mixed)
        return f"{network.path}: mixes names of {one} and of {two}; a network is for one model"
    keys = {key for module in network.modules.values() for key in module.keys.values()}
    if mark := scaled_by({*keys, *network.others}, network.metadata):
        return (
            f"{network.path}: keeps scaled numbers of 8 bits ({quote(mark)[1:-1]}), which are not read in networks; "
            "save it anew as fp16 with the program that wrote it"
        )
    paths = {module.path for module in network.modules.values()}
    for name in network.others:
        ending = _CHANGING.fullmatch(name)
        if ending and ending["path"] in paths:
            return f"{network.path}: {quote(name)[1:-1]} changes what its module does in a way that is not known here"
        known = read_name(name)
        if known is not None and known.suffix in getattr(network.modules.get(known.module), "keys", ()):
            other = network.modules[known.module].keys[known.suffix]
            return f"{network.path}: has one tensor twice, as {quote(other)[1:-1]} and as {quote(name)[1:-1]}"
    return layer_named_twice(network, network.family)


def lost_alphas(network: Network) -> list[str]:
    """Names of modules of which the file has the alpha alone; they change nothing."""
    return [name for name, module in network.modules.items() if module.keys.keys() == {"alpha"}]


def module_label(file: WeightFile, module: NetworkModule) -> str:
    """What errors call a module: its name and its file's."""
    return f"{quote(module.name)[1:-1]} of {file.path}"


def read_module(file: WeightFile, module: NetworkModule) -> dict[str, Array]:
    """The module's tensors by suffix, as :func:`lorapipe_engine.delta.dense_delta` takes them.

    Raises InputError for tensors that are no weights: whole numbers, no ranks.
    """
    check_module(file, module)
    tensors: dict[str, Array] = {suffix: file.read(key) for suffix, key in module.keys.items()}
    if module.scale is not None and "alpha" not in tensors:
        _put_scale(tensors, module)
    if "dora_scale" in tensors and module.magnitude_per_output:
        kernel = next((t.ndim for s, t in tensors.items() if s == "lora_down.weight"), 2)
        magnitude = tensors["dora_scale"].reshape(-1)
        tensors["dora_scale"] = magnitude.reshape(-1, *([1] * (kernel - 1)))
    if "lora_up.bias" in tensors:
        tensors["diff_b"] = tensors.pop("lora_up.bias") * np.float64(scale_of(module))
    return tensors


def magnitude_shape(shape: tuple[int, ...], kernel: tuple[int, ...], *, per_output: bool) -> tuple[int, ...]:
    """The shape of DoRA's magnitudes in kohya's names, which tells outputs from inputs: (o, 1, ...) or (1, i, ...).

    ``shape``: as they are stored. ``per_output``: whether they go by outputs whatever that shape.
    """
    size, ones = math.prod(shape), tuple(1 for _ in kernel)
    per_input = not per_output and len(shape) > 1 and shape[0] == 1 and shape[1] == size
    return (1, size, *ones) if per_input else (size, 1, *ones)


def scale_of(module: NetworkModule) -> float:
    """What the product of the module's factors is multiplied with: alpha / rank, or what a configuration says."""
    if module.alpha is not None and module.rank:
        return module.alpha / module.rank
    return 1.0 if module.scale is None else module.scale


def check_module(file: WeightFile, module: NetworkModule) -> None:
    """Raise InputError for tensors that are no weights: whole numbers, no ranks."""
    if module.rank == 0:
        raise InputError(f"module {module_label(file, module)}: its rank is 0, so it holds no change")
    for suffix, key in module.keys.items():
        dtype = file.tensors[key].dtype
        if suffix not in FLAGS and dtype not in FLOAT_DTYPES:
            raise InputError(
                f"module {module_label(file, module)}: {suffix} holds {dtype}, which is no type of weights"
            )
    check_magnitudes(file, module)


def check_magnitudes(file: WeightFile, module: NetworkModule) -> None:
    """Raise InputError where DoRA's magnitudes are of another number than the layer's outputs or inputs."""
    keys = module.keys
    if not {"dora_scale", "lora_up.weight", "lora_down.weight"} <= keys.keys():
        return
    up, down, stored = (
        file.tensors[keys[suffix]].shape for suffix in ("lora_up.weight", "lora_down.weight", "dora_scale")
    )
    wanted = {*up[:1]}
    if not module.magnitude_per_output:  # by inputs, of which a flattened kernel of 3x3 has nine columns each
        wanted |= {*down[1:2], *(size // 9 for size in down[1:2] if not size % 9)}
    if len(up) > 1 and len(down) > 1 and math.prod(stored) not in wanted:
        raise InputError(
            f"module {module_label(file, module)}: dora_scale {stored} does not fit a layer of {up[0]} outputs and "
            f"{down[1]} inputs"
        )


def _put_scale(tensors: dict[str, Array], module: NetworkModule) -> None:
    """A configuration's scale as an alpha; PEFT scales LoKr by it always, the file form only where it has a rank."""
    scale = np.float64(module.scale or 0.0)
    if module.rank:
        tensors["alpha"] = np.asarray(scale * module.rank)
    elif "lokr_w1" in tensors:
        tensors["lokr_w1"] = tensors["lokr_w1"] * scale
