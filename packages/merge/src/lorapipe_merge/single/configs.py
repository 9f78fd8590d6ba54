"""The small files of a diffusers folder: taken from a folder like it, or the fewest that make it load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.folders import COMPONENTS, read_config, read_scheduler
from lorapipe_engine.models.architecture import clip_config, fixed_heads, unet_config, vae_config, wide_heads
from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.predictions import EPSILON, FLOW, scheduler_prediction
from lorapipe_merge.checkpoint.result import check_link
from lorapipe_merge.single.model import Model

Shapes = Mapping[str, tuple[int, ...]]
_SMALL = (".json", ".txt", ".model")  # configurations and tokenizers
_FOLDERS = (*COMPONENTS, "scheduler", "tokenizer", "tokenizer_2")
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def copy_configs(model: Model, source: Path, target: Path, shapes: Mapping[str, Shapes]) -> list[str]:
    """Copy the configurations, the scheduler and the tokenizers of a diffusers folder; notes on what differs.

    Raises InputError for a folder that is none, of another model, or with links.
    """
    if not (source / "model_index.json").is_file():
        raise InputError(f"{source}: is no diffusers folder: it has no model_index.json")
    config = read_config(source / "unet" / "config.json")
    key = next((name for name in shapes["unet"] if name.endswith("attn2.to_k.weight")), None)
    width = config.get("cross_attention_dim")
    if key is not None and width is not None and width != shapes["unet"][key][1]:
        raise InputError(
            f"{source}: is of another model: its UNet takes text of width {width}, this one {shapes['unet'][key][1]}"
        )
    paths = [source / "model_index.json"]
    paths += [
        path for folder in _FOLDERS for path in sorted((source / folder).glob("*")) if path.suffix in _SMALL
    ]
    for path in paths:
        if ".index." in path.name:  # of weights in several files
            continue
        check_link(path, source)
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    return _mend_scheduler(model, source, target)


def _mend_scheduler(model: Model, source: Path, target: Path) -> list[str]:
    """Let a copied scheduler say what the model predicts, where the model's own files tell; a note on it."""
    table = read_scheduler(source)
    said = scheduler_prediction(table) or EPSILON.name
    if model.prediction in (None, EPSILON.name, said):
        return []
    (target / "scheduler").mkdir(exist_ok=True)
    table |= {"prediction_type": model.prediction, **(_ZERO_SNR if model.zero_snr else {})}
    _write(target / "scheduler" / "scheduler_config.json", table)
    return [
        f"the model predicts {model.prediction}, which the scheduler says now; that of {source} says {said}"
    ]


def write_configs(model: Model, target: Path, shapes: Mapping[str, Shapes]) -> list[str]:
    """Write the configurations that the tensors tell, and a scheduler; notes on what is missing.

    Raises ConfigError for models whose configuration tensors do not tell.
    """
    try:
        tables = {folder: _config(model, folder, own, shapes) for folder, own in shapes.items()}
    except InputError as error:
        raise ConfigError(
            f"{model.path}: {error}; name a folder of such a model: --configs FOLDER"
        ) from error
    tables["scheduler"] = _scheduler(model)
    for folder, table in tables.items():
        (target / folder).mkdir(exist_ok=True)
        name = "scheduler_config.json" if folder == "scheduler" else "config.json"
        _write(target / folder / name, table)
    count = len(get_family(model.family).text_parts)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if count == 2 else "StableDiffusionPipeline",
        **{folder: list(_CLASSES[folder]) for folder in tables},
        **{folder: list(_CLASSES[folder]) for folder in ("tokenizer", "tokenizer_2")[:count]},
    }
    if count == 1:
        index |= {name: [None, None] for name in ("safety_checker", "feature_extractor")}
        index["requires_safety_checker"] = False
    _write(target / "model_index.json", index)
    notes = ["the folder has no tokenizer; --configs FOLDER takes it from another model's folder"]
    if model.family == "sd2" and model.prediction is None:
        notes.append(
            "SD 2.x comes in two kinds that tensors do not tell: prediction_type epsilon was written"
        )
    if model.prediction == FLOW.name:
        notes.append(
            "the model predicts flow, which diffusers' pipelines of this family do not draw; lora-train and "
            "lora-sample read it from the scheduler's prediction_type"
        )
    return notes


def _config(model: Model, folder: str, own: Shapes, shapes: Mapping[str, Shapes]) -> dict[str, Any]:
    kind = {"_class_name": _CLASSES[folder][1]}
    family = get_family(model.family)
    if folder == "unet":
        pooled = shapes.get("text_encoder_2", {}).get("text_projection.weight", (None,))[0]
        heads = wide_heads if family.heads is None else partial(fixed_heads, family.heads)
        return {**kind, "sample_size": family.resolution // 8, **unet_config(own, heads, pooled)}
    if folder == "vae":
        return {**kind, "scaling_factor": family.latent_scale, **vae_config(own)}
    first = folder == "text_encoder"
    activation = family.activations[0 if first else 1]
    return {
        "architectures": [_CLASSES[folder][1]],
        "model_type": "clip_text_model",
        **clip_config(own, activation),
    }


def _scheduler(model: Model) -> dict[str, Any]:
    return {
        "_class_name": _CLASSES["scheduler"][1],
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": model.prediction or EPSILON.name,
        **(_ZERO_SNR if model.zero_snr else {}),
    }


def _write(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
