"""A network file described: its modules, their algorithms and ranks, the family of models it is for.

Names of modules are brought to one of two spellings: kohya's (``lora_unet_down_blocks_0_...``), or for dotted
names PEFT's with the part in front (``unet.down_blocks.0...``, ``text_encoder.text_model...``). Those are
what :func:`lorapipe_engine.models.keys.lora_names` answers. Suffixes are kohya's and LyCORIS' throughout
("lora_down.weight").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, quote
from lorapipe_engine.models.bases import describe_kind
from lorapipe_engine.models.families import recognise
from lorapipe_engine.networks.algorithms import SUFFIXES, find_algorithm

# PEFT's and diffusers' suffixes of dotted names.
_DOTTED_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
}
_KOHYA = re.compile(r"((?:lora|oft|lycoris)_[^.]+)\.(.+)", re.DOTALL)
# "weight" alone would match every layer of every model.
_DOTTED = re.compile(
    r"(.+)\.(" + "|".join(map(re.escape, (*_DOTTED_SUFFIXES, *sorted(SUFFIXES - {"weight"})))) + ")",
    re.DOTALL,
)
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_\w+)_lora\.(down|up)\.weight", re.DOTALL)
_PARTS = (
    (re.compile(r"(lora|oft|lycoris)_unet_|unet\."), "unet"),
    (re.compile(r"(lora|oft|lycoris)_te2_|text_encoder_2\."), "te2"),
    (re.compile(r"(lora|oft|lycoris)_te1?_|text_encoder\."), "te1"),
)


@dataclass(frozen=True)
class ModuleKeys:
    """A module of a file: ``keys`` gives the tensor's name in the file for each suffix."""

    name: str
    keys: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NetworkModule(ModuleKeys):
    """A module described.

    ``part``: "unet", "te1", "te2", or "other". ``algorithm``: a name of the table of algorithms, "boft" for
    butterflies of OFT blocks, "unknown" where none fits. ``rank``: None where the algorithm or the module has
    none. ``alpha`` as stored; None if it is missing, which readers take for the rank. ``kernel``: (k, k) of a
    convolution larger than 1x1. ``tucker``: with a core tensor; ``dora``: with magnitudes.
    """

    part: str
    algorithm: str
    rank: int | None
    alpha: float | None
    kernel: tuple[int, ...] = ()
    tucker: bool = False
    dora: bool = False

    @property
    def effective_alpha(self) -> float | None:
        """alpha, or the rank where it is missing."""
        return self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network file. ``others`` are names of tensors that belong to no module."""

    path: Path
    family: str | None
    modules: Mapping[str, NetworkModule]
    others: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def algorithm(self) -> str:
        """In a word: "lora", "locon" (with convolutions), "dylora" (by the metadata), ..., or "mixed"."""
        found = Counter(module.algorithm for module in self.modules.values())
        layers = [name for name in found if name != "norm"] or list(found)
        if len(layers) != 1:
            return "mixed"
        if layers[0] != "lora":
            return layers[0]
        if is_dylora(self.metadata):
            return "dylora"
        return "locon" if any(module.kernel for module in self.modules.values()) else "lora"

    @property
    def variants(self) -> tuple[str, ...]:
        """What else there is to say of the algorithm: "dora", "tucker"."""
        modules = self.modules.values()
        return tuple(name for name in ("dora", "tucker") if any(getattr(module, name) for module in modules))

    @property
    def parts(self) -> Counter[str]:
        """Number of modules by part."""
        return Counter(module.part for module in self.modules.values())

    @property
    def ranks(self) -> Counter[int]:
        """Number of modules by rank."""
        return Counter(module.rank for module in self.modules.values() if module.rank is not None)


def find_modules(names: Iterable[str]) -> tuple[list[ModuleKeys], list[str]]:
    """A file's tensors grouped into modules, in their order; and the names that fit nowhere."""
    found: dict[str, dict[str, str]] = {}
    others = []
    for name in names:
        place = split_name(name)
        # Two spellings of one tensor in a file: the first counts, the other must not get lost silently.
        if place is None or place[1] in found.get(place[0], ()):
            others.append(name)
        else:
            found.setdefault(place[0], {})[place[1]] = name
    return [ModuleKeys(name, keys) for name, keys in found.items()], others


