"""Whether the options of the objective fit together, said before anything is loaded."""

from __future__ import annotations

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import LossSettings


def check_objective(loss: LossSettings, *, v_prediction: bool | None = None) -> list[str]:
    """What the user should know of the objective. ``v_prediction`` is None as long as the base is not known.

    Raises ConfigError for options that mean nothing together.
    """
    v = loss.v_parameterization if v_prediction is None else v_prediction
    if loss.adaptive_noise_scale and loss.noise_offset is None:
        raise ConfigError("adaptive_noise_scale: changes the strength of noise_offset, so give that too")
    if loss.noise_offset_random_strength and not loss.noise_offset:
        raise ConfigError("noise_offset_random_strength: needs noise_offset, the highest strength")
    if loss.ip_noise_gamma_random_strength and not loss.ip_noise_gamma:
        raise ConfigError("ip_noise_gamma_random_strength: needs ip_noise_gamma, the highest strength")
    if loss.scale_v_pred_loss_like_noise_pred and v is False:
        raise ConfigError(
            "scale_v_pred_loss_like_noise_pred: is for v-prediction, and this base predicts epsilon; leave it out"
        )
    if loss.v_pred_like_loss and v:
        raise ConfigError("v_pred_like_loss: is for epsilon models, and this base predicts v; leave it out")
    if loss.huber_c == 0 and loss.loss_type in ("huber", "smooth_l1"):
        raise ConfigError("huber_c: must be above 0")
    return _notes(loss, v)


def _notes(loss: LossSettings, v: bool | None) -> list[str]:
    notes = []
    low, high = loss.min_timestep, loss.max_timestep
    if low >= high:
        notes.append(
            f"min_timestep {low} is not below max_timestep {high}: every step trains timestep {high} alone"
        )
    if loss.zero_terminal_snr and v is False:
        notes.append(
            "zero_terminal_snr with epsilon: nothing can be learned at the last timestep; it is made for v-prediction"
        )
    if loss.huber_scale != 1 and loss.loss_type in ("huber", "smooth_l1") and loss.huber_schedule == "snr":
        notes.append("huber_scale is not used by huber_schedule snr")
    if loss.noise_offset and loss.noise_offset > 0.2:
        notes.append(f"noise_offset {loss.noise_offset:g} is strong; usual are 0.05 to 0.1, if at all")
    return notes
