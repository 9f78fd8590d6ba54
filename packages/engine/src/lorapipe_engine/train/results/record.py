"""The metadata of a trained network: how it was made, under the field's own keys (``ss_*``, ``modelspec.*``).

Every value is text, as the format asks, in Python's spelling ("None", "True"), which is what programs parse.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch

from lorapipe_engine.datasets.record import dataset_record
from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.models.families import is_text
from lorapipe_engine.networks.metadata import (
    TIMES,
    ModelSpec,
    base_version,
    thumbnail_url,
    training_metadata,
    with_hashes,
)
from lorapipe_engine.settings import (
    LossSettings,
    ModelSettings,
    NetworkSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
)
from lorapipe_engine.train.data.examples import Dataset
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.modules import plain_words
from lorapipe_engine.train.optimizers import arguments_text
from lorapipe_engine.train.plan import Length, RunPlan
from lorapipe_engine.train.schedules.updates import UpdatePlan


class RunRecord:
    """What is the same in all files of a run, gathered once; :meth:`metadata` adds what a file has of its own."""

    def __init__(
        self,
        settings: TrainSettings,
        dataset: Dataset,
        family: Family,
        plan: RunPlan,
        *,
        prediction: str,
        began: float,
    ) -> None:
        self.settings = settings
        self.default_precision = "bf16" if family.dtype == torch.bfloat16 else "fp16"
        self._common = {
            **_run(settings.run, plan.length, began),
            **_optimizer(settings.optimizer, plan.updates),
            **_network(settings.network),
            **_model(settings.model, family, prediction),
            **_objective(settings.loss),
            **_times(settings.loss),
            "gradient_checkpointing": settings.model.gradient_checkpointing,
            **dataset_record(settings.data, dataset),
        }
        self._family = family
        self._prediction = prediction

    def metadata(
        self, tensors: Mapping[str, Encoded], *, step: int, epoch: int, is_average: bool = False
    ) -> dict[str, str]:
        """The whole ``__metadata__`` of a file saved after ``step`` optimizer steps and ``epoch`` finished epochs;
        ``is_average``: of the average of the network up to there."""
        now: dict[str, Any] = {"steps": step, "epoch": epoch, "training_finished_at": time.time()}
        if is_average:
            chosen = self.settings.optimizer
            now |= {"ema_decay": chosen.ema_decay, "ema_width": chosen.ema_width}
        metadata = training_metadata(self._common | now, minimum=self.settings.run.no_metadata)
        return with_hashes(
            metadata | _model_spec(self.settings, self._family, self._prediction).metadata(), tensors
        )


def _run(run: RunSettings, length: Length, began: float) -> dict[str, Any]:
    return {
        "validate_every_n_epochs": run.validate_every_n_epochs,
        "validate_every_n_steps": run.validate_every_n_steps,
        "max_validation_steps": run.max_validation_steps,
        # Drawn apart from the run's seed: two runs with one seed are still two sessions.
        "session_id": random.SystemRandom().getrandbits(32),
        "training_started_at": began,
        "output_name": run.output_name,
        "num_epochs": length.epochs,
        "max_train_steps": length.steps,
        "num_batches_per_epoch": length.batches,
        "seed": run.seed,
        "training_comment": run.training_comment,
    }


def _optimizer(chosen: OptimizerSettings, plan: UpdatePlan) -> dict[str, Any]:
    kind = plan.kind.load()
    rates, schedule = plan.rates.by_part, plan.schedule
    arguments = arguments_text(plan.arguments)
    return {
        "learning_rate": _denoiser_rate(rates) if chosen.learning_rate is None else chosen.learning_rate,
        "unet_lr": _denoiser_rate(rates),
        "text_encoder_lr": _text_rates(rates),
        "optimizer": f"{kind.__module__}.{kind.__name__}({arguments})",
        "lr_scheduler": schedule.name,
        "lr_warmup_steps": schedule.warmup,
        "max_grad_norm": chosen.max_grad_norm,
        "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
    }


def _denoiser_rate(rates: Mapping[str, float]) -> float | None:
    return next((rate for part, rate in rates.items() if not is_text(part)), None)


def _text_rates(rates: Mapping[str, float]) -> float | list[float] | None:
    """One rate, or several where the encoders' differ; None where none is trained."""
    of_text = [rate for part, rate in rates.items() if is_text(part)]
    if len(set(of_text)) > 1:
        return of_text
    return of_text[0] if of_text else None


