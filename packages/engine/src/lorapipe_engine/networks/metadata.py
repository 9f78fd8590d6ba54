"""Metadata of weight files: sd-scripts' ``ss_*``, Stability's ``modelspec.*``, and the ``sshs_*`` hashes.

All values are text. ``ss_`` values are in Python's spelling ("None", "True"), as programs that read them
expect; tables inside them are JSON.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorapipe_engine import __version__
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.bytesource import open_source, take
from lorapipe_engine.files.dtypes import Array, Encoded
from lorapipe_engine.files.hashes import network_hashes
from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.predictions import EPSILON, PREDICTIONS, V, find_prediction

MODELSPEC_VERSION = "1.0.1"
STABILITY = "https://github.com/Stability-AI/generative-models"

# What sd-scripts for SDXL flow writes of a VAE, and what is written of the times that are drawn: sd-scripts' names for
# other models than Stable Diffusion, and those of SDXL flow trainers' options.
VAE_FORM = ("vae_scale_factor", "vae_shift_factor", "vae_reflection_padding")
TIMES = (
    *("flow_model", "timestep_sampling", "timestep_curve", "sigmoid_scale", "logit_mean", "logit_std"),
    *("mode_scale", "discrete_flow_shift", "weighting_scheme", "flow_timestep_distribution"),
    *("flow_logit_mean", "flow_logit_std", "flow_uniform_static_ratio", "flow_uniform_shift"),
    *("flow_uniform_base_pixels", "flow_use_ot", "contrastive_flow_matching", "cfm_lambda"),
    *("text_encoder_min_timestep", "text_encoder_max_timestep"),
)
SLIDER = ("slider",)  # the pairs of prompts
# Names without "ss_", in the groups and the order in which sd-scripts writes them; behind them "ours", of options that
# it does not have.
TRAINING_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "run": (
            *("session_id", "training_started_at", "training_finished_at", "output_name", "steps", "epoch"),
            *("num_epochs", "max_train_steps", "num_batches_per_epoch", "seed", "training_comment"),
            "sd_scripts_commit_hash",
        ),
        "counts": ("num_train_images", "num_reg_images", "num_validation_images"),
        "optimiser": (
            *("learning_rate", "unet_lr", "text_encoder_lr", "optimizer", "lr_scheduler", "lr_warmup_steps"),
            *("max_grad_norm", "gradient_checkpointing", "gradient_accumulation_steps"),
        ),
        "network": (
            *("network_module", "network_dim", "network_alpha", "network_dropout", "network_args"),
            "scale_weight_norms",
        ),
        "precision": ("mixed_precision", "full_fp16", "fp8_base", "fp8_base_unet", "lowram", "cache_latents"),
        "model": (
            *("base_model_version", "v2", "clip_skip", "max_token_length", "sd_model_name", "sd_model_hash"),
            *("new_sd_model_hash", "vae_name", "vae_hash", "new_vae_hash"),
            *VAE_FORM,
        ),
        "loss": (
            *("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
            *("multires_noise_iterations", "multires_noise_discount"),
            *("ip_noise_gamma", "ip_noise_gamma_random_strength", "zero_terminal_snr", "min_snr_gamma"),
            *("debiased_estimation", "loss_type", "huber_schedule", "huber_c", "huber_scale"),
            "prior_loss_weight",
            *TIMES,
        ),
        "captions": (
            *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate"),
            *("face_crop_aug_range", "resize_interpolation", "validation_seed", "validation_split"),
            *("max_validation_steps", "validate_every_n_epochs", "validate_every_n_steps"),
        ),
        "folders": (
            *(
                "batch_size_per_device",
                "total_batch_size",
                "resolution",
                "enable_bucket",
                "bucket_no_upscale",
            ),
            *("min_bucket_reso", "max_bucket_reso", "bucket_info", "color_aug", "flip_aug", "random_crop"),
            *("shuffle_caption", "keep_tokens", "dataset_dirs", "reg_dataset_dirs", "tag_frequency"),
        ),
        "toml": ("datasets",),
        "ours": ("preserve", "ema_decay", "ema_width"),
        "slider": SLIDER,
    }
)
# Left out where there is nothing to say; all other keys are then "None".
OPTIONAL_KEYS = frozenset(
    {
        *("sd_model_hash", "new_sd_model_hash", "vae_name", "vae_hash", "new_vae_hash"),
        *(*VAE_FORM, *TIMES, *SLIDER, *TRAINING_KEYS["toml"], *TRAINING_KEYS["ours"]),
    }
)
# What programs need to apply a network; ``--no_metadata`` keeps these.
MINIMUM_KEYS = ("v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args")
_ALL_KEYS = tuple(chain.from_iterable(TRAINING_KEYS.values()))


def training_metadata(values: Mapping[str, object], *, minimum: bool = False) -> dict[str, str]:
    """``ss_`` metadata from values by name (without "ss_"), complete and in order; ``minimum``: only the few.

    Tables and lists become JSON, all else is spelt as Python does; keys without a value are "None" or, where
    they are optional, left out. Raises KeyError for a name that sd-scripts does not know.
    """
    if unknown := values.keys() - set(_ALL_KEYS):
        raise KeyError(f"no such metadata: {', '.join(sorted(unknown))}")
    names = MINIMUM_KEYS if minimum else _ALL_KEYS
    # With a dataset file each dataset says of itself what else holds for all.
    left_out = OPTIONAL_KEYS | (set(TRAINING_KEYS["folders"]) if "datasets" in values else set())
    return {
        f"ss_{name}": _spell(values.get(name))
        for name in names
        if values.get(name) is not None or name not in left_out
    }


def _spell(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def base_version(family: str, prediction: str = EPSILON.name) -> str:
    """``ss_base_model_version``: "sd_v1", "sd_v2", with "_v" for v-prediction; SDXL's does not tell it."""
    facts = get_family(family)
    return (facts.v_version or facts.base_version) if prediction == V.name else facts.base_version


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What ``modelspec.`` says of a file. ``adapter``: a network for models of the family, not a model.

    ``prediction``: what the model answers, a name of :mod:`lorapipe_engine.models.predictions`. ``resolution``: width
    and height in pixels. ``timesteps``: first and last that were trained, if not all.
    ``encoder_layer``: clip skip. ``thumbnail``: a data URL (:func:`thumbnail_url`). None leaves an entry out.
    """

    family: str
    adapter: bool
    title: str
    date: datetime
    prediction: str = EPSILON.name
    resolution: tuple[int, int] | None = None
    timesteps: tuple[int, int] | None = None
    encoder_layer: int | None = None
    author: str | None = None
    description: str | None = None
    license: str | None = None
    tags: str | None = None
    usage_hint: str | None = None
    thumbnail: str | None = None
    merged_from: str | None = None
    trigger_phrase: str | None = None
    preprocessor: str | None = None
    is_negative_embedding: str | None = None

    def metadata(self) -> dict[str, str]:
        """The entries, in order. Raises InputError for an unknown family."""
        facts = get_family(self.family)
        kind = facts.architecture
        if self.prediction == V.name and facts.v_architecture:
            kind = facts.v_architecture
        entries: dict[str, object] = {
            "sai_model_spec": MODELSPEC_VERSION,
            "architecture": f"{kind}/lora" if self.adapter else kind,
            "implementation": facts.implementation if self.adapter else STABILITY,
            "implementation_version": f"lorapipe {__version__}",
            "title": self.title,
            "resolution": self.resolution and f"{self.resolution[0]}x{self.resolution[1]}",
            "date": self.date.isoformat(timespec="seconds"),
            "prediction_type": PREDICTIONS[self.prediction].word,
            "timestep_range": self.timesteps and f"{self.timesteps[0]},{self.timesteps[1]}",
        }
        rest = [field.name for field in fields(self)]
        for name in rest[rest.index("encoder_layer") :]:
            entries[name] = getattr(self, name)
        return {f"modelspec.{name}": str(value) for name, value in entries.items() if value is not None}


def thumbnail_url(path: Path) -> str:
    """A small picture as a data URL for ``modelspec.thumbnail``. Raises InputError."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise InputError(f"{path}: is not named like a picture (.png, .jpg, .webp)")
    source = open_source(path)
    try:
        data = base64.b64encode(take(source, 0, source.size)).decode()
    finally:
        source.close()
    return f"data:{kind};base64,{data}"


