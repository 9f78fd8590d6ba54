"""Learning rates by part of the model: defaults by optimizer, refusals and notes in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
from lorapipe_engine.settings import OptimizerSettings
from lorapipe_engine.train.optimizers.arguments import sets_own_rate
from lorapipe_engine.train.optimizers.kinds import OptimizerKind
from lorapipe_engine.train.optimizers.registry import optimizer_kind


@dataclass(frozen=True)
class Rates:
    """Learning rates by part ("te1", "unet"); a part with rate 0 or without one is not trained."""

    by_part: Mapping[str, float]

    @property
    def trained(self) -> tuple[str, ...]:
        """The parts that are trained, in order."""
        return tuple(part for part, rate in self.by_part.items() if rate > 0)


def rates_of(optimizer: OptimizerSettings, parts: tuple[str, ...]) -> Rates:
    """The learning rate of each part of a model that may be trained: text encoders and the denoiser.

    Without any rate given the denoiser takes the optimizer's usual one and the text encoder, which has a third of a
    UNet's weights and burns first, half of it; estimating optimizers take one rate for all. Several text encoders
    are then left alone. Several text_encoder_lr go to the encoders in order, a single one to all.

    Raises ConfigError for rates that the optimizer or the model cannot take, or if nothing would be trained.
    """
    kind = optimizer_kind(optimizer.optimizer_type)
    encoders = tuple(part for part in parts if is_text(part))
    given = optimizer.text_encoder_lr
    if len(set(given)) == 1:  # a GUI writes a rate twice, whatever the model
        given = given[:1]
    if encoders and len(given) > max(1, len(encoders)):
        number = "1 text encoder" if len(encoders) == 1 else f"{len(encoders)} text encoders"
        raise ConfigError(f"text_encoder_lr: {len(given)} rates, but this model has {number}")
    common = optimizer.learning_rate
    unet = _first(optimizer.unet_lr, common, kind.rate)
    untold = unet * kind.text_share if len(encoders) < 2 else 0.0
    text = given or (_first(common, untold),)
    by_part = {part: text[min(index, len(text) - 1)] for index, part in enumerate(encoders)}
    rates = Rates({part: by_part.get(part, unet) for part in parts})
    if not rates.trained:
        raise ConfigError("learning_rate: every part has rate 0, so nothing would be trained")
    _check_one_rate(kind, {part: rates.by_part[part] for part in rates.trained})
    return rates


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _check_one_rate(kind: OptimizerKind, rates: Mapping[str, float]) -> None:
    if kind.one_rate and len(set(rates.values())) > 1:
        shown = ", ".join(f"{part} {rate:g}" for part, rate in rates.items())
        raise ConfigError(
            f"unet_lr and text_encoder_lr: {kind.name} estimates one step size for all, so their rates must be equal "
            f"({shown}), or 0 for a part that stays as it is; two rates: AdamW8bit, or ProdigyPlusScheduleFree"
        )


def check_group_rates(optimizer: OptimizerSettings, several: bool) -> None:
    """Raise ConfigError where ``network_args`` ask for ``several`` rates in a part and the optimizer takes one."""
    kind = optimizer_kind(optimizer.optimizer_type)
    if several and kind.one_rate:
        raise ConfigError(
            f"network_args: {kind.name} estimates one step size for all, so LoRA+ and *_lr_weight cannot be had with "
            "it; take AdamW8bit, or ProdigyPlusScheduleFree"
        )


def rate_notes(optimizer: OptimizerSettings, arguments: Mapping[str, Any], rates: Rates) -> list[str]:
    """What the user should know of the rates before the run: one line each, most often none."""
    kind = optimizer_kind(optimizer.optimizer_type)
    given = any(value is not None for value in (optimizer.learning_rate, optimizer.unet_lr)) or bool(
        optimizer.text_encoder_lr
    )
    notes = [f"optimizer_type {kind.name}: {kind.note}"] if kind.note else []
    if sets_own_rate(kind, arguments):
        if given:
            notes.append(
                "learning_rate is not used: AdaFactor sets its own rate by step; to set one, add "
                "--optimizer_args relative_step=False scale_parameter=False warmup_init=False"
            )
        return notes
    odd = {part: rate for part, rate in rates.by_part.items() if rate > 0 and not _usual(kind, rate)}
    if odd and kind.usual is not None:
        part, rate = max(odd.items(), key=lambda row: row[1])
        low, high = kind.usual
        direction = "high" if rate > high else "low"
        notes.append(
            f"the rate {rate:g} of {part} looks too {direction} for {kind.name}: usual are {low:g} to {high:g}, "
            f"to begin with {kind.rate:g}{_meant(kind, rate)}"
        )
    return notes


def _usual(kind: OptimizerKind, rate: float) -> bool:
    return kind.usual is None or kind.usual[0] <= rate <= kind.usual[1]


def _meant(kind: OptimizerKind, rate: float) -> str:
    if kind.usual and rate > kind.usual[1] and 0.1 <= rate <= 5:
        return "; rates about 1 are for Prodigy and DAdaptAdam"
    return ""


def alpha_note(kind: OptimizerKind, alpha: float, rank: int) -> str | None:
    """A note where a low alpha makes an estimating optimizer overshoot, else None."""
    if kind.one_rate and alpha * 4 < rank:
        lower = (
            "d_coef"
            if kind.name.startswith("Prodigy")
            else "learning_rate, which its estimate is multiplied with"
        )
        return (
            f"network_alpha {alpha:g} is less than a quarter of network_dim {rank}: {kind.name} may pick too large a "
            f"rate; raise alpha, or lower {lower}"
        )
    return None
