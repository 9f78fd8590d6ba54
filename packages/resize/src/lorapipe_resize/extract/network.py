"""A network of another kind (LoHa, LoKr, full, DoRA, OFT, ...) as what a LoRA is extracted from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.checkpoints.opened import Base
from lorapipe_engine.delta import dense_delta, needs_base
from lorapipe_engine.delta.adapter import adapter_scales
from lorapipe_engine.delta.spectra import kernel_of, module_spectrum, spectral_rule
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.blocks import block_of
from lorapipe_engine.models.families import FAMILIES, get_family
from lorapipe_engine.models.keys import lora_name, lora_names, unet_to_ldm
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.leading import leading
from lorapipe_resize.extract.layers import Tensor, tensors_of
from lorapipe_resize.extract.rules import Rule
from lorapipe_resize.extract.sources import UNCHANGED, Found

Array = NDArray[Any]
SHOWN = 5
_BIASES = frozenset({"diff_b", "b_norm"})


@dataclass(frozen=True)
class NetworkJob:
    """A module of the network: its name in the LoRA, its block, and the layer's weight in the base where that is
    given.
    """

    name: str
    block: str
    module: NetworkModule
    kernel: tuple[int, ...]
    size: tuple[int, int]
    base: Tensor | None

    @property
    def conv(self) -> bool:
        """Whether the kernel is larger than 1x1."""
        return max(self.kernel, default=1) > 1


class NetworkSource:
    """The modules of a network, each with its change in full strength."""

    def __init__(self, file: WeightFile, network: Network, base: Base | None) -> None:
        """Raises ConfigError where a base is needed and not given, InputError for modules that the base has not."""
        self._file = file
        self._scales = adapter_scales(file.metadata, network.modules)
        self.notes: list[str] = []
        modules = [module for module in network.modules.values() if self._has_matrix(module)]
        self._note_rest(network)
        if not modules:
            raise InputError(f"{file.path}: has no module whose change is a matrix")
        if base is None:
            _check_base_not_needed(file, modules)
        layers = _layers_by_name(base) if base is not None else {}
        self.jobs: Sequence[NetworkJob] = [self._job(module, network, base, layers) for module in modules]

    def _has_matrix(self, module: NetworkModule) -> bool:
        shapes = {suffix: self._file.tensors[key].shape for suffix, key in module.keys.items()}
        if module.algorithm == "unknown":
            raise InputError(
                f"{self._file.path}: module {quote(module.name)[1:-1]} has tensors of no known algorithm: "
                f"{', '.join(sorted(shapes))}"
            )
        return needs_base(module.keys) or spectral_rule(module.name, shapes) is not None

    def _note_rest(self, network: Network) -> None:
        """Say what is left out: vectors of norms and biases, and tensors of no module."""
        norms = sum(1 for m in network.modules.values() if not self._has_matrix(m))
        biases = sum(1 for m in network.modules.values() if _BIASES & set(m.keys) and self._has_matrix(m))
        if norms:
            self.notes.append(f"not in the LoRA: {norms} modules of norms or vectors, which no LoRA says")
        if biases:
            self.notes.append(f"not in the LoRA: changes of {biases} biases (diff_b), which no LoRA says")
        if network.others:
            shown = ", ".join(quote(name)[1:-1] for name in network.others[:SHOWN])
            more = f" and {len(network.others) - SHOWN} more" if len(network.others) > SHOWN else ""
            self.notes.append(f"not in the LoRA: {len(network.others)} tensors of no module: {shown}{more}")

    def _job(
        self,
        module: NetworkModule,
        network: Network,
        base: Base | None,
        layers: Mapping[str, tuple[str, Tensor]],
    ) -> NetworkJob:
        if base is None:
            name, block = _named(module, network.family)
            return NetworkJob(name, block, module, self._kernel(module), self._size(module), None)
        name = module.name.replace("lycoris_", "lora_", 1).replace("oft_", "lora_", 1)
        if name not in layers:
            title = FAMILIES[base.family].title
            other = network.family not in (None, base.family)
            why = (
                f"the network is for {FAMILIES[network.family or ''].title}"
                if other
                else "it has no such layer"
            )
            raise InputError(
                f"{self._file.path}: {quote(module.name)[1:-1]} has no place in {base.path} ({title}): {why}"
            )
        kohya, tensor = layers[name]
        rows, *rest = tensor.shape
        kernel = tensor.shape[2:]
        if module.name.endswith(("proj_in", "proj_out")) and kernel == (1, 1) and base.family != "sd1":
            kernel = ()
        block = block_of(tensor.place.part, tensor.ldm_path)
        return NetworkJob(kohya, block, module, kernel, (rows, math.prod(rest)), tensor)

    def _kernel(self, module: NetworkModule) -> tuple[int, ...]:
        stored = [self._file.tensors[key].shape[2:] for key in module.keys.values()]
        kernels = [shape for shape in stored if len(shape) == 2]
        if kernels:
            return max(kernels)
        return kernel_of(module.name, self._size(module)[1])

    def _size(self, module: NetworkModule) -> tuple[int, int]:
        """Rows and columns of the change, by computing it: algorithms store it in many ways."""
        rows, *rest = self._dense(module, None).shape
        return rows, math.prod(rest)

    # ---------------------------------------------------------------- the changes

    def find(self, number: int, rule: Rule) -> Found | str:
        """The change of one module at the rank of the rule; exact by its factors wherever the algorithm has them."""
        job = self.jobs[number]
        scale = self._scales.get(job.module.name)
        if needs_base(job.module.keys) or job.module.algorithm == "full":
            return self._find_dense(job, rule)
        arrays = self._arrays(job.module)
        exact = module_spectrum(job.module.name, arrays, vectors=rule.bound(conv=job.conv))
        whole = exact.scale * (1.0 if scale is None else scale)
        if whole < 0:
            return self._find_dense(job, rule)
        spectrum = exact.spectrum.scaled(whole)
        if not spectrum.norm():
            return UNCHANGED
        choose, _ = rule.chooser(conv=job.conv, limit=exact.limit, floor=None)
        rank, _ = choose(spectrum.singular, spectrum.norm())
        rank = max(1, min(rank, exact.limit, spectrum.up_mix.shape[1]))
        return Found(
            spectral=spectrum, rank=rank, limit=exact.limit, base_norm=_norm(job), floor=None, proved=1.0
        )

    def _find_dense(self, job: NetworkJob, rule: Rule) -> Found | str:
        matrix = self._matrix(job)
        if not matrix.any():
            return UNCHANGED
        limit = min(matrix.shape)
        choose, threshold = rule.chooser(conv=job.conv, limit=limit, floor=None)
        found = leading(matrix, choose, threshold=threshold)
        return Found(
            spectral=found,
            rank=max(1, found.rank),
            limit=limit,
            base_norm=_norm(job),
            floor=None,
            proved=found.proved,
        )

    def matrix(self, number: int) -> Array:
        """The change of one module, (o, in·k·k) float64."""
        return self._matrix(self.jobs[number])

    def _matrix(self, job: NetworkJob) -> Array:
        change = self._dense(job.module, job.base)
        return change.reshape(change.shape[0], -1)

    def _dense(self, module: NetworkModule, base: Tensor | None) -> Array:
        arrays = self._arrays(module)
        weight = base.read(np.float64) if base is not None else None
        if weight is not None and not np.isfinite(weight).all():
            raise InputError(
                f"{base.file.path if base else ''}: {base.key if base else ''} has NaN or infinite values"
            )
        change = dense_delta(arrays, weight, name=module.name).weight
        if change is None:
            raise InputError(f"{self._file.path}: module {quote(module.name)[1:-1]} changes no weight")
        scale = self._scales.get(module.name)
        result: Array = change if scale is None else change * scale
        return result

    def _arrays(self, module: NetworkModule) -> dict[str, Array]:
        arrays = {suffix: self._file.read(key) for suffix, key in module.keys.items()}
        bad = [module.keys[s] for s, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
        if bad:
            raise InputError(f"{self._file.path}: {quote(bad[0])} has NaN or infinite values")
        return arrays


def _norm(job: NetworkJob) -> float | None:
    return float(np.linalg.norm(job.base.read())) if job.base is not None else None


def _check_base_not_needed(file: WeightFile, modules: Sequence[NetworkModule]) -> None:
    counts = Counter(
        "dora" if module.dora else module.algorithm for module in modules if needs_base(module.keys)
    )
    if counts:
        kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ConfigError(
            f"{file.path}: the change of {kinds} modules depends on the base model: "
            "lora-extract NETWORK BASE -o OUT"
        )


def _layers_by_name(base: Base) -> dict[str, tuple[str, Tensor]]:
    """Every name that a module may have -> kohya's name and the layer's weight."""
    tensors = tensors_of(base)
    found: dict[str, tuple[str, Tensor]] = {}
    for (part, path, kind), tensor in tensors.layers.items():
        if kind != "weight" or part == "vae" or len(tensor.shape) < 2:
            continue
        per_block = tensors.layout.layers_per_block
        names = lora_names(base.family, part, path, per_block, tensor.ldm_path)
        for name in names:
            found.setdefault(name, (names[0], tensor))
    return found


def _named(module: NetworkModule, family: str | None) -> tuple[str, str]:
    """Kohya's name of a module and its block, from the name alone."""
    name = module.name
    if "." not in name:
        return name.replace("lycoris_", "lora_", 1).replace("oft_", "lora_", 1), _block_of_name(
            module, family
        )
    part, _, path = name.partition(".")
    if family is None or module.part == "other":
        raise InputError(f"module {quote(name)[1:-1]}: its family is not known; give the base model too")
    del part
    return lora_name(family, module.part, path), _block_of_name(module, family)


def _block_of_name(module: NetworkModule, family: str | None) -> str:
    """The block of a module where dots tell the path; its part where they do not."""
    if module.part in ("te1", "te2"):
        return block_of(module.part, None)
    part, dot, path = module.name.partition(".")
    del part
    if dot and family is not None:
        return block_of("unet", unet_to_ldm(path, 2, get_family(family).plain_up_blocks))
    return "UNET"
