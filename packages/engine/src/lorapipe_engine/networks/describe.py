"""A network file described: its modules, their algorithms and ranks, the family of models it is for.

Names of modules are brought to one of two spellings: kohya's (``lora_unet_down_blocks_0_...``), or for dotted
names PEFT's with the part in front (``unet.down_blocks.0...``, ``text_encoder.text_model...``). Those are
what :func:`lorapipe_engine.models.keys.lora_names` answers. Suffixes are kohya's and LyCORIS' throughout
("lora_down.weight").
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lorapipe_engine.errors import InputError, naming
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.bases import describe_kind
from lorapipe_engine.models.families import (
    FAMILIES,
    Recognised,
    get_family,
    mixed_families,
    network_family,
    possible_families,
    recognise,
    strange_network,
)
from lorapipe_engine.models.foreign import foreign_family, no_network
from lorapipe_engine.networks import algorithms
from lorapipe_engine.networks.adapter_config import AdapterConfig, find_config
from lorapipe_engine.networks.algorithms import core_suffixes, find_algorithm
from lorapipe_engine.networks.names import read_name

_UNNAMED_TEXT = re.compile(r"(base_model\.model\.)?(text_model|encoder|embeddings|final_layer_norm)\.")
_PARTS = (
    (re.compile(r"(lora|oft|lycoris)_unet_|unet\."), "unet"),
    (re.compile(r"(lora|oft|lycoris)_te2_|text_encoder_2\."), "te2"),
    (re.compile(r"(lora|oft|lycoris)_te1?_|text_encoder\."), "te1"),
)


@dataclass(frozen=True)
class ModuleKeys:
    """A module of a file: ``keys`` gives the tensor's name in the file for each suffix, ``path`` is the layer as the
    file spells it.
    """

    name: str
    keys: Mapping[str, str]
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class NetworkModule(ModuleKeys):
    """A module described.

    ``part``: "unet", "te1", "te2", or "other". ``algorithm``: a name of the table of algorithms, "boft" for
    butterflies of OFT blocks, "unknown" where none fits. ``rank``: None where the algorithm or the module has
    none. ``alpha`` as stored; None if it is missing, which readers take for the rank. ``scale``: what a configuration
    says in the place of alpha / rank. ``kernel``: (k, k) of a convolution larger than 1x1. ``tucker``: with a core
    tensor; ``dora``: with magnitudes.
    """

    part: str
    algorithm: str
    rank: int | None
    alpha: float | None
    scale: float | None = None
    kernel: tuple[int, ...] = ()
    tucker: bool = False
    dora: bool = False

    @property
    def effective_alpha(self) -> float | None:
        """alpha, stored or by a configuration; the rank where there is neither."""
        if self.alpha is None and self.scale is not None and self.rank is not None:
            return self.scale * self.rank
        return self.rank if self.alpha is None else self.alpha

    @property
    def magnitude_per_output(self) -> bool:
        """Whether DoRA's magnitudes go by outputs whatever their shape: PEFT's and its like do."""
        return self.dora and not self.keys["dora_scale"].endswith("dora_scale")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network file. ``others`` are names of tensors that belong to no module. ``foreign``: name of the family where
    it is none of those known here. ``mixed``: two families, each with a name in the file that only its models have.
    ``possible``: the families that names and shapes do not rule out, of which ``family`` is the likeliest.
    ``scale_unknown``: the strengths of its modules are neither in the file nor beside it.
    """

    path: Path
    family: str | None
    foreign: str | None = None
    mixed: tuple[tuple[str, str], tuple[str, str]] | None = None
    possible: frozenset[str] = frozenset()
    scale_unknown: bool = False
    modules: Mapping[str, NetworkModule]
    others: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def title(self) -> str:
        """What it is for, as messages say it."""
        if self.family is not None:
            return get_family(self.family).title
        if self.mixed is not None:
            return " and ".join(title for title, _ in self.mixed)
        return self.foreign or "a model that is not known here"

    @property
    def algorithm(self) -> str:
        """In a word: "lora", "locon" (with convolutions), "dylora" (by the metadata), ..., or "mixed"."""
        counts = Counter(module.algorithm for module in self.modules.values())
        layers = [name for name in counts if name != "norm"] or list(counts)
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
    keys: dict[str, dict[str, str]] = {}
    paths: dict[str, str] = {}
    others = []
    for name in names:
        known = read_name(name)
        # Two spellings of one tensor in a file: the first counts, the other must not get lost silently.
        if known is None or known.suffix in keys.get(known.module, ()):
            others.append(name)
        else:
            keys.setdefault(known.module, {})[known.suffix] = name
            paths.setdefault(known.module, known.path)
    return [ModuleKeys(name, suffixes, paths[name]) for name, suffixes in keys.items()], others


def describe_network(file: WeightFile) -> Network:
    """Describe an open network file; of its tensors only alphas are read.

    Raises InputError if it is something else, such as a checkpoint, or holds several adapters, if an alpha is not one
    number, or if the configuration of its strengths cannot be understood.
    """
    with naming(file.path):
        return _describe_network(file)


