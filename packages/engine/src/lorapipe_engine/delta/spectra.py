"""The exact spectrum of one module's change, whatever linear algorithm wrote it.

LoRA, LoCon and DyLoRA by their factors, a Tucker core folded in; LoHa as Khatri-Rao factors of rank r², or
dense where that is larger; LoKr from the spectra of its two factors; ``diff`` by a thin SVD. What depends on
the base weight (oft, boft, ia3, glora) has no spectrum of its own, norms are vectors. For DoRA it is the
spectrum of the inner change, before the magnitudes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule, flat
from lorapipe_engine.delta.full import FULL
from lorapipe_engine.delta.loha import LOHA, hada_factor, loha_scale
from lorapipe_engine.delta.lokr import LOKR, lokr_factors, lokr_scale
from lorapipe_engine.delta.lora import LORA, lora_factors, lora_scale
from lorapipe_engine.delta.registry import find_rule
from lorapipe_engine.networks.factors import (
    Factors,
    Spectrum,
    dense_spectrum,
    hadamard_factors,
    kron_spectrum,
    spectrum,
)

# Above this rank of the Khatri-Rao factors a dense SVD is the smaller work.
LARGEST_KHATRI_RAO = 512

Decompose = Callable[[Array], Spectrum]


@dataclass(frozen=True, kw_only=True)
class ModuleSpectrum:
    """The change of a module is ``scale`` times what ``spectrum`` describes, a matrix (o, in·k·k).

    ``rank`` is the rank of the file's own factors (r of a LoHa, not r²; for ``diff`` the smaller side).
    ``limit`` is the largest rank the change can have. ``kernel`` is (k, k) for convolutions, () for linear
    layers.
    """

    algorithm: str
    spectrum: Spectrum
    scale: float
    rank: int
    limit: int
    kernel: tuple[int, ...]

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of ``lora_down.weight`` at that rank."""
        columns = self.spectrum.down.shape[1]
        return (rank, columns // math.prod(self.kernel), *self.kernel)

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of ``lora_up.weight`` at that rank."""
        return (self.spectrum.up.shape[0], rank, *(1 for _ in self.kernel))


def spectral_rule(name: str, tensors: Mapping[str, Array] | Mapping[str, tuple[int, ...]]) -> Rule | None:
    """The module's rule if its change has a spectrum of its own, else None.

    ``tensors`` maps suffixes to arrays or only to shapes. Raises InputError where no algorithm fits.
    """
    rule = find_rule(name, tensors.keys())
    if rule not in _SOURCES:
        return None
    if rule is FULL:
        diff = tensors.get("diff")
        shape = diff if isinstance(diff, tuple) or diff is None else diff.shape
        return rule if shape is not None and len(shape) in (2, 4) else None
    return rule


def module_spectrum(
    name: str,
    tensors: Mapping[str, Array],
    *,
    vectors: int | None = None,
    decompose: Decompose = dense_spectrum,
) -> ModuleSpectrum:
    """The spectrum of one module; ``tensors`` maps suffixes to finite arrays.

    ``vectors`` bounds how many singular vectors a LoKr builds (all by default). ``decompose`` does the dense
    SVDs. Raises InputError naming the module where the tensors do not fit each other or the change has no
    spectrum.
    """
    module = Module(name=name, tensors=tensors)
    rule = spectral_rule(name, tensors)
    if rule is None:
        raise module.error(
            "its change depends on the base weight or is no matrix, so it has no low-rank form"
        )
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return _SOURCES[rule](module, vectors, decompose)
    except (FloatingPointError, np.linalg.LinAlgError) as error:
        raise module.error(f"its change cannot be computed: {error}") from error


def kernel_of(name: str, columns: int) -> tuple[int, ...]:
    """The kernel of a layer whose file holds its factors flattened, guessed from its name.

    The convolutions of the UNets are known by name, but for the 1x1 ones around the attention of SD 1.x,
    which are linear layers elsewhere: () for these and for anything else. Readers take such factors either
    way.
    """
    if _CONV1.search(name):
        return (1, 1)
    return (3, 3) if _CONV3.search(name) and columns % 9 == 0 else ()


_CONV1 = re.compile(r"[._](conv_shortcut|skip_connection)$")
_CONV3 = re.compile(
    r"(^|[._])(conv1|conv2|conv_in|conv_out|conv|conv3x3|in_layers[._]2|out_layers[._]3|0[._]op)$"
    r"|unet[._]input_blocks[._]0[._]0$|unet[._]out[._]2$"
)


def _of_lora(module: Module, _vectors: int | None, _decompose: Decompose) -> ModuleSpectrum:
    up, down = lora_factors(module)
    matrix = flat(down)
    return ModuleSpectrum(
        algorithm="lora",
        spectrum=spectrum(up, matrix),
        scale=lora_scale(module),
        rank=module.tensors["lora_down.weight"].shape[0],
        limit=min(*up.shape, *matrix.shape),
        kernel=down.shape[2:],
    )


def _of_loha(module: Module, _vectors: int | None, decompose: Decompose) -> ModuleSpectrum:
    sides = [_hada_side(module, which) for which in (1, 2)]
    (one, kernel), (two, _) = sides
    if (one.up.shape[0], one.down.shape[1]) != (two.up.shape[0], two.down.shape[1]):
        raise module.error("its two factors have different sizes")
    rank = one.up.shape[1] * two.up.shape[1]
    smaller = min(one.up.shape[0], one.down.shape[1])
    if rank > min(LARGEST_KHATRI_RAO, smaller):
        found = decompose(flat(hada_factor(module, 1)) * flat(hada_factor(module, 2)))
    else:
        found = spectrum(*hadamard_factors(one, two))
    return ModuleSpectrum(
        algorithm="loha",
        spectrum=found,
        scale=loha_scale(module),
        rank=one.up.shape[1],
        limit=min(rank, smaller),
        kernel=kernel,
    )


def _hada_side(module: Module, which: int) -> tuple[Factors, tuple[int, ...]]:
    """One side of the Hadamard product as factors (o, r) and (r, i·k·k), and the kernel."""
    left, right = module.need(f"hada_w{which}_a", 2), module.need(f"hada_w{which}_b", 2)
    core_name = f"hada_t{which}"
    if not module.has(core_name):
        if left.shape[1] != right.shape[0]:
            raise module.error(f"hada_w{which}_a {left.shape} and hada_w{which}_b {right.shape} do not fit")
        return Factors(left, right), kernel_of(module.name, right.shape[1])
    core = module.need(core_name, 4)
    if core.shape[:2] != (left.shape[0], right.shape[0]):
        raise module.error(f"{core_name} {core.shape} does not fit {left.shape} and {right.shape}")
    down = np.einsum("abkl,bi->aikl", core, right, optimize=True)
    return Factors(left.T, flat(down)), core.shape[2:]


def _of_lokr(module: Module, vectors: int | None, _decompose: Decompose) -> ModuleSpectrum:
    first, second = lokr_factors(module)
    matrix = flat(second)
    limit = min(first.shape) * min(matrix.shape)
    found = kron_spectrum(first, matrix, limit if vectors is None else vectors)
    stored = [s for s in ("lokr_w2_b", "lokr_w1_b") if module.has(s)]
    kernel = second.shape[2:] or kernel_of(module.name, first.shape[1] * matrix.shape[1])
    return ModuleSpectrum(
        algorithm="lokr",
        spectrum=found,
        scale=lokr_scale(module),
        rank=module.tensors[stored[0]].shape[0] if stored else limit,
        limit=limit,
        kernel=kernel,
    )


def _of_diff(module: Module, _vectors: int | None, decompose: Decompose) -> ModuleSpectrum:
    diff = module.need("diff", 2, 4)
    matrix = flat(diff)
    smaller = min(matrix.shape)
    return ModuleSpectrum(
        algorithm="full",
        spectrum=decompose(matrix),
        scale=1.0,
        rank=smaller,
        limit=smaller,
        kernel=diff.shape[2:],
    )


_SOURCES: Mapping[Rule, Callable[[Module, int | None, Decompose], ModuleSpectrum]] = {
    LORA: _of_lora,
    LOHA: _of_loha,
    LOKR: _of_lokr,
    FULL: _of_diff,
}
