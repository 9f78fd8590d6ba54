"""How the network is updated: optimizer, rates, curve."""

from __future__ import annotations

from dataclasses import dataclass

from lorapipe_engine.command.options import option
from lorapipe_engine.command.text import pairs_apart


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the network is updated."""

    optimizer_type: str = option(
        "AdamW",
        "What turns gradients into steps: AdamW, AdamW8bit, Lion, AdaFactor, DAdaptAdam, Prodigy, ..., or "
        "module.Class.",
        heading="Optimizer",
    )
    optimizer_args: tuple[str, ...] = option(
        (), "Arguments of the optimizer, as weight_decay=0.01 betas=0.9,0.99."
    )
    learning_rate: float | None = option(
        None,
        "How far each step goes, for every part without a rate of its own: too high burns, too low learns "
        "nothing. [default: the optimizer's]",
        min=0,
        heading="Learning rates",
    )
    unet_lr: float | None = option(None, "Learning rate of the UNet. [default: learning_rate]", min=0)
    text_encoder_lr: tuple[float, ...] = option(
        (),
        "Learning rate of the text encoders, or one for each. [default: learning_rate; without that half of "
        "unet_lr (equal "
        "to it for Prodigy and DAdapt*), for SDXL 0]",
        min=0,
    )
    stop_text_encoder_training: str | None = option(
        None,
        "Leave the text encoders as they are from here on: steps, or a share of the run as 0.5 or 50%; -1 from the "
        "first step.",
    )
    lr_scheduler: str | None = option(
        None,
        "Curve of the rate: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, "
        "inverse_sqrt, cosine_with_min_lr, warmup_stable_decay, piecewise_constant, rex, cosine_warm_restarts, "
        "adafactor. [default: cosine; constant for Prodigy and DAdapt*]",
        heading="Schedule of the rates",
    )
    lr_scheduler_type: str | None = option(
        None,
        "Class of a scheduler in the place of lr_scheduler: one of torch.optim.lr_scheduler, or module.Class.",
    )
    lr_scheduler_args: tuple[str, ...] = option((), "The scheduler's arguments, as T_0=400 decay=0.9.")
    lr_warmup_steps: str | None = option(
        None,
        "Let the rate rise from 0 over so many steps, or this share of the run as 0.05 or 5%. [default: 5%; none "
        "for constant]",
    )
    lr_decay_steps: str = option(
        "0", "How long warmup_stable_decay falls at the end: steps, or a share of the run."
    )
    lr_scheduler_num_cycles: float = option(
        1.0, "Cycles of cosine_with_restarts (n cycles are n-1 restarts) and cosine_warm_restarts.", min=0
    )
    lr_scheduler_power: float = option(
        1.0, "Power of polynomial; under 1 keeps the rate high for longer.", min=0
    )
    lr_scheduler_timescale: int | None = option(
        None, "Time scale of inverse_sqrt in steps. [default: the warm-up]", min=1
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None, "Floor of cosine_with_min_lr and warmup_stable_decay, as a share of the rate.", min=0, max=1
    )
    ema_decay: float | None = option(
        None,
        "Keep a moving average of the network too, which keeps this share of itself at every step; 0.99 to 0.999.",
        min=0,
        max=0.999999,
        heading="Averages, gradients and batches",
    )
    ema_width: float | None = option(
        None,
        "Keep the average of a power function instead: its width over the run, as 0.1 (Karras et al. 2024).",
        min=0.001,
        max=0.288,
    )
    max_grad_norm: float = option(
        1.0,
        "Shorten a gradient that is longer than this, so that one odd step moves little; 0 leaves it.",
        min=0,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Batches whose gradients are summed for one step, as a larger batch with less memory.",
        min=1,
        taken_as={"0": 1},
    )

    def __post_init__(self) -> None:
        for name in ("optimizer_args", "lr_scheduler_args"):
            object.__setattr__(self, name, pairs_apart(getattr(self, name)))
