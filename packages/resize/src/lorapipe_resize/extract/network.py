"""A network of another kind (LoHa, LoKr, full, DoRA, OFT, ...) as what a LoRA is extracted from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.checkpoints.opened import Base
from lorapipe_engine.command.text import counted
from lorapipe_engine.delta import dense_delta, needs_base
from lorapipe_engine.delta.spectra import kernel_of, module_spectrum, spectral_rule
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.blocks import REST, block_of, block_of_name
from lorapipe_engine.models.families import FAMILIES, get_family
from lorapipe_engine.models.keys import lora_names
from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.kohya_names import canonical, known_layer, kohya_name
from lorapipe_engine.networks.layers import kernel_in
from lorapipe_engine.networks.leading import leading
from lorapipe_engine.networks.read import lost_alphas, module_label, read_module
from lorapipe_resize.extract.layers import Tensor, tensors_of
from lorapipe_resize.extract.rules import Rule
from lorapipe_resize.extract.sources import UNCHANGED, Found

Array = NDArray[Any]
SHOWN = 5
_BIASES = frozenset({"diff_b", "b_norm", "lora_up.bias"})


class NetworkJob:
    """A module of the network: its name in the LoRA, its block, and the layer's weight in the base where that is
    given.
    """

    def __init__(
        self, source: NetworkSource, module: NetworkModule, name: str, block: str, base: Tensor | None
    ) -> None:
        self._source = source
        self.module = module
        self.name = name
        self.block = block
        self.base = base

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """(k, k) of a convolution, () of a linear layer: the base's, or what the module's tensors and name tell."""
        if self.base is None:
            return self._source.kernel_of(self)
        kernel = self.base.shape[2:]
        around = self.module.name.endswith(("proj_in", "proj_out"))
        return () if around and kernel == (1, 1) and self._source.family != "sd1" else kernel

    @property
    def conv(self) -> bool:
        """Whether the kernel is larger than 1x1."""
        return max(self.kernel, default=1) > 1

    @cached_property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the change. Without a base it is computed for that: algorithms store it in many ways."""
        rows, *rest = self.base.shape if self.base is not None else self._source.change_of(self).shape
        return rows, math.prod(rest)