def split_name(name: str) -> tuple[str, str] | None:
    """A tensor's name -> (module, suffix) in the spellings of this module; None for other names."""
    if kohya := _KOHYA.fullmatch(name):
        return (kohya[1], kohya[2]) if kohya[2] in SUFFIXES else None
    if processor := _PROCESSOR.fullmatch(name):
        layer = "to_out.0" if processor[2] == "to_out" else processor[2]
        return _module_name(f"{processor[1]}.{layer}"), f"lora_{processor[3]}.weight"
    if dotted := _DOTTED.fullmatch(name):
        return _module_name(dotted[1]), _DOTTED_SUFFIXES.get(dotted[2], dotted[2])
    return None


def _module_name(dotted: str) -> str:
    name = dotted.removeprefix("base_model.model.")
    if re.match(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.", name):
        return f"unet.{name}"
    if re.match(r"(text_model|encoder\.layers)\.", name):
        name = f"text_encoder.{name}"
    # transformers from version 5 on leaves this level out.
    return re.sub(
        r"^(text_encoder(?:_2)?)\.(encoder|embeddings|final_layer_norm)\.", r"\1.text_model.\2.", name
    )


def describe_network(file: WeightFile) -> Network:
    """Describe an open network file; of its tensors only alphas are read.

    Raises InputError if it is something else, such as a checkpoint, or has an alpha that is not one number.
    """
    shapes = {name: info.shape for name, info in file.tensors.items()}
    found = recognise(shapes)
    modules, others = find_modules(file.tensors)
    # Other kinds of files can have tensors called alpha too.
    if not any(find_algorithm(module.keys) for module in modules) or found.kind not in ("lora", "unknown"):
        raise InputError(f"{file.path}: this is {describe_kind(found)}, not a LoRA or other network")
    return Network(
        path=file.path,
        family=found.family,
        modules={module.name: _describe(file, module) for module in modules},
        others=tuple(others),
        metadata=file.metadata,
    )


def _describe(file: WeightFile, module: ModuleKeys) -> NetworkModule:
    infos = {suffix: file.tensors[name] for suffix, name in module.keys.items()}
    row = find_algorithm(infos)
    algorithm = row.name if row else "unknown"
    if algorithm == "oft" and len(infos["oft_blocks"].shape) == 4:
        algorithm = "boft"
    ranked = next((infos[name] for name in (row.ranks if row else ()) if name in infos), None)
    return NetworkModule(
        name=module.name,
        keys=module.keys,
        part=part_of(module.name),
        algorithm=algorithm,
        rank=ranked.shape[0] if ranked and ranked.shape else None,
        alpha=_alpha(file, module),
        kernel=_kernel(infos),
        tucker=not {"lora_mid.weight", "hada_t1", "lokr_t2"}.isdisjoint(infos),
        dora="dora_scale" in infos,
    )


def part_of(module: str) -> str:
    """The part of the model that a module belongs to: "unet", "te1", "te2", or "other"."""
    return next((part for pattern, part in _PARTS if pattern.match(module)), "other")


def _alpha(file: WeightFile, module: ModuleKeys) -> float | None:
    name = module.keys.get("alpha")
    if name is None:
        return None
    values = file.read(name)
    if values.size != 1:
        raise InputError(f"{file.path}: {quote(name)} is not one number")
    return float(values.reshape(()))


def _kernel(infos: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    """(k, k) of a convolution larger than 1x1; () for all else, and where factors are stored flattened."""
    kernels = {
        info.shape[2:] for suffix, info in infos.items() if len(info.shape) == 4 and suffix != "oft_blocks"
    }
    large = [kernel for kernel in kernels if max(kernel) > 1]
    return large[0] if len(large) == 1 else ()


def is_dylora(metadata: Mapping[str, str]) -> bool:
    """DyLoRA's files have LoRA's tensors; only their metadata tell."""
    if metadata.get("ss_network_module", "").endswith("dylora"):
        return True
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return False
    return isinstance(arguments, dict) and arguments.get("algo") == "dylora"