def with_hashes(metadata: Mapping[str, str], tensors: Mapping[str, Array | Encoded]) -> dict[str, str]:
    """The metadata with ``sshs_model_hash`` and ``sshs_legacy_hash`` of a network's tensors."""
    hashes = network_hashes(tensors, metadata)
    return {**metadata, "sshs_model_hash": hashes.model, "sshs_legacy_hash": hashes.legacy}


def with_base_facts(metadata: Mapping[str, str], family: str) -> dict[str, str]:
    """The metadata with what readers of kohya's names look for where it is missing: the kind of base and of network."""
    prediction = find_prediction(metadata.get("modelspec.prediction_type", "")) or EPSILON.name
    facts = {
        "ss_base_model_version": base_version(family, prediction),
        "ss_v2": str(family == "sd2"),
        "ss_network_module": "networks.lora",
    }
    return {**facts, **metadata}


# ------------------------------------------------------------------------------------------------ reading


def parse_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata with JSON tables and lists decoded; all other texts as they are."""
    return {name: _parse(text) for name, text in metadata.items()}


def _parse(text: str) -> Any:
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def table_of(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON table in one entry; empty where it is missing or something else."""
    table = _parse(metadata.get(name, ""))
    return table if isinstance(table, dict) else {}


def tag_counts(metadata: Mapping[str, str]) -> Counter[str]:
    """How often each tag was trained, over all folders of ``ss_tag_frequency``."""
    counts: Counter[str] = Counter()
    for folder in table_of(metadata, "ss_tag_frequency").values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    return counts
