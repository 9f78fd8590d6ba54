"""Every option of sd-scripts' train_network.py and sdxl_train_network.py, and every key of its dataset files: none is
passed over in silence.

The names are those of its argument parsers and of its dataset file's schema at 0.10. A value that asks for something
stands beside each; a switch has True.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lorapipe_engine.cli import lora_train
from lorapipe_engine.command.options import build_settings
from lorapipe_engine.datasets.file import read_dataset_file
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS, DataSettings
from lorapipe_engine.settings.unused import unused_notes

OBEYED: dict[str, Any] = {
    # The base.
    "pretrained_model_name_or_path": "demo",
    "vae": "vae.safetensors",
    "v2": True,
    "v_parameterization": True,
    "clip_skip": 2,
    "max_token_length": 75,
    "no_half_vae": True,
    "mixed_precision": "bf16",
    "full_bf16": True,
    "full_fp16": True,
    "fp8_base": True,
    "fp8_base_unet": True,
    "gradient_checkpointing": True,
    # Pictures and captions.
    "train_data_dir": "img",
    "reg_data_dir": "reg",
    "dataset_config": "d.toml",
    "in_json": "meta.json",
    "dataset_repeats": 3,
    "resolution": "512,768",
    "train_batch_size": 2,
    "enable_bucket": True,
    "min_bucket_reso": 128,
    "max_bucket_reso": 2048,
    "bucket_reso_steps": 32,
    "bucket_no_upscale": True,
    "resize_interpolation": "area",
    "caption_extension": ".caption",
    "caption_separator": ";",
    "shuffle_caption": True,
    "keep_tokens": 1,
    "keep_tokens_separator": "|||",
    "secondary_separator": ";;;",
    "enable_wildcard": True,
    "caption_prefix": "a",
    "caption_suffix": "b",
    "caption_dropout_rate": 0.1,
    "caption_dropout_every_n_epochs": 3,
    "caption_tag_dropout_rate": 0.1,
    "token_warmup_min": 2,
    "token_warmup_step": 0.5,
    "weighted_captions": True,
    "color_aug": True,
    "flip_aug": True,
    "random_crop": True,
    "alpha_mask": True,
    "masked_loss": True,
    "conditioning_data_dir": "mask",
    "vae_batch_size": 4,
    "cache_latents_to_disk": True,
    "cache_text_encoder_outputs": True,
    "cache_text_encoder_outputs_to_disk": True,
    "validation_split": 0.1,
    "validation_seed": 3,
    "validate_every_n_steps": 10,
    "validate_every_n_epochs": 2,
    "max_validation_steps": 4,
    # The network.
    "network_module": "networks.dylora",
    "network_dim": 8,
    "network_alpha": 4.0,
    "network_dropout": 0.1,
    "network_args": "conv_dim=4",
    "network_weights": "a.safetensors",
    "dim_from_weights": True,
    "network_train_unet_only": True,
    "network_train_text_encoder_only": True,
    "scale_weight_norms": 1.0,
    "base_weights": "a.safetensors",
    "base_weights_multiplier": 0.5,
    # Its updates.
    "optimizer_type": "Lion",
    "optimizer_args": "weight_decay=0.1",
    "learning_rate": 0.001,
    "unet_lr": 0.001,
    "text_encoder_lr": 0.001,
    "max_grad_norm": 0.5,
    "lr_scheduler": "linear",
    "lr_scheduler_type": "StepLR",
    "lr_scheduler_args": "step_size=3",
    "lr_warmup_steps": 10,
    "lr_decay_steps": 10,
    "lr_scheduler_num_cycles": 3,
    "lr_scheduler_power": 2.0,
    "lr_scheduler_timescale": 10,
    "lr_scheduler_min_lr_ratio": 0.1,
    "gradient_accumulation_steps": 2,
    # The loss.
    "min_snr_gamma": 5.0,
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.01,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.4,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "zero_terminal_snr": True,
    "min_timestep": 100,
    "max_timestep": 900,
    "loss_type": "huber",
    "huber_schedule": "exponential",
    "huber_c": 0.2,
    "huber_scale": 2.0,
    "prior_loss_weight": 0.5,
    "scale_v_pred_loss_like_noise_pred": True,
    "v_pred_like_loss": 0.5,
    "debiased_estimation_loss": True,
    # The run.
    "output_dir": "out",
    "output_name": "net",
    "save_precision": "bf16",
    "save_model_as": "ckpt",
    "save_every_n_epochs": 2,
    "save_every_n_steps": 50,
    "save_n_epoch_ratio": 5,
    "save_last_n_epochs": 3,
    "save_last_n_epochs_state": 3,
    "save_last_n_steps": 300,
    "save_last_n_steps_state": 300,
    "save_state": True,
    "save_state_on_train_end": True,
    "resume": "net.state",
    "max_train_steps": 100,
    "max_train_epochs": 3,
    "seed": 7,
    "sample_prompts": "prompts.txt",
    "sample_every_n_steps": 10,
    "sample_every_n_epochs": 2,
    "sample_at_first": True,
    "sample_sampler": "euler_a",
    "logging_dir": "logs",
    "log_with": "all",
    "log_prefix": "a_",
    "log_tracker_name": "a",
    "wandb_run_name": "a",
    "wandb_api_key": "key",
    "training_comment": "a",
    "no_metadata": True,
    **dict.fromkeys(
        [
            *("metadata_title", "metadata_author", "metadata_description", "metadata_license"),
            *("metadata_tags", "metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from"),
            *("metadata_trigger_phrase", "metadata_preprocessor", "metadata_is_negative_embedding"),
        ],
        "a",
    ),
}
NOTED: dict[str, Any] = {
    **dict.fromkeys(
        [
            *("xformers", "sdpa", "mem_eff_attn", "lowram", "highvram", "disable_mmap_load_safetensors"),
            *("cache_latents", "cache_info", "skip_cache_check", "persistent_data_loader_workers"),
            *("torch_compile", "fused_backward_pass", "log_config", "console_log_simple"),
            *("ddp_gradient_as_bucket_view", "ddp_static_graph", "zero3_init_flag"),
            *("zero3_save_16bit_model", "fp16_master_weights_and_gradients"),
            *("save_state_to_huggingface", "async_upload", "use_8bit_adam", "use_lion_optimizer"),
        ],
        True,
    ),
    **dict.fromkeys(["huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"], "of the hub"),
    "huggingface_repo_visibility": "private",
    "tokenizer_cache_dir": "tokenizers",
    "caption_extention": ".caption",
    "max_data_loader_n_workers": 8,
    "dynamo_backend": "eager",
    "ddp_timeout": 30,
    "console_log_level": "DEBUG",
    "log_tracker_config": "wandb.toml",
    "zero_stage": 3,
    "offload_optimizer_device": "cpu",
    "offload_param_device": "nvme",
    "offload_optimizer_nvme_path": "/nvme",
    "offload_param_nvme_path": "/nvme",
}
REFUSED: dict[str, Any] = {
    **dict.fromkeys(
        [
            *("deepspeed", "debug_dataset", "output_config", "resume_from_huggingface"),
            *("cpu_offload_checkpointing", "skip_until_initial_step"),
        ],
        True,
    ),
    "huggingface_repo_id": "owner/name",
    "face_crop_aug_range": "2.0,4.0",
    "dataset_class": "mine.Dataset",
    "console_log_file": "log.txt",
    "initial_epoch": 3,
    "initial_step": 100,
}


# Each of these excludes one of the others.
APART = ("network_train_text_encoder_only",)


def run(*words: str) -> Result:
    return CliRunner().invoke(lora_train, [*words, "--print-config"])


def both_ways(options: Mapping[str, Any], folder: Path) -> tuple[Result, Result]:
    """What is made of options on the command line, and of the same in a file."""
    path = folder / "options.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name}", *([] if value is True else [str(value)]))
    ]
    return run(*words), run("--config_file", str(path))


def printed(found: Result) -> dict[str, Any]:
    assert found.exit_code == 0, found.output
    return {key: value for part in tomllib.loads(found.stdout).values() for key, value in part.items()}


@pytest.mark.parametrize("names", [[name for name in OBEYED if name not in APART], APART])
def test_they_are_options(names: Sequence[str], tmp_path: Path) -> None:
    for found in both_ways({name: OBEYED[name] for name in names}, tmp_path):
        options = printed(found)
        assert found.stderr == ""
        assert "wandb_api_key" not in options  # a secret
        for name in names:
            wanted = OBEYED[name]
            if name != "wandb_api_key":
                assert options[name] in (wanted, [wanted], str(wanted), [512, 768]), name


@pytest.mark.table
@pytest.mark.parametrize("name", NOTED)
def test_it_does_nothing_or_stands_for_another_and_a_note_says_so(name: str, tmp_path: Path) -> None:
    for found in both_ways({name: NOTED[name]}, tmp_path):
        assert name not in printed(found)
        (note,) = found.stderr.splitlines()
        assert note.startswith("note: ")
        assert name in note


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    for found in both_ways({name: REFUSED[name]}, tmp_path):
        assert found.exit_code == 2
        (error,) = found.stderr.splitlines()
        assert f"{name}: " in error


# What each of them does nothing without.
NEEDS = {
    **dict.fromkeys(
        ["validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "validation_seed"],
        "validation_split",
    ),
    **dict.fromkeys(["sample_every_n_steps", "sample_every_n_epochs", "sample_sampler"], "sample_prompts"),
    **dict.fromkeys(["huber_schedule", "huber_c", "huber_scale"], "loss_type huber"),
    **dict.fromkeys(["log_tracker_name", "wandb_run_name", "wandb_api_key"], "log_with wandb"),
    "sample_prompts": "sample_every_n_epochs",
    "save_last_n_steps": "save_every_n_steps",
    "save_last_n_steps_state": "save_every_n_steps and save_state",
    "save_last_n_epochs_state": "save_state",
    "dataset_repeats": "in_json or dataset_config",
    "keep_tokens": "shuffle_caption",
    "token_warmup_min": "token_warmup_step",
    "prior_loss_weight": "reg_data_dir",
    "adaptive_noise_scale": "noise_offset",
    "noise_offset_random_strength": "noise_offset",
    "ip_noise_gamma_random_strength": "ip_noise_gamma",
    "multires_noise_discount": "multires_noise_iterations",
}


@pytest.mark.parametrize("name", NEEDS)
def test_it_says_what_it_does_nothing_without(name: str, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(f"{name} = {json.dumps(OBEYED[name])}\n")
    parts, _ = build_settings(PARTS, {}, path)
    _, data, _, optimizer, loss, run = parts
    (note,) = unused_notes(data, optimizer, loss, run)
    assert note.startswith(f"{name} does nothing without {NEEDS[name]}")


# --------------------------------------------------------------------------------------- dataset files

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[datasets.subsets]]"
ANYWHERE = (GENERAL, DATASET, SUBSET)
# Each key with a value that asks for something, and where it may stand.
KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        name: (value, ANYWHERE)
        for name, value in {
            "num_repeats": "3",
            "shuffle_caption": "true",
            "caption_separator": "';'",
            "keep_tokens": "1",
            "keep_tokens_separator": "'|||'",
            "secondary_separator": "';;;'",
            "enable_wildcard": "true",
            "caption_prefix": "'a'",
            "caption_suffix": "'b'",
            "caption_dropout_rate": "0.1",
            "caption_dropout_every_n_epochs": "3",
            "caption_tag_dropout_rate": "0.1",
            "token_warmup_min": "2",
            "token_warmup_step": "100",
            "flip_aug": "true",
            "color_aug": "true",
            "random_crop": "true",
            "face_crop_aug_range": "[2.0, 4.0]",
            "resize_interpolation": "'area'",
            "custom_attributes": "{ diff_output_preservation = false }",
            "caption_extension": "'.caption'",
            "class_tokens": "'girl'",
            "cache_info": "true",
        }.items()
    },
    **{
        name: (value, (GENERAL, DATASET))
        for name, value in {
            "resolution": "[256, 384]",
            "batch_size": "2",
            "enable_bucket": "false",
            "min_bucket_reso": "128",
            "max_bucket_reso": "2048",
            "bucket_reso_steps": "32",
            "bucket_no_upscale": "true",
            "validation_seed": "3",
            "validation_split": "0.1",
            "network_multiplier": "0.5",
        }.items()
    },
    "is_reg": ("true", (SUBSET,)),
    "alpha_mask": ("true", (SUBSET,)),
    "metadata_file": ("'meta.json'", (SUBSET,)),
    "conditioning_data_dir": ("'masks'", (SUBSET,)),
}
REFUSED_KEYS = ("face_crop_aug_range",)


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in KEYS for place in KEYS[name][1]])
def test_a_key_of_a_dataset_file_changes_what_is_trained_or_is_named(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("img", "other", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "meta.json").write_text("{}")
    data = DataSettings(masked_loss=name == "conditioning_data_dir")

    def read(line: str) -> Any:
        rows = {GENERAL: "", DATASET: "", SUBSET: "image_dir = 'img'\n"}
        rows[place] += f"{line}\n"
        more = f"{SUBSET}\nimage_dir = 'other'\n"
        text = "".join(f"{table}\n{rows[table]}" for table in ANYWHERE) + more
        (tmp_path / "d.toml").write_text(text)
        return read_dataset_file(Path("d.toml"), data)

    line = f"{name} = {KEYS[name][0]}"
    if name in REFUSED_KEYS:
        with pytest.raises(ConfigError, match=f"d.toml, line .*: {name}: "):
            read(line)
        return
    (plain,), (spec,) = read(""), read(line)
    assert spec != plain
