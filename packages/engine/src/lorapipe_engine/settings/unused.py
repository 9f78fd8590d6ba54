"""Options that do nothing without others: each is told before a run, as what it was given for will not happen."""

from __future__ import annotations

from lorapipe_engine.settings.data import DataSettings
from lorapipe_engine.settings.loss import LossSettings
from lorapipe_engine.settings.optimizer import OptimizerSettings
from lorapipe_engine.settings.run import RunSettings

_WRITTEN_AS = (".safetensors", ".ckpt", ".pt")


def unused_notes(
    data: DataSettings, optimizer: OptimizerSettings, loss: LossSettings, run: RunSettings
) -> list[str]:
    """A line for each option that would do nothing, with what it needs."""
    draws = run.sample_every_n_epochs or run.sample_every_n_steps or run.sample_at_first
    validates = data.validation_split or data.dataset_config is not None
    states = run.save_state and run.save_every_n_steps
    moves_tags = data.shuffle_caption or data.caption_tag_dropout_rate or data.token_warmup_step
    is_huber = loss.loss_type in ("huber", "smooth_l1")
    has_board = run.log_with != "tensorboard"
    averages = optimizer.ema_decay is not None or optimizer.ema_width is not None
    needs = [
        ("save_last_n_steps", run.save_last_n_steps, run.save_every_n_steps, "save_every_n_steps"),
        ("save_last_n_steps_state", run.save_last_n_steps_state, states, "save_every_n_steps and save_state"),
        ("save_last_n_epochs", run.save_last_n_epochs, run.saves_epochs, "save_every_n_epochs"),
        ("save_last_n_epochs_state", run.save_last_n_epochs_state, run.save_state, "save_state"),
        (
            "sample_prompts",
            run.sample_prompts,
            draws or run.choose or run.by_figures,
            "sample_every_n_epochs, sample_every_n_steps, choose or early_stop_by",
        ),
        ("sample_every_n_epochs", run.sample_every_n_epochs, run.sample_prompts, "sample_prompts"),
        ("sample_every_n_steps", run.sample_every_n_steps, run.sample_prompts, "sample_prompts"),
        ("sample_at_first", run.sample_at_first, run.sample_prompts, "sample_prompts"),
        ("choose_encoder", run.choose_encoder, run.choose, "choose"),
        ("choose_held_out", run.choose_held_out, run.choose_encoder, "choose_encoder"),
        ("sample_ema", run.sample_ema, averages, "ema_decay or ema_width"),
        ("validate_every_n_epochs", run.validate_every_n_epochs, validates, "validation_split"),
        ("validate_every_n_steps", run.validate_every_n_steps, validates, "validation_split"),
        ("max_validation_steps", run.max_validation_steps, validates, "validation_split"),
        (
            "dataset_repeats",
            data.dataset_repeats not in (None, 1),
            data.in_json or data.dataset_config or data.slider,
            "in_json or dataset_config",
        ),
        ("validation_seed", data.validation_seed, validates, "validation_split"),
        ("keep_tokens", data.keep_tokens, moves_tags or data.dataset_config, "shuffle_caption"),
        (
            "token_warmup_min",
            data.token_warmup_min > 1,
            data.token_warmup_step or data.dataset_config,
            "token_warmup_step",
        ),
        (
            "sample_sampler",
            run.sample_sampler,
            run.sample_prompts or run.choose or run.by_figures,
            "sample_prompts",
        ),
        ("log_tracker_name", run.log_tracker_name, has_board, "log_with wandb"),
        ("wandb_run_name", run.wandb_run_name, has_board, "log_with wandb"),
        ("wandb_api_key", run.wandb_api_key, has_board, "log_with wandb"),
        ("kind", run.kind, data.slider is None, "pictures"),
        ("early_stop_by", run.early_stop_by, run.early_stop, "early_stop"),
        ("preserve_apart", loss.preserve_apart, loss.preserve or data.dataset_config, "preserve"),
        (
            "prior_loss_weight",
            loss.prior_loss_weight != 1,
            data.reg_data_dir or data.dataset_config,
            "reg_data_dir",
        ),
        ("huber_schedule", loss.huber_schedule != "snr", is_huber, "loss_type huber"),
        ("huber_c", loss.huber_c != 0.1, is_huber, "loss_type huber"),
        ("huber_scale", loss.huber_scale != 1, is_huber, "loss_type huber"),
        (
            "multires_noise_discount",
            loss.multires_noise_discount != 0.3,
            loss.multires_noise_iterations,
            "multires_noise_iterations",
        ),
        ("adaptive_noise_scale", loss.adaptive_noise_scale, loss.noise_offset, "noise_offset"),
        (
            "noise_offset_random_strength",
            loss.noise_offset_random_strength,
            loss.noise_offset,
            "noise_offset",
        ),
        (
            "ip_noise_gamma_random_strength",
            loss.ip_noise_gamma_random_strength,
            loss.ip_noise_gamma,
            "ip_noise_gamma",
        ),
    ]
    notes = [f"{name} does nothing without {other}" for name, given, met, other in needs if given and not met]
    if run.max_train_epochs is not None and run.max_train_steps not in (0, RunSettings.max_train_steps):
        notes.append(
            f"max_train_steps {run.max_train_steps} is not used: max_train_epochs {run.max_train_epochs} says how long"
        )
    if run.output_name.lower().endswith(_WRITTEN_AS):
        notes.append(
            f"output_name {run.output_name}: the results' suffix is put behind it; leave it out of the name"
        )
    return notes