def _describe_network(file: WeightFile) -> Network:
    shapes = {name: info.shape for name, info in file.tensors.items()}
    layout = _lay_out(tuple(shapes.items()), _tables())
    # Other kinds of files can have tensors called alpha too.
    if not layout.has_network or layout.kind.kind not in ("lora", "unknown"):
        if layout.kind.kind in ("unknown", "unet") and (what := no_network(shapes)):
            raise InputError(f"{file.path}: this is {what}, which tools for networks do not read")
        raise InputError(
            f"{file.path}: this is {_other_kind(layout.kind, shapes)}, not a LoRA or other network"
        )
    adapter = _adapter_of(file, layout.adapters)
    modules = [_with_alpha(module, file) for module in layout.modules]
    config = _config_of(file, modules, adapter) if layout.foreign is None else None
    modules = [_with_config(module, config) for module in _with_text_encoder(file, modules, config)]
    models = _find_models(tuple(_canonical_shapes(file, modules).items()), _tables())
    foreign = layout.foreign or models.strange
    is_known = foreign is None and models.mixed is None
    return Network(
        path=file.path,
        family=models.family if is_known else None,
        foreign=foreign,
        possible=models.possible if is_known else frozenset(),
        mixed=None
        if foreign or models.mixed is None
        else (_spelt(models.mixed[0], modules), _spelt(models.mixed[1], modules)),
        scale_unknown=config is None and foreign is None and adapter is not None and _lack_alphas(modules),
        modules={module.name: module for module in modules},
        others=layout.others,
        metadata=file.metadata,
    )


# ------------------------------------------------------------------------------- what names and shapes alone say

_Tensors = tuple[tuple[str, tuple[int, ...]], ...]
MOST_KEPT = 8  # files of one run have the same names and shapes, which then are understood once


@dataclass(frozen=True)
class _Layout:
    """``modules``: without what other tensors or files say of their strengths. ``adapters``: PEFT's names for them."""

    kind: Recognised
    has_network: bool
    modules: tuple[NetworkModule, ...]
    others: tuple[str, ...]
    adapters: tuple[str, ...]
    foreign: str | None


@dataclass(frozen=True)
class _Models:
    """What a network is for; see :class:`Network`. ``strange``: a model that shares the names of a known family."""

    strange: str | None
    mixed: tuple[tuple[str, str], tuple[str, str]] | None
    family: str | None
    possible: frozenset[str]


def _tables() -> tuple[object, ...]:
    """The rows that names are understood by."""
    return (*algorithms.ALGORITHMS, *FAMILIES)


@lru_cache(MOST_KEPT)
def _lay_out(tensors: _Tensors, _of: tuple[object, ...]) -> _Layout:
    shapes = dict(tensors)
    groups, others = find_modules(shapes)
    names = {known.adapter for name in shapes if (known := read_name(name)) is not None}
    return _Layout(
        kind=recognise(shapes),
        has_network=any(find_algorithm(module.keys) for module in groups),
        modules=tuple(_describe(shapes, module) for module in groups),
        others=tuple(others),
        adapters=tuple(sorted(names - {""})),
        foreign=foreign_family(shapes),
    )


@lru_cache(MOST_KEPT)
def _find_models(canonical: _Tensors, _of: tuple[object, ...]) -> _Models:
    shapes = dict(canonical)
    return _Models(
        strange_network(shapes), mixed_families(shapes), network_family(shapes), possible_families(shapes)
    )


def _spelt(sign: tuple[str, str], modules: Sequence[NetworkModule]) -> tuple[str, str]:
    """A family and the module that shows it, as the file spells it."""
    title, name = sign
    paths = (m.path for m in modules if name == m.name or name.startswith(f"{m.name}."))
    return title, next(paths, name)


