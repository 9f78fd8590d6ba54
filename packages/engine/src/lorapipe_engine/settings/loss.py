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
    flow_model: bool = option(
        False, "The base predicts rectified flow, as its file seldom tells. [default: what the file tells]"
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
    ip_noise_gamma: float | None = option(None, "Input perturbation.", min=0)
    ip_noise_gamma_random_strength: bool = option(False, "Draw its strength anew each step.")
    loss_type: str = option("l2", "Loss.", choices=("l2", "l1", "huber", "smooth_l1"))
    huber_schedule: str = option(
        "snr", "Huber threshold's curve.", choices=("snr", "exponential", "constant")
    )
    huber_c: float = option(0.1, "Huber threshold.", min=0)
    huber_scale: float = option(1.0, "Factor of the Huber threshold.", min=0)
    prior_loss_weight: float = option(1.0, "Weight of the loss of regularisation pictures.", min=0)
    preserve: tuple[str, ...] = option(
        (),
        "Hold the network to the base for other captions: trigger=WORD class=TEXT (the step's own, less the trigger), "
        "caption=TEXT (or nothing: the empty one) or file=FILE, with weight=1 every=1 unet=1 te=1.",
    )
    preserve_apart: bool = option(
        False, "Compute that after the step's own loss, not with it: half the activations, a little slower."
    )
    min_timestep: int = option(0, "First timestep.", min=0, max=999)
    max_timestep: int = option(1000, "Timesteps end before this one.", min=1, max=1000)
    timestep_sampling: str | None = option(
        None,
        "How timesteps are drawn. [default: uniform; flow models: flow_timestep_distribution]",
        choices=("uniform", "sigmoid", "logit_normal", "shift", "flux_shift", "sigma"),
    )
    timestep_curve: tuple[str, ...] = option(
        (), "Draw timesteps by a curve instead: TIMESTEP:WEIGHT ..., straight between, as 0:1 400:3 1000:1."
    )
    sigmoid_scale: float | None = option(
        None, "Spread of timestep_sampling sigmoid, shift and flux_shift. [default: 1]"
    )
    logit_mean: float | None = option(None, "Mean of logit_normal; above 0 is noisier. [default: 0]")
    logit_std: float | None = option(None, "Deviation of logit_normal. [default: 1]")
    mode_scale: float | None = option(None, "Strength of weighting_scheme mode. [default: 1.29]")
    discrete_flow_shift: float | None = option(
        None, "Shift of timestep_sampling shift and sigma; above 1 is noisier. [default: 1]", min=0.001
    )
    weighting_scheme: str | None = option(
        None,
        "Weights of flow's losses; logit_normal and mode are how timestep_sampling sigma draws. [default: uniform]",
        choices=("uniform", "none", "sigma_sqrt", "cosmap", "logit_normal", "mode"),
    )
    flow_timestep_distribution: str | None = option(
        None,
        "How a flow model's times are drawn. [default: logit_normal]",
        choices=("logit_normal", "uniform"),
    )
    flow_logit_mean: float | None = option(None, "Its mean; above 0 is noisier. [default: 0]")
    flow_logit_std: float | None = option(None, "Its deviation. [default: 1]")
    flow_uniform_static_ratio: float | None = option(
        None, "Shift of the uniform distribution; 2 to 3 are usual. [default: 1]", min=0.001
    )
    flow_uniform_shift: bool = option(
        False, "Shift of the uniform distribution by the bucket: the root of its pixels / base pixels."
    )
    flow_uniform_base_pixels: float | None = option(
        None, "Pixels that are not shifted. [default: 1048576]", min=1
    )
    flow_use_ot: bool = option(False, "Give each picture of a batch the noise that is nearest.")
    contrastive_flow_matching: bool = option(
        False, "Push the prediction away from the target of another picture of the batch."
    )
    cfm_lambda: float | None = option(None, "How strongly. [default: 0.05]", min=0)
    flow_sample_shift: float = option(3.0, "Shift of the samples of a flow model.", min=0.001)
    text_encoder_min_timestep: int = option(
        0, "First timestep that trains the text encoders.", min=0, max=999
    )
    text_encoder_max_timestep: int = option(
        1000, "Timesteps that train the text encoders end before this one.", min=1, max=1000
    )