class NetworkSource:
    """The modules of a network, each with its change in full strength."""

    def __init__(self, file: WeightFile, network: Network, base: Base | None) -> None:
        """Raises ConfigError where a base is needed and not given, InputError for modules that the base has not."""
        self._file = file
        self._trained_for = network.family
        self.family = base.family if base is not None else network.family
        self.notes: list[str] = []
        lost = lost_alphas(network)
        there = [module for module in network.modules.values() if module.name not in lost]
        modules = [module for module in there if self._has_matrix(module)]
        self._note_rest(network, there, lost)
        if not modules:
            raise InputError(f"{file.path}: has no module whose change is a matrix")
        if base is None:
            _check_base_not_needed(file, modules)
        layers = _layers_by_name(base) if base is not None else {}
        self.jobs: Sequence[NetworkJob] = [self._job(module, base, layers) for module in modules]
        self._check_unique()

    def _check_unique(self) -> None:
        seen: dict[str, str] = {}
        for job in self.jobs:
            if job.name in seen:
                one, two = (quote(name)[1:-1] for name in (seen[job.name], job.module.path))
                raise InputError(f"{self._file.path}: names one layer twice, as {one} and as {two}")
            seen[job.name] = job.module.path

    def _has_matrix(self, module: NetworkModule) -> bool:
        shapes = {suffix: self._file.tensors[key].shape for suffix, key in module.keys.items()}
        if module.algorithm == "unknown":
            raise InputError(
                f"{self._file.path}: module {quote(module.name)[1:-1]} has tensors of no known algorithm: "
                f"{', '.join(sorted(shapes))}"
            )
        check_whole(self._file, module)
        return needs_base(module.keys) or spectral_rule(module.name, shapes) is not None

    def _note_rest(self, network: Network, modules: Sequence[NetworkModule], lost: Sequence[str]) -> None:
        """Say what is left out: vectors of norms and biases, alphas without factors, and tensors of no module."""
        norms = sum(1 for m in modules if not self._has_matrix(m))
        biases = sum(1 for m in modules if _BIASES & set(m.keys) and self._has_matrix(m))
        if lost:
            shown = ", ".join(quote(name)[1:-1] for name in lost[:SHOWN])
            more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
            self.notes.append(
                f"not in the LoRA: {counted(len(lost), 'alpha')} without factors: {shown}{more}"
            )
        if norms:
            self.notes.append(
                f"not in the LoRA: {counted(norms, 'module')} of norms or vectors, which no LoRA says"
            )
        if biases:
            self.notes.append(
                f"not in the LoRA: changes of {biases} {'bias' if biases == 1 else 'biases'} (diff_b), "
                "which no LoRA says"
            )
        if network.others:
            shown = ", ".join(quote(name)[1:-1] for name in network.others[:SHOWN])
            more = f" and {len(network.others) - SHOWN} more" if len(network.others) > SHOWN else ""
            self.notes.append(
                f"not in the LoRA: {counted(len(network.others), 'tensor')} of no module: {shown}{more}"
            )

    def _job(
        self, module: NetworkModule, base: Base | None, layers: Mapping[str, tuple[str, Tensor]]
    ) -> NetworkJob:
        if base is None:
            return NetworkJob(self, module, *_named(module, self.family), None)
        name = canonical(module.name)
        if name not in layers:
            title = FAMILIES[base.family].title
            other = self._trained_for not in (None, base.family)
            why = (
                f"the network is for {FAMILIES[self._trained_for or ''].title}"
                if other
                else "it has no such layer"
            )
            raise InputError(
                f"{self._file.path}: {quote(module.name)[1:-1]} has no place in {base.path} ({title}): {why}"
            )
        kohya, tensor = layers[name]
        return NetworkJob(self, module, kohya, block_of(tensor.place.part, tensor.ldm_path), tensor)

    def kernel_of(self, job: NetworkJob) -> tuple[int, ...]:
        """The kernel that a module's tensors show, or where they are flattened its name."""
        stored = [self._file.tensors[key].shape[2:] for key in job.module.keys.values()]
        kernels = [shape for shape in stored if len(shape) == 2]
        kernel = max(kernels) if kernels else kernel_of(job.module.name, job.size[1])
        return kernel_in(self.family, job.module.name, kernel)

    # ---------------------------------------------------------------- the changes

    def find(self, number: int, rule: Rule) -> Found | str:
        """The change of one module at the rank of the rule; exact by its factors wherever the algorithm has them."""
        job = self.jobs[number]
        if needs_base(job.module.keys) or job.module.algorithm == "full":
            return self._find_dense(job, rule)
        arrays = self._arrays(job.module)
        exact = module_spectrum(job.module.name, arrays, vectors=rule.bound(conv=job.conv))
        spectrum = exact.spectrum.scaled(exact.scale)
        self._check_size(job, (spectrum.up.shape[0], spectrum.down.shape[1]))
        if not spectrum.norm():
            return UNCHANGED
        choose, _ = rule.chooser(conv=job.conv, limit=exact.limit, floor=None)
        rank, _ = choose(spectrum.singular, spectrum.norm())
        rank = max(1, min(rank, exact.limit, spectrum.up_mix.shape[1]))
        return Found(
            spectral=spectrum, rank=rank, limit=exact.limit, base_norm=_norm(job), floor=None, proved=1.0
        )

    def _check_size(self, job: NetworkJob, made: tuple[int, int]) -> None:
        """Raise InputError where a change that does not depend on the base is not one of the base's layer."""
        if job.base is not None and made != job.size:
            raise InputError(
                f"{self._file.path}: {quote(job.module.name)[1:-1]} makes a change of {made}, {job.base.key} of the "
                f"base has {job.size}"
            )

    def _find_dense(self, job: NetworkJob, rule: Rule) -> Found | str:
        matrix = self._matrix(job)
        if not matrix.any():
            return UNCHANGED
        limit = min(matrix.shape)
        choose, threshold = rule.chooser(conv=job.conv, limit=limit, floor=None)
        spectral = leading(matrix, choose, threshold=threshold)
        return Found(
            spectral=spectral,
            rank=max(1, spectral.rank),
            limit=limit,
            base_norm=_norm(job),
            floor=None,
            proved=spectral.proved,
        )

    def matrix(self, number: int) -> Array:
        """The change of one module, (o, in·k·k) float64."""
        return self._matrix(self.jobs[number])

    def _matrix(self, job: NetworkJob) -> Array:
        change = self.change_of(job)
        return change.reshape(change.shape[0], -1)

    def change_of(self, job: NetworkJob) -> Array:
        """The change of a module in the shape that its algorithm gives it, float64."""
        module, base = job.module, job.base
        arrays = self._arrays(module)
        weight = base.read(np.float64) if base is not None else None
        if weight is not None and not np.isfinite(weight).all():
            raise InputError(
                f"{base.file.path if base else ''}: {base.key if base else ''} has NaN or infinite values"
            )
        change = dense_delta(arrays, weight, name=module.name).weight
        if change is None:
            raise InputError(f"{self._file.path}: module {quote(module.name)[1:-1]} changes no weight")
        return change

    def _arrays(self, module: NetworkModule) -> dict[str, Array]:
        arrays = read_module(self._file, module)
        bad = [s for s, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
        if bad:
            raise InputError(
                f"module {module_label(self._file, module)}: {bad[0]} has NaN or infinite values"
            )
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
    by_name: dict[str, tuple[str, Tensor]] = {}
    for (part, path, kind), tensor in tensors.layers.items():
        if kind != "weight" or part == "vae" or len(tensor.shape) < 2:
            continue
        per_block = tensors.layout.layers_per_block
        names = lora_names(base.family, part, path, per_block, tensor.ldm_path)
        for name in names:
            by_name.setdefault(name, (names[0], tensor))
    return by_name


def _named(module: NetworkModule, family: str | None) -> tuple[str, str]:
    """Kohya's name of a module and its block, from the name alone."""
    name = module.name
    plain = get_family(family).plain_up_blocks if family else frozenset()
    block = block_of_name(name, module.part, plain) or REST
    kohya = kohya_name(name, family)
    if "." in name and (family is None or known_layer(name, family) is None):
        raise InputError(f"module {quote(name)[1:-1]}: its layer is not known; give the base model too")
    return kohya, block