def _other_kind(kind: Recognised, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if kind.kind == "lora":  # by its names, but none of its tensors belongs to a known algorithm
        shown = quote(next(iter(shapes)))[1:-1]
        return f"a file whose tensors, such as {shown}, belong to no algorithm that is known"
    return describe_kind(kind)


def _adapter_of(file: WeightFile, named: Sequence[str]) -> str | None:
    """The name of PEFT's adapter in the file, "" for one without a name; None where PEFT itself did not write it.

    diffusers' pipelines write a part's name in front, and without alphas mean a strength of 1.
    """
    if len(named) > 1:
        shown = ", ".join(quote(name)[1:-1] for name in named[:5])
        raise InputError(
            f"{file.path}: holds {len(named)} adapters ({shown}); save each to a file of its own"
        )
    written_by_peft = any(name.startswith("base_model.model.") for name in file.tensors)
    return "".join(named) if written_by_peft else None


def _lack_alphas(modules: Iterable[NetworkModule]) -> bool:
    return any(module.alpha is None and module.algorithm in ("lora", "loha", "lokr") for module in modules)


def _config_of(
    file: WeightFile, modules: Sequence[NetworkModule], adapter: str | None
) -> AdapterConfig | None:
    """The configuration that the strengths of modules without an alpha are in."""
    if not _lack_alphas(modules):
        return None
    beside = adapter is not None or file.path.name.startswith("adapter_model.")
    return find_config(file.path, file.metadata, beside=beside and file.path.is_file())


def _with_config(module: NetworkModule, config: AdapterConfig | None) -> NetworkModule:
    if config is None or module.algorithm not in ("lora", "loha", "lokr"):
        return module
    path = re.sub(r"^(base_model\.model\.)?(unet|text_encoder(_2)?)?\.?", "", module.path, count=1)
    scale = config.scale(module.part, path, module.rank)
    if module.alpha is not None:
        if (
            scale is not None
            and module.rank
            and not math.isclose(scale * module.rank, module.alpha, rel_tol=0.01)
        ):
            raise InputError(
                f"{config.source}: gives {path} the strength {scale:g}, but its alpha is {module.alpha:g} at rank "
                f"{module.rank}"
            )
        return module
    said = config.says_dora(module.part)
    if said is not None and said != module.dora and module.algorithm == "lora":
        there = "has magnitudes" if module.dora else "has no magnitudes"
        raise InputError(f"{config.source}: says use_dora = {json.dumps(said)}, but {path} {there}")
    return replace(module, scale=scale)


def _with_text_encoder(
    file: WeightFile, modules: Sequence[NetworkModule], config: AdapterConfig | None
) -> list[NetworkModule]:
    """The modules, those of an unnamed text encoder with the number that the surroundings tell.

    PEFT keeps one part of a model a folder and does not name it: the folder's name, the wrapped class, or the width
    tell SDXL's second text encoder from the first.
    """
    bare = [module for module in modules if _UNNAMED_TEXT.match(module.path)]
    if not bare or not _is_second(file, bare, config):
        return list(modules)
    renamed = {module.name for module in bare}
    return [
        replace(module, name=module.name.replace("text_encoder.", "text_encoder_2.", 1), part="te2")
        if module.name in renamed
        else module
        for module in modules
    ]


def _is_second(file: WeightFile, modules: Sequence[NetworkModule], config: AdapterConfig | None) -> bool:
    if file.path.parent.name in ("text_encoder", "text_encoder_2"):
        return file.path.parent.name == "text_encoder_2"
    if any(
        known.module == "text_encoder_2.text_projection" for known in map(read_name, file.tensors) if known
    ):
        return True
    if config is not None and config.model_class:
        return config.model_class == "CLIPTextModelWithProjection"
    widths = {
        file.tensors[key].shape[-1]
        for module in modules
        if module.path.endswith("q_proj") and (key := module.keys.get("lora_down.weight")) is not None
    }
    return widths == {1280}


def _canonical_shapes(file: WeightFile, modules: Iterable[NetworkModule]) -> dict[str, tuple[int, ...]]:
    return {
        f"{module.name}.{suffix}": file.tensors[key].shape
        for module in modules
        for suffix, key in module.keys.items()
    }


def _describe(shapes: Mapping[str, tuple[int, ...]], module: ModuleKeys) -> NetworkModule:
    """A module without its alpha."""
    own = {suffix: shapes[name] for suffix, name in module.keys.items()}
    row = find_algorithm(own)
    algorithm = row.name if row else "unknown"
    if algorithm == "oft" and len(own["oft_blocks"]) == 4:
        algorithm = "boft"
    ranked = next((own[name] for name in (row.ranks if row else ()) if name in own), None)
    return NetworkModule(
        name=module.name,
        keys=module.keys,
        path=module.path,
        part=part_of(module.name),
        algorithm=algorithm,
        rank=ranked[0] if ranked else None,
        alpha=None,
        kernel=_kernel(own),
        tucker=not core_suffixes().isdisjoint(own),
        dora="dora_scale" in own,
    )


def part_of(module: str) -> str:
    """The part of the model that a module belongs to: "unet", "te1", "te2", or "other"."""
    return next((part for pattern, part in _PARTS if pattern.match(module)), "other")


def _with_alpha(module: NetworkModule, file: WeightFile) -> NetworkModule:
    name = module.keys.get("alpha")
    if name is None:
        return module
    values = file.read(name)
    if values.size != 1:
        raise InputError(f"{file.path}: {quote(name)} is not one number")
    return replace(module, alpha=float(values.reshape(())))


def _kernel(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """(k, k) of a convolution larger than 1x1; () for all else, and where factors are stored flattened."""
    kernels = {shape[2:] for suffix, shape in shapes.items() if len(shape) == 4 and suffix != "oft_blocks"}
    large = [kernel for kernel in kernels if max(kernel) > 1]
    return large[0] if len(large) == 1 else ()


def is_dylora(metadata: Mapping[str, str]) -> bool:
    """DyLoRA's files have LoRA's tensors; only their metadata tell."""
    if metadata.get("ss_network_module", "").endswith("dylora"):
        return True
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return False
    return isinstance(arguments, dict) and arguments.get("algo") == "dylora"
