"""The training objective."""

from __future__ import annotations

from dataclasses import dataclass

from lorapipe_engine.command.options import option


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The training objective.

    The classes in :mod:`lorapipe_engine.train.objective` work with it.
    """

    v_parameterization: bool | None = option(
        None, "The base predicts v (SD 2.x 768). [default: what the file tells, else epsilon]"
    )
    min_snr_gamma: float | None = option(
        None, "Min-SNR weighting. [default: 5 for epsilon models; 0 is off]", min=0
    )
    zero_terminal_snr: bool = option(False, "Noise schedule that ends in pure noise.")
    debiased_estimation_loss: bool = option(False, "Debiased estimation weighting.")
    scale_v_pred_loss_like_noise_pred: bool = option(False, "Weigh v losses like epsilon losses.")
    v_pred_like_loss: float | None = option(None, "Weigh epsilon losses like v losses, this strongly.", min=0)
    noise_offset: float | None = option(None, "Offset noise; 0.05 to 0.1 if at all.", min=0)
    noise_offset_random_strength: bool = option(False, "Draw the offset's strength anew each step.")
    adaptive_noise_scale: float | None = option(None, "Offset grows with the picture's mean.")
    multires_noise_iterations: int = option(0, "Levels of multi-resolution noise.", min=0)
    multires_noise_discount: float = option(0.3, "How much each level counts.", min=0, max=1)
    ip_noise_gamma: float | None = option(
        None,
        "Add so much more noise to what the model sees than to what it should answer; 0.05 to 0.1 if at all.",
        min=0,
    )
    ip_noise_gamma_random_strength: bool = option(
        False, "Draw the strength of ip_noise_gamma anew each step."
    )
    loss_type: str = option(
        "l2",
        "How errors count: l2 by their square, l1 plainly, huber and smooth_l1 large ones less, so that odd pictures "
        "weigh less.",
        choices=("l2", "l1", "huber", "smooth_l1"),
    )
    huber_schedule: str = option(
        "snr",
        "How the size from which errors are large changes over the timesteps, for huber and smooth_l1.",
        choices=("snr", "exponential", "constant"),
    )
    huber_c: float = option(0.1, "The size from which errors are large, for huber and smooth_l1.", min=0)
    huber_scale: float = option(1.0, "Factor of that size.", min=0)
    prior_loss_weight: float = option(1.0, "Weight of the loss of regularisation pictures.", min=0)
    min_timestep: int = option(0, "First timestep.", min=0, max=999)
    max_timestep: int = option(1000, "Timesteps end before this one.", min=1, max=1000)