def _network(network: NetworkSettings) -> dict[str, Any]:
    network = plain_words(network)
    pairs = dict(pair.split("=", 1) for pair in network.network_args)
    return {
        "network_module": network.network_module,
        "network_dim": network.network_dim,
        "network_alpha": network.network_alpha,
        "network_dropout": network.network_dropout or None,
        "network_args": pairs,
        "scale_weight_norms": network.scale_weight_norms,
    }


def _model(model: ModelSettings, family: Family, prediction: str) -> dict[str, Any]:
    base = family.base
    old, new = base.hashes or (None, None)
    vae_old, vae_new = base.vae_hashes or (None, None)
    facts = {
        "base_model_version": base_version(family.name, prediction),
        "v2": family.name == "sd2",
        "clip_skip": model.clip_skip,
        "max_token_length": model.max_token_length,
        "sd_model_name": base.path.name,
        "sd_model_hash": old,
        "new_sd_model_hash": new,
        "mixed_precision": model.mixed_precision,
        "full_fp16": model.full_fp16,
        "fp8_base": model.fp8_base,
        "fp8_base_unet": model.fp8_base_unet,
        "lowram": False,
        "cache_latents": True,
    }
    if base.vae_path:
        facts |= {"vae_name": base.vae_path.name, "vae_hash": vae_old, "new_vae_hash": vae_new}
    return facts | {
        "vae_scale_factor": model.vae_custom_scale,
        "vae_shift_factor": model.vae_custom_shift,
        "vae_reflection_padding": model.vae_reflection_padding or None,
    }


def _objective(loss: LossSettings) -> dict[str, Any]:
    return {
        "noise_offset": loss.noise_offset,
        "noise_offset_random_strength": loss.noise_offset_random_strength,
        "adaptive_noise_scale": loss.adaptive_noise_scale,
        "multires_noise_iterations": loss.multires_noise_iterations or None,
        "multires_noise_discount": loss.multires_noise_discount,
        "ip_noise_gamma": loss.ip_noise_gamma,
        "ip_noise_gamma_random_strength": loss.ip_noise_gamma_random_strength,
        "zero_terminal_snr": loss.zero_terminal_snr,
        "min_snr_gamma": loss.min_snr_gamma,
        "debiased_estimation": loss.debiased_estimation_loss,
        "loss_type": loss.loss_type,
        "huber_schedule": loss.huber_schedule,
        "huber_c": loss.huber_c,
        "huber_scale": loss.huber_scale,
        "prior_loss_weight": loss.prior_loss_weight,
        "preserve": list(loss.preserve) or None,
    }


def _times(loss: LossSettings) -> dict[str, Any]:
    """How times are drawn, where that is not the usual way of the field."""
    usual = LossSettings()
    return {
        name: list(value) if isinstance(value := getattr(loss, name), tuple) else value
        for name in TIMES
        if getattr(loss, name) != getattr(usual, name)
    }


def _model_spec(settings: TrainSettings, family: Family, prediction: str) -> ModelSpec:
    run, loss = settings.run, settings.loss
    timesteps = (loss.min_timestep, loss.max_timestep)
    return ModelSpec(
        family=family.name,
        adapter=True,
        title=run.metadata_title or run.output_name,
        date=datetime.now().astimezone(),
        prediction=prediction,
        resolution=settings.data.resolution,
        timesteps=timesteps if timesteps != (0, 1000) else None,
        encoder_layer=settings.model.clip_skip,
        author=run.metadata_author,
        description=run.metadata_description,
        license=run.metadata_license,
        tags=run.metadata_tags,
        trigger_phrase=run.metadata_trigger_phrase,
        usage_hint=run.metadata_usage_hint,
        thumbnail=thumbnail_url(run.metadata_thumbnail) if run.metadata_thumbnail else None,
        merged_from=run.metadata_merged_from,
        preprocessor=run.metadata_preprocessor,
        is_negative_embedding=run.metadata_is_negative_embedding,
    )
