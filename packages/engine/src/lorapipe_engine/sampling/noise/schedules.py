"""Schedules of noise levels (sigmas) over Stable Diffusion's 1000 timesteps, as AUTOMATIC1111 1.10 computes them.

A schedule is an array of n + 1 sigmas, falling, whose last is 0 for all but "KL Optimal". ``ddim_times`` and
``unipc_times`` are the lists of timesteps that DDIM, PLMS and UniPC have in their place.

Sources: karras, exponential and polyexponential: Karras et al. 2022, equation 5, and k-diffusion; align your steps:
NVIDIA's published tables; KL optimal: arXiv 2404.04956; beta: arXiv 2407.12173.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import ConfigError

Array = NDArray[np.float64]
AUTOMATIC = "Automatic"
TIMES = 1000
RHO = 7.0
BETA_SHAPE = 0.6
LCM_GRID = 50  # timesteps that the model was distilled on
TINY_ALPHA = 4.8973451890853435e-08  # A1111's and ComfyUI's last cumulative alpha for zero terminal SNR


@dataclass(frozen=True)
class NoiseTable:
    """The noise levels of a base model's timesteps: ``sigmas`` (1000,), rising, sqrt((1 - a) / a) of the cumulative
    alphas a.
    """

    sigmas: Array

    @property
    def least(self) -> float:
        """The sigma of timestep 0."""
        return float(self.sigmas[0])

    @property
    def most(self) -> float:
        """The sigma of timestep 999."""
        return float(self.sigmas[-1])

    def sigma_at(self, times: Any) -> Array:
        """Sigmas of timesteps in 0..999; between whole ones their logarithm is interpolated."""
        places = np.clip(np.asarray(times, dtype=np.float64), 0, TIMES - 1)
        return np.asarray(np.exp(np.interp(places, np.arange(TIMES), np.log(self.sigmas))))

    def time_at(self, sigmas: Any) -> Array:
        """Timesteps of sigmas, the other way round; what is beyond the table's ends gets the nearest end."""
        logs = np.log(np.maximum(np.asarray(sigmas, dtype=np.float64), 1e-10))
        return np.asarray(np.interp(logs, np.log(self.sigmas), np.arange(TIMES, dtype=np.float64)))


def noise_table(*, zero_terminal_snr: bool = False) -> NoiseTable:
    """Stable Diffusion's noise levels (betas 0.00085..0.012, linear in their square roots), in float32 as programs hold
    the alphas.

    ``zero_terminal_snr`` shifts and stretches sqrt(alpha) so that the last signal is almost none (Lin et al. 2023,
    algorithm 1), with A1111's and ComfyUI's last alpha.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TIMES) ** 2
    alphas = np.cumprod(1 - betas).astype(np.float32).astype(np.float64)
    if zero_terminal_snr:
        roots = np.sqrt(alphas)
        first, last = roots[0], roots[-1]
        alphas = ((roots - last) * (first / (first - last))) ** 2
        alphas[-1] = TINY_ALPHA
    return NoiseTable(np.sqrt((1 - alphas) / alphas))


# -------------------------------------------------------------------------------- schedules


def _with_zero(sigmas: Any) -> Array:
    return np.append(np.asarray(sigmas, dtype=np.float64), 0.0)


def _uniform(table: NoiseTable, steps: int) -> Array:
    return _with_zero(table.sigma_at(np.linspace(TIMES - 1, 0, steps)))


def _karras(table: NoiseTable, steps: int) -> Array:
    low, high = table.least ** (1 / RHO), table.most ** (1 / RHO)
    return _with_zero((high + np.linspace(0, 1, steps) * (low - high)) ** RHO)


def _exponential(table: NoiseTable, steps: int) -> Array:
    return _with_zero(np.exp(np.linspace(math.log(table.most), math.log(table.least), steps)))


def _sgm_uniform(table: NoiseTable, steps: int) -> Array:
    return _with_zero(table.sigma_at(np.linspace(TIMES - 1, 0, steps + 1)[:-1]))


def _simple(table: NoiseTable, steps: int) -> Array:
    return _with_zero([table.sigmas[-(1 + int(place * (TIMES / steps)))] for place in range(steps)])


def _ddim(table: NoiseTable, steps: int) -> Array:
    """Starts below the largest sigma; has one entry more where 1000 is no multiple of the steps, as in A1111."""
    return _with_zero(table.sigmas[1 : TIMES : max(TIMES // steps, 1)][::-1])


def _kl_optimal(table: NoiseTable, steps: int) -> Array:
    share = np.arange(steps + 1) / steps
    return np.asarray(np.tan(share * math.atan(table.least) + (1 - share) * math.atan(table.most)))


def _beta(table: NoiseTable, steps: int) -> Array:
    """A1111's: the quantile is a share of the sigma, not of the timestep as in ComfyUI."""
    shares = np.array([beta_quantile(1 - place) for place in np.linspace(0, 1, steps)])
    return _with_zero(table.least + shares * (table.most - table.least))


_STEPS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_STEPS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _aligned(sigmas: tuple[float, ...], steps: int) -> Array:
    """A table of eleven sigmas, stretched to ``steps`` by their logarithms."""
    if steps == len(sigmas):
        return _with_zero(sigmas)
    places = np.linspace(0, len(sigmas) - 1, steps)
    return _with_zero(np.exp(np.interp(places, np.arange(len(sigmas)), np.log(sigmas))))


