"""The exact spectrum of one module's change, whatever linear algorithm wrote it.

LoRA, LoCon and DyLoRA by their factors, a Tucker core folded in; LoHa as Khatri-Rao factors of rank r², or
dense where that is larger; LoKr from the spectra of its two factors; ``diff`` by a thin SVD. What depends on
the base weight (oft, boft, ia3, glora) has no spectrum of its own, norms are vectors. For DoRA it is the
spectrum of the inner change, before the magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule
from lorapipe_engine.delta.registry import find_rule
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum, kernel_of
from lorapipe_engine.networks.factors import dense_spectrum

__all__ = ["ModuleSpectrum", "kernel_of", "module_spectrum", "spectral_rule"]


def spectral_rule(name: str, tensors: Mapping[str, Array] | Mapping[str, tuple[int, ...]]) -> Rule | None:
    """The module's rule if its change has a spectrum of its own, else None.

    ``tensors`` maps suffixes to arrays or only to shapes. Raises InputError where no algorithm fits.
    """
    rule = find_rule(name, tensors.keys())
    if rule.spectrum is None:
        return None
    if rule.name == "full":  # of which a bias alone, or the change of a norm, is no matrix
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
    if rule is None or rule.spectrum is None:
        raise module.error(
            "its change depends on the base weight or is no matrix, so it has no low-rank form"
        )
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return rule.spectrum(module, vectors, decompose)
    except (FloatingPointError, np.linalg.LinAlgError) as error:
        raise module.error(f"its change cannot be computed: {error}") from error
