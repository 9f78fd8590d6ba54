"""How the times of a step are drawn, whatever the objective: shares of noise in 0..1, by the names that users know.

Shares and draws are (B,) float32. The formulas are those of sd-scripts (``timestep_sampling``, Flux and SD 3: Esser et
al. 2024) and of SDXL flow trainers (``flow_timestep_distribution``). Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import LossSettings

TIMESTEPS = 1000
# What an option is where it is not given.
DEFAULTS: Mapping[str, float | str] = {
    "sigmoid_scale": 1.0,
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "discrete_flow_shift": 1.0,
    "weighting_scheme": "uniform",
    "flow_timestep_distribution": "logit_normal",
    "flow_logit_mean": 0.0,
    "flow_logit_std": 1.0,
    "flow_uniform_base_pixels": 1048576.0,
    "cfm_lambda": 0.05,
}
# Samplings that an option is for; weighting_scheme has a say in sigma's.
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "sigmoid_scale": ("sigmoid", "shift", "flux_shift"),
    "logit_mean": ("logit_normal", "sigma"),
    "logit_std": ("logit_normal", "sigma"),
    "mode_scale": ("sigma",),
    "discrete_flow_shift": ("shift", "sigma"),
}
FLUX_SHIFTS = (256, 0.5), (4096, 1.15)  # tokens of 2 x 2 cells, and the logarithm of the shift


@dataclass(frozen=True)
class Draws:
    """Random numbers of ``count`` rows, from torch's global stream of ``device``."""

    count: int
    device: torch.device

    def normal(self) -> Tensor:
        """(B,) of a normal distribution."""
        return torch.randn(self.count, device=self.device)

    def uniform(self) -> Tensor:
        """(B,) even in 0..1."""
        return torch.rand(self.count, device=self.device)


def chosen(options: LossSettings, name: str) -> float:
    """The number of an option, or what it is where it is not given."""
    value = getattr(options, name)
    return float(DEFAULTS[name] if value is None else value)


def shifted(share: Tensor, shift: float) -> Tensor:
    """S(σ, k) = kσ / (1 + (k - 1)σ)."""
    return shift * share / (1 + (shift - 1) * share)


# -------------------------------------------------------------------------------- sd-scripts' samplings

Cells = tuple[int, int]  # height and width of the latents
Sampling = Callable[[Draws, LossSettings, Cells], Tensor]


def _sigmoid(draws: Draws, options: LossSettings, cells: Cells) -> Tensor:
    del cells
    return torch.sigmoid(draws.normal() * chosen(options, "sigmoid_scale"))


def _logit_normal(draws: Draws, options: LossSettings, cells: Cells) -> Tensor:
    del cells
    return torch.sigmoid(chosen(options, "logit_mean") + chosen(options, "logit_std") * draws.normal())


def _shift(draws: Draws, options: LossSettings, cells: Cells) -> Tensor:
    return shifted(_sigmoid(draws, options, cells), chosen(options, "discrete_flow_shift"))


def _flux_shift(draws: Draws, options: LossSettings, cells: Cells) -> Tensor:
    return shifted(_sigmoid(draws, options, cells), math.exp(flux_mu(cells)))