@dataclass(frozen=True)
class Schedule:
    """A row of the table: ``name`` is A1111's label, ``names`` its other spellings, folded."""

    name: str
    names: tuple[str, ...]
    sigmas: Callable[[NoiseTable, int], Array]


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        row.name: row
        for row in (
            Schedule("Uniform", (), _uniform),
            Schedule("Karras", (), _karras),
            Schedule("Exponential", (), _exponential),
            Schedule("Polyexponential", (), _exponential),  # with A1111's rho of 1 it is the same
            Schedule("SGM Uniform", ("sgm_uniform", "sgmuniform"), _sgm_uniform),
            Schedule("KL Optimal", ("kl_optimal",), _kl_optimal),
            Schedule(
                "Align Your Steps",
                ("align_your_steps", "align_your_steps_sd"),
                lambda _, steps: _aligned(_STEPS_SD, steps),
            ),
            Schedule(
                "Align Your Steps SDXL",
                ("align_your_steps_sdxl",),
                lambda _, steps: _aligned(_STEPS_SDXL, steps),
            ),
            Schedule("Simple", (), _simple),
            Schedule("Normal", (), _uniform),
            Schedule("DDIM", ("ddim_uniform",), _ddim),
            Schedule("Beta", (), _beta),
        )
    }
)


def find_schedule(name: str, where: str = "schedule") -> str:
    """The label of a schedule by its name in any case, "Automatic" among them. Raises ConfigError, with the nearest."""
    folded = " ".join(name.lower().split())
    known = {AUTOMATIC.lower(): AUTOMATIC}
    for row in SCHEDULES.values():
        known |= dict.fromkeys((row.name.lower(), *row.names), row.name)
    if folded in known:
        return known[folded]
    close = get_close_matches(folded, known, 1, cutoff=0.5)
    hint = (
        f", did you mean '{known[close[0]]}'?"
        if close
        else f"; there are {', '.join([AUTOMATIC, *SCHEDULES])}"
    )
    raise ConfigError(f"{where}: '{name}' is no schedule{hint}")


def make_sigmas(name: str, steps: int, table: NoiseTable, *, discards: bool = False) -> Array:
    """The sigmas of ``steps`` steps (1..1000) by a schedule's label or another of its names.

    ``discards``: take one step more and leave out the last sigma before the end, as DPM2 does in A1111. Raises
    ConfigError for an unknown name, and for "Automatic", which :func:`~.samplers.true_schedule` resolves.
    """
    label = find_schedule(name)
    if label == AUTOMATIC:
        raise ConfigError(f"schedule: {AUTOMATIC} depends on the sampler")
    if not 1 <= steps <= TIMES:
        raise ConfigError(f"steps: {steps} is not from 1 to {TIMES}")
    sigmas = SCHEDULES[label].sigmas(table, steps + 1 if discards else steps)
    return np.delete(sigmas, -2) if discards else sigmas


# -------------------------------------------------------------------------------- lists of timesteps


def ddim_times(steps: int) -> NDArray[np.int64]:
    """The timesteps of DDIM, PLMS and UniPC's count, rising: 1 + k (1000 // n), at most 999.

    Their number is not always ``steps`` (30 asked are 31), and DDIM evaluates the model at all but the first.
    """
    if not 1 <= steps <= TIMES:
        raise ConfigError(f"steps: {steps} is not from 1 to {TIMES}")
    return np.minimum(np.arange(0, TIMES, TIMES // steps) + 1, TIMES - 1)


def unipc_times(steps: int) -> Array:
    """The timesteps at which UniPC evaluates the model, falling from 999 by even parts; 0 ends them and is left out."""
    return np.linspace(TIMES - 1, 0, len(ddim_times(steps)) + 1)[:-1]


def lcm_sigmas(steps: int, table: NoiseTable) -> Array:
    """LCM's sigmas: even steps over the grid of 50 timesteps 19, 39 .. 999 that the model knows, and 0."""
    stride = TIMES // LCM_GRID
    grid = np.log(table.sigmas[stride - 1 :: stride])
    places = np.linspace(LCM_GRID - 1, 0, steps)
    return _with_zero(np.exp(np.interp(places, np.arange(LCM_GRID), grid)))


def lcm_times(sigmas: Array, table: NoiseTable) -> NDArray[np.int64]:
    """The timestep of LCM's grid that is nearest in log sigma to each sigma above 0."""
    stride = TIMES // LCM_GRID
    grid = np.log(table.sigmas[stride - 1 :: stride])
    near = np.abs(np.log(sigmas[sigmas > 0])[:, None] - grid[None]).argmin(axis=1)
    return np.asarray(near * stride + stride - 1, dtype=np.int64)


# -------------------------------------------------------------------------------- the beta distribution


def beta_quantile(share: float) -> float:
    """x in 0..1 below which ``share`` of the symmetric beta distribution of shape 0.6 lies, to 1e-12."""
    if share > 0.5:
        return 1 - beta_quantile(1 - share)
    low, high = 0.0, 0.5
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(middle) < share else (low, middle)
    return (low + high) / 2


def _beta_share(x: float) -> float:
    """The share below x in 0..0.5, by the hypergeometric series of the incomplete beta function."""
    if x == 0:
        return 0.0
    shape = BETA_SHAPE
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    term, total, order = 1.0, 1 / shape, 0
    while term > 1e-17:
        order += 1
        term *= (order - shape) / order * x
        total += term / (shape + order)
    return float(x**shape * total / whole)
