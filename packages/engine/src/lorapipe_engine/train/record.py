"""The metadata of a trained network: how it was made, under the field's own keys (``ss_*``, ``modelspec.*``).

Every value is text, as the format asks, in Python's spelling ("None", "True"), which is what programs parse.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch

from lorapipe_engine import __version__
from lorapipe_engine.captions import split_tags
from lorapipe_engine.dtypes import Encoded
from lorapipe_engine.families import get_family
from lorapipe_engine.hashes import network_hashes
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.data import Dataset
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.plan import RunPlan

MINIMUM = ("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")


class RunRecord:
    """What is the same in all files of a run, gathered once; :meth:`metadata` adds what a file has of its own."""

    def __init__(
        self, settings: TrainSettings, dataset: Dataset, family: Family, plan: RunPlan, rates: Mapping[str, float]
    ) -> None:
        self.settings = settings
        self.default_precision = "bf16" if family.dtype == torch.bfloat16 else "fp16"
        self._common = {
            **_run(settings, plan),
            **_optimizer(settings, rates),
            **_network(settings),
            **_model(settings, family),
            **_objective(settings),
            **_dataset(settings, dataset),
        }
        self._family = family

    def metadata(self, tensors: Mapping[str, Encoded], *, step: int, epoch: int) -> dict[str, str]:
        """The whole ``__metadata__`` of a file saved after ``step`` optimizer steps and ``epoch`` finished epochs."""
        found = {f"ss_{key}": str(value) for key, value in self._common.items()}
        found |= {"ss_steps": str(step), "ss_epoch": str(epoch), "ss_training_finished_at": str(time.time())}
        if self.settings.run.no_metadata:
            found = {key: value for key, value in found.items() if key in MINIMUM}
        found |= _modelspec(self.settings, self._family)
        model_hash, legacy = network_hashes(tensors, found)
        return {**found, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy}


def _run(settings: TrainSettings, plan: RunPlan) -> dict[str, Any]:
    run = settings.run
    return {
        # Drawn apart from the run's seed: two runs with one seed are still two sessions.
        "session_id": random.SystemRandom().getrandbits(32),
        "training_started_at": time.time(),
        "output_name": run.output_name,
        "num_epochs": plan.epochs,
        "max_train_steps": plan.steps,
        "num_batches_per_epoch": plan.batches,
        "seed": run.seed,
        "training_comment": run.training_comment,
    }


def _optimizer(settings: TrainSettings, rates: Mapping[str, float]) -> dict[str, Any]:
    chosen = settings.optimizer
    arguments = ",".join(chosen.optimizer_args)
    return {
        "learning_rate": chosen.learning_rate,
        "unet_lr": rates.get("unet"),
        "text_encoder_lr": rates.get("te1"),
        "optimizer": chosen.optimizer_type + (f"({arguments})" if arguments else ""),
        "lr_scheduler": chosen.lr_scheduler,
        "lr_warmup_steps": chosen.lr_warmup_steps,
        "max_grad_norm": chosen.max_grad_norm,
        "gradient_checkpointing": settings.model.gradient_checkpointing,
        "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
    }


def _network(settings: TrainSettings) -> dict[str, Any]:
    network = settings.network
    pairs = dict(pair.split("=", 1) for pair in network.network_args)
    return {
        "network_module": network.network_module,
        "network_dim": network.network_dim,
        "network_alpha": network.network_alpha,
        "network_dropout": network.network_dropout or None,
        "network_args": json.dumps(pairs),
        "scale_weight_norms": None,
    }


def _model(settings: TrainSettings, family: Family) -> dict[str, Any]:
    base = family.base
    version = get_family(family.name).base_version
    if family.name != "sdxl" and settings.loss.v_parameterization:
        version += "_v"
    old, new = base.hashes or (None, None)
    vae_old, vae_new = base.vae_hashes or (None, None)
    found = {
        "base_model_version": version,
        "v2": family.name == "sd2",
        "clip_skip": settings.model.clip_skip,
        "max_token_length": settings.model.max_token_length,
        "sd_model_name": base.path.name,
        "sd_model_hash": old,
        "new_sd_model_hash": new,
        "mixed_precision": settings.model.mixed_precision,
        "full_fp16": False,
        "fp8_base": False,
        "lowram": False,
        "cache_latents": True,
    }
    if base.vae_path:
        found |= {"vae_name": base.vae_path.name, "vae_hash": vae_old, "new_vae_hash": vae_new}
    return found


def _objective(settings: TrainSettings) -> dict[str, Any]:
    loss = settings.loss
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
        "prior_loss_weight": 1.0,
    }


def _dataset(settings: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    data = settings.data
    counts = Counter(dataset.buckets)
    buckets = {
        str(index): {"resolution": list(size), "count": count} for index, (size, count) in enumerate(sorted(counts.items()))
    }
    return {
        "num_train_images": sum(dataset.repeats),
        "num_reg_images": 0,
        "batch_size_per_device": data.train_batch_size,
        "total_batch_size": data.train_batch_size,
        "resolution": str(data.resolution),
        "enable_bucket": data.enable_bucket,
        "bucket_no_upscale": data.bucket_no_upscale,
        "min_bucket_reso": data.min_bucket_reso,
        "max_bucket_reso": data.max_bucket_reso,
        "bucket_info": json.dumps({"buckets": buckets}),
        "color_aug": False,
        "flip_aug": data.flip_aug,
        "random_crop": False,
        "shuffle_caption": data.shuffle_caption,
        "keep_tokens": data.keep_tokens,
        "caption_dropout_rate": data.caption_dropout_rate,
        "caption_dropout_every_n_epochs": 0,
        "caption_tag_dropout_rate": data.caption_tag_dropout_rate,
        "face_crop_aug_range": None,
        "dataset_dirs": json.dumps(
            {row.folder.name: {"n_repeats": row.repeats, "img_count": row.pictures} for row in dataset.concepts}
        ),
        "reg_dataset_dirs": json.dumps({}),
        "tag_frequency": json.dumps(_tag_frequency(dataset), ensure_ascii=False),
    }


def _tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for picture in dataset.pictures:
        tags = (tag.lower() for tag in split_tags(picture.caption))
        found.setdefault(picture.path.parent.name, Counter()).update(tags)
    return {folder: dict(counts) for folder, counts in found.items()}


def _modelspec(settings: TrainSettings, family: Family) -> dict[str, str]:
    run, data = settings.run, settings.data
    architecture = get_family(family.name).architecture
    if family.name == "sd2" and settings.loss.v_parameterization:
        architecture = "stable-diffusion-v2-768-v"
    found: dict[str, object | None] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers" if family.name != "sdxl" else "https://github.com/Stability-AI/generative-models",
        "implementation_version": f"lorapipe {__version__}",
        "title": run.metadata_title or run.output_name,
        "resolution": f"{data.resolution[0]}x{data.resolution[1]}",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "prediction_type": "v" if settings.loss.v_parameterization else "epsilon",
        "author": run.metadata_author,
        "description": run.metadata_description,
        "license": run.metadata_license,
        "tags": run.metadata_tags,
        "trigger_phrase": run.metadata_trigger_phrase,
        "encoder_layer": settings.model.clip_skip,
    }
    if (settings.loss.min_timestep, settings.loss.max_timestep) != (0, 1000):
        found["timestep_range"] = f"{settings.loss.min_timestep},{settings.loss.max_timestep}"
    return {f"modelspec.{key}": str(value) for key, value in found.items() if value is not None}
