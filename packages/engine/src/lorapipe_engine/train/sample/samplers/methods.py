"""The sampling methods, each a generator: it yields what the model is to see, and is sent what the model makes of it.

Methods over noise levels yield (x, sigma), where x is the picture plus noise of standard deviation sigma, and are sent
the denoised picture. Methods over timesteps (DDIM, PLMS) yield (x, t), where x has unit variance, and are sent the
predicted noise. The last x is the generator's value. ``noise(sigma, next)`` gives unit noise in the shape of x. Sigmas,
timesteps and all coefficients are Python floats, so that a method never waits for the device.

Sources: Karras et al. 2022 (Euler, Heun and the second-order steps with a midpoint in log sigma; ancestral steps as in
Song et al. 2021); Lu et al. 2022, DPM-Solver++ (2S, 2M and their stochastic forms); Liu et al. 2022 (PLMS); Song et al.
2021 (DDIM); Luo et al. 2023 (LCM). Where programs differ, AUTOMATIC1111's way is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from torch import Tensor

Steps = Generator[tuple[Tensor, float], Tensor, Tensor]
Noise = Callable[[float, float], Tensor]
Method = Callable[[Tensor, Sequence[float], Noise, float], Steps]
LMS_ORDER = 4


def ancestral_step(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """The level to denoise to, and the noise to add then, so that both together have the level ``following``."""
    if not eta or not following:
        return following, 0.0
    up = min(following, eta * math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return math.sqrt(following**2 - up**2), up


def _euler(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del noise, eta
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        x = x + (x - denoised) * ((following - sigma) / sigma)
    return x


def _euler_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        x = x + (x - denoised) * ((down - sigma) / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def _heun(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del noise, eta
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        slope = (x - denoised) / sigma
        reached = x + slope * (following - sigma)
        if following > 0:
            denoised = yield reached, following
            slope = (slope + (reached - denoised) / following) / 2
            reached = x + slope * (following - sigma)
        x = reached
    return x


def _lms(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del noise, eta
    slopes: list[Tensor] = []
    for place in range(len(sigmas) - 1):
        denoised = yield x, sigmas[place]
        slopes = [(x - denoised) / sigmas[place], *slopes][:LMS_ORDER]
        for weight, slope in zip(lms_weights(sigmas, place, len(slopes)), slopes, strict=True):
            x = x + slope * weight
    return x


def lms_weights(sigmas: Sequence[float], place: int, order: int) -> list[float]:
    """Integrals, from one sigma to the next, of the polynomials that are 1 at one of the last ``order`` sigmas and 0 at
    the others; the newest first.
    """
    nodes = [sigmas[place - back] for back in range(order)]
    weights = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        # Around the present sigma, where the numbers are small.
        basis = np.polynomial.Polynomial([1.0])
        for other in others:
            basis = basis * np.polynomial.Polynomial([sigmas[place] - other, 1.0])
        whole = basis.integ()
        scale = math.prod(node - other for other in others)
        weights.append(float(whole(sigmas[place + 1] - sigmas[place]) - whole(0.0)) / scale)
    return weights


def _dpm2_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        slope = (x - denoised) / sigma
        if down > 0:
            middle = math.sqrt(sigma * down)
            reached = x + slope * (middle - sigma)
            denoised = yield reached, middle
            slope = (reached - denoised) / middle
        x = x + slope * (down - sigma)
        if up:
            x = x + noise(sigma, following) * up
    return x


def _dpm2(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del eta
    return _dpm2_ancestral(x, sigmas, noise, 0.0)


def _dpmpp_2m(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del noise, eta
    old: Tensor | None = None
    last = 0.0  # width of the last step in log sigma
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        width = math.log(sigma / following)
        target = denoised if old is None else denoised + (denoised - old) * (width / (2 * last))
        x = x * (following / sigma) - target * math.expm1(-width)
        old, last = denoised, width
    return x


def _dpmpp_2m_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    old: Tensor | None = None
    last = 0.0
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        width = math.log(sigma / following)
        share = -math.expm1(-width * (1 + eta))
        x = x * (following / sigma * math.exp(-eta * width)) + denoised * share
        if old is not None:
            x = x + (denoised - old) * (share * width / (2 * last))
        if eta:
            level = following * math.sqrt(-math.expm1(-2 * eta * width))
            x = x + noise(sigma, following) * level
        old, last = denoised, width
    return x


def _dpmpp_sde(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        if following == 0:
            return denoised
        middle = math.sqrt(sigma * following)
        down, up = ancestral_step(sigma, middle, eta)
        reached = _towards(x, denoised, sigma, down) + noise(sigma, middle) * up
        denoised = yield reached, middle
        # The first evaluation has no part in the step, for the midpoint is half of it.
        down, up = ancestral_step(sigma, following, eta)
        x = _towards(x, denoised, sigma, down) + noise(sigma, following) * up
    return x


def _dpmpp_2s_ancestral(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    for sigma, following in pairwise(sigmas):
        denoised = yield x, sigma
        down, up = ancestral_step(sigma, following, eta)
        if down > 0:
            middle = math.sqrt(sigma * down)
            denoised = yield _towards(x, denoised, sigma, middle), middle
        x = _towards(x, denoised, sigma, down)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def _towards(x: Tensor, denoised: Tensor, sigma: float, lower: float) -> Tensor:
    """The exact way to a lower level, were the denoised picture the same all along."""
    return denoised + (x - denoised) * (lower / sigma)


def _lcm(x: Tensor, sigmas: Sequence[float], noise: Noise, eta: float) -> Steps:
    del eta
    for sigma, following in pairwise(sigmas):
        x = yield x, sigma
        if following > 0:
            x = x + noise(sigma, following) * following
    return x


# -------------------------------------------------------------------------------- over timesteps

Alphas = Sequence[float]  # cumulative, by timestep


def _towards_time(x: Tensor, predicted: Tensor, alpha: float, before: float, level: float = 0.0) -> Tensor:
    """x of cumulative alpha ``alpha`` at the less noisy ``before``; ``level`` of the noise is left out, to be drawn."""
    denoised = (x - predicted * math.sqrt(1 - alpha)) / math.sqrt(alpha)
    return denoised * math.sqrt(before) + predicted * math.sqrt(max(0.0, 1 - before - level**2))


def ddim(x: Tensor, times: Sequence[int], alphas: Alphas, noise: Noise, eta: float) -> Steps:
    """``times`` falling; the model is evaluated at all but the last, where x ends."""
    for time, following in pairwise(times):
        alpha, before = alphas[time], alphas[following]
        predicted = yield x, float(time)
        level = eta * math.sqrt((1 - before) / (1 - alpha) * (1 - alpha / before))
        x = _towards_time(x, predicted, alpha, before, level)
        if level:
            x = x + noise(float(time), float(following)) * level
    return x


def plms(x: Tensor, times: Sequence[int], alphas: Alphas, noise: Noise, eta: float) -> Steps:
    """``times`` falling. The first step is Heun's, then up to four predictions have a part."""
    del noise, eta
    old: list[Tensor] = []
    for time, following in pairwise(times):
        alpha, before = alphas[time], alphas[following]
        predicted = yield x, float(time)
        if not old:
            ahead = yield _towards_time(x, predicted, alpha, before), float(following)
            mean = (predicted + ahead) / 2
        elif len(old) == 1:
            mean = (predicted * 3 - old[0]) / 2
        elif len(old) == 2:
            mean = (predicted * 23 - old[0] * 16 + old[1] * 5) / 12
        else:
            mean = (predicted * 55 - old[0] * 59 + old[1] * 37 - old[2] * 9) / 24
        x = _towards_time(x, mean, alpha, before)
        old = [predicted, *old][:3]
    return x


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "Euler": _euler,
        "Euler a": _euler_ancestral,
        "Heun": _heun,
        "LMS": _lms,
        "DPM2": _dpm2,
        "DPM2 a": _dpm2_ancestral,
        "DPM++ 2M": _dpmpp_2m,
        "DPM++ 2M SDE": _dpmpp_2m_sde,
        "DPM++ SDE": _dpmpp_sde,
        "DPM++ 2S a": _dpmpp_2s_ancestral,
        "LCM": _lcm,
    }
)
