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
        None,
        "The base predicts v (SD 2.x 768). [default: what the file tells, else epsilon]",
        heading="What the base predicts",
    )
    flow_model: bool = option(
        False, "The base predicts rectified flow, as its file seldom tells. [default: what the file tells]"
    )
    min_snr_gamma: float | None = option(
        None,
        "Let steps of little noise count less (Min-SNR): a smoother loss, better with few pictures; lower is "
        "stronger. [default: 5 for epsilon models; 0 is off]",
        min=0,
        heading="How much each timestep counts",
    )
    zero_terminal_snr: bool = option(
        False, "Let the noise schedule end in pure noise, for bases of v-prediction that were trained so."
    )
    debiased_estimation_loss: bool = option(
        False,
        "Let steps of little noise count less: by 1 / the root of the signal-to-noise ratio, for v by 1 / (ratio + 1).",
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "Let timesteps of a base that predicts v count as those of one that predicts noise do."
    )
    v_pred_like_loss: float | None = option(
        None, "Add so much of the weight that timesteps have for a base that predicts v.", min=0
    )
    noise_offset: float | None = option(
        None,
        "Shift all noise of a channel by so much, for darker and brighter pictures; 0.05 to 0.1 if at all: two "
        "networks trained so burn together.",
        min=0,
        heading="Noise",
    )
    noise_offset_random_strength: bool = option(
        False, "Draw the shift's strength anew each step, from 0 to noise_offset."
    )
    adaptive_noise_scale: float | None = option(
        None, "Let noise_offset grow by this times the mean of a picture's latents."
    )
    multires_noise_iterations: int = option(
        0,
        "Add noise of coarser grain on so many levels, which is milder than noise_offset; 6 to 10 if at all.",
        min=0,
    )
    multires_noise_discount: float = option(
        0.3, "How much each level of multires_noise_iterations counts beside the one before.", min=0, max=1
    )
    ip_noise_gamma: float | None = option(
        None,
        "Show the model pictures with so much more noise than it is asked to find, so that it learns to mend "
        "small errors of its own; 0.05 to 0.1 if at all.",
        min=0,
    )
    ip_noise_gamma_random_strength: bool = option(
        False, "Draw the strength of the added noise anew each step, from 0 to ip_noise_gamma."
    )
    loss_type: str = option(
        "l2",
        "How errors count: l2 by their square, l1 plainly, huber and smooth_l1 large ones less, so that odd pictures "
        "weigh less.",
        choices=("l2", "l1", "huber", "smooth_l1"),
        taken_as={"mse": "l2", "mae": "l1"},
        heading="How errors count",
    )
    huber_schedule: str = option(
        "snr",
        "How the error from which on errors are large changes over the timesteps, for huber and smooth_l1.",
        choices=("snr", "exponential", "constant"),
    )
    huber_c: float = option(0.1, "The error from which on errors are large, for huber and smooth_l1.", min=0)
    huber_scale: float = option(
        1.0, "Factor of the error from which on errors are large; huber_schedule snr does not use it.", min=0
    )
    prior_loss_weight: float = option(
        1.0,
        "How much regularisation pictures count beside the others.",
        min=0,
        heading="Holding what the base knows",
    )
    preserve: tuple[str, ...] = option(
        (),
        "Hold the network to the base for other captions: trigger=WORD class=TEXT (the step's own, less the trigger), "
        "caption=TEXT (or nothing: the empty one) or file=FILE, with weight=1 every=1 unet=1 te=1.",
    )
    preserve_apart: bool = option(
        False,
        "Compute what --preserve asks for after the step's own loss, not with it: half the activations, a little "
        "slower.",
    )
    min_timestep: int = option(
        0, "Leave out timesteps below this one, of little noise.", min=0, max=999, heading="Timesteps"
    )
    max_timestep: int = option(1000, "Leave out timesteps from this one on, of much noise.", min=1, max=1000)
    timestep_sampling: str | None = option(
        None,
        "By which distribution a step's noise level is drawn. [default: uniform; flow models: "
        "flow_timestep_distribution]",
        choices=("uniform", "sigmoid", "logit_normal", "shift", "flux_shift", "sigma"),
    )
    timestep_curve: tuple[str, ...] = option(
        (), "Draw timesteps by a curve instead: TIMESTEP:WEIGHT ..., straight between, as 0:1 400:3 1000:1."
    )
    sigmoid_scale: float | None = option(
        None, "Spread of timestep_sampling sigmoid, shift and flux_shift. [default: 1]"
    )
    logit_mean: float | None = option(
        None, "Mean of timestep_sampling logit_normal; above 0 draws noisier timesteps. [default: 0]"
    )
    logit_std: float | None = option(None, "Spread of timestep_sampling logit_normal. [default: 1]")
    mode_scale: float | None = option(None, "Strength of weighting_scheme mode. [default: 1.29]")
    discrete_flow_shift: float | None = option(
        None, "Shift of timestep_sampling shift and sigma; above 1 is noisier. [default: 1]", min=0.001
    )
    weighting_scheme: str | None = option(
        None,
        "Weights of flow's losses; logit_normal and mode are how timestep_sampling sigma draws. [default: uniform]",
        choices=("uniform", "none", "sigma_sqrt", "cosmap", "logit_normal", "mode"),
        heading="Flow models",
    )
    flow_timestep_distribution: str | None = option(
        None,
        "How a flow model's times are drawn. [default: logit_normal]",
        choices=("logit_normal", "uniform"),
    )
    flow_logit_mean: float | None = option(
        None, "Mean of flow_timestep_distribution logit_normal; above 0 draws noisier times. [default: 0]"
    )
    flow_logit_std: float | None = option(
        None, "Spread of flow_timestep_distribution logit_normal. [default: 1]"
    )
    flow_uniform_static_ratio: float | None = option(
        None,
        "Shift of flow_timestep_distribution uniform towards noise; 2 to 3 are usual. [default: 1]",
        min=0.001,
    )
    flow_uniform_shift: bool = option(
        False, "Shift flow_timestep_distribution uniform by the bucket: the root of its pixels / base pixels."
    )
    flow_uniform_base_pixels: float | None = option(
        None,
        "Size of a bucket that flow_uniform_shift leaves unshifted, in pixels. [default: 1048576]",
        min=1,
    )
    flow_use_ot: bool = option(False, "Give each picture of a batch the noise that is nearest.")
    contrastive_flow_matching: bool = option(
        False, "Push the prediction away from the target of another picture of the batch."
    )
    cfm_lambda: float | None = option(
        None, "How strongly contrastive_flow_matching pushes. [default: 0.05]", min=0
    )
    flow_sample_shift: float = option(
        3.0, "Shift of a flow model's steps towards noise where samples are drawn.", min=0.001
    )
    text_encoder_min_timestep: int = option(
        0, "Train the text encoders from this timestep on, not below.", min=0, max=999, heading="Timesteps"
    )
    text_encoder_max_timestep: int = option(
        1000, "Train the text encoders below this timestep alone.", min=1, max=1000
    )