def flux_mu(cells: Cells) -> float:
    """The logarithm of the shift for latents of a size, in a line through two sizes."""
    (few, low), (many, high) = FLUX_SHIFTS
    tokens = (cells[0] // 2) * (cells[1] // 2)
    return low + (high - low) / (many - few) * (tokens - few)


def _sigma(draws: Draws, options: LossSettings, cells: Cells) -> Tensor:
    """One of a thousand, drawn as ``weighting_scheme`` says."""
    if options.weighting_scheme == "logit_normal":
        share = _logit_normal(draws, options, cells)
    elif options.weighting_scheme == "mode":
        even = draws.uniform()
        bend = torch.cos(math.pi * even / 2) ** 2 - 1 + even
        share = 1 - even - chosen(options, "mode_scale") * bend
    else:
        share = draws.uniform()
    whole = (TIMESTEPS - (share * TIMESTEPS).long()).float() / TIMESTEPS
    return shifted(whole, chosen(options, "discrete_flow_shift"))


SAMPLINGS: Mapping[str, Sampling] = {
    "uniform": lambda draws, options, cells: draws.uniform(),  # noqa: ARG005
    "sigmoid": _sigmoid,
    "logit_normal": _logit_normal,
    "shift": _shift,
    "flux_shift": _flux_shift,
    "sigma": _sigma,
}


def in_range(share: Tensor, options: LossSettings) -> Tensor:
    """Shares of min_timestep..max_timestep as shares of all timesteps; max_timestep itself if the range is empty."""
    low, high = options.min_timestep, options.max_timestep
    if low >= high:
        return torch.full_like(share, high / TIMESTEPS)
    if (low, high) == (0, TIMESTEPS):
        return share
    return (low + share * (high - low)) / TIMESTEPS


# -------------------------------------------------------------------------------- a curve of one's own


def read_curve(words: Sequence[str]) -> list[tuple[int, float]]:
    """The points of ``timestep_curve``, rising. Raises ConfigError."""
    points = []
    for word in words:
        time, _, weight = word.partition(":")
        try:
            point = int(time), float(weight)
        except ValueError:
            raise ConfigError(f"timestep_curve: '{word}' is no TIMESTEP:WEIGHT, such as 400:2.5") from None
        if not 0 <= point[0] <= TIMESTEPS or not 0 <= point[1] < math.inf:
            raise ConfigError(
                f"timestep_curve: '{word}' needs a timestep of 0 to 1000 and a weight of 0 or more"
            )
        points.append(point)
    if any(one[0] >= other[0] for one, other in pairwise(points)):
        raise ConfigError("timestep_curve: its timesteps must rise")
    return points


class TimeCurve:
    """Draws shares by a curve: the chance of a timestep is its weight, straight between the points and level beyond
    them. Nothing outside of min_timestep..max_timestep is drawn. Raises ConfigError for a curve that is 0 there.
    """

    def __init__(self, options: LossSettings, device: torch.device) -> None:
        points = read_curve(options.timestep_curve)
        weights = torch.tensor(
            [
                _weight_at(points, time) if options.min_timestep <= time < options.max_timestep else 0.0
                for time in range(TIMESTEPS)
            ],
            dtype=torch.float64,
        )
        if not weights.sum() > 0:
            raise ConfigError("timestep_curve: has no weight between min_timestep and max_timestep")
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), weights.cumsum(0)])
        self._sums = (sums / sums[-1]).float().to(device)  # (1001,), rising from 0 to 1

    def draw(self, draws: Draws) -> Tensor:
        """Shares (B,) in 0..1."""
        even = draws.uniform()
        # The last of equal sums: what has no weight is skipped.
        place = torch.searchsorted(self._sums, even, right=True).clamp(1, TIMESTEPS) - 1
        low, high = self._sums[place], self._sums[place + 1]
        inside = ((even - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (place + inside) / TIMESTEPS


def _weight_at(points: Sequence[tuple[int, float]], time: int) -> float:
    if time <= points[0][0]:
        return points[0][1]
    for (start, low), (end, high) in pairwise(points):
        if time <= end:
            return low + (high - low) * (time - start) / (end - start)
    return points[-1][1]


# -------------------------------------------------------------------------------- options


def check_times(options: LossSettings, samplings: Sequence[str]) -> list[str]:
    """What the user should know of the options of times, for an objective that has ``samplings``.

    Raises ConfigError for those that it has no use for, or that contradict each other.
    """
    kind = options.timestep_sampling
    if kind is not None and kind not in samplings:
        raise ConfigError(
            f"timestep_sampling: {kind} is for flow models; this base takes {', '.join(samplings)}"
        )
    if options.timestep_curve:
        if kind is not None:
            raise ConfigError("timestep_curve: draws timesteps in its own way; leave timestep_sampling out")
        read_curve(options.timestep_curve)
    low, high = options.text_encoder_min_timestep, options.text_encoder_max_timestep
    if max(low, options.min_timestep) >= min(high, options.max_timestep) and options.min_timestep < (
        options.max_timestep
    ):
        raise ConfigError(
            f"text_encoder_min_timestep: from {low} to {high} no timestep is trained; "
            "give --network_train_unet_only to leave the text encoders as they are"
        )
    given = [name for name in _USED_BY if getattr(options, name) is not None]
    return [
        f"{name} does nothing without timestep_sampling {_listed(_USED_BY[name])}"
        for name in given
        if kind not in _USED_BY[name]
    ]


def range_notes(options: LossSettings) -> list[str]:
    """A line for a range of timesteps that is empty."""
    low, high = options.min_timestep, options.max_timestep
    if low < high:
        return []
    return [f"min_timestep {low} is not below max_timestep {high}: every step trains timestep {high} alone"]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
