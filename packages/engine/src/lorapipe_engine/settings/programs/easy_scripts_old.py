"""Arguments that LoRA_Easy_Training_Scripts saved before it had a window (2023): flat JSON of names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, is_nothing

NAME = "LoRA_Easy_Training_Scripts of 2023"
_MARKS = ("img_folder", "net_dim", "train_resolution", "warmup_lr_ratio", "change_output_name")
_RENAMED = {
    "base_model": "pretrained_model_name_or_path",
    "img_folder": "train_data_dir",
    "output_folder": "output_dir",
    "reg_img_folder": "reg_data_dir",
    "change_output_name": "output_name",
    "shuffle_captions": "shuffle_caption",
    "train_resolution": "resolution",
    "buckets": "enable_bucket",
    "min_bucket_resolution": "min_bucket_reso",
    "max_bucket_resolution": "max_bucket_reso",
    "batch_size": "train_batch_size",
    "max_clip_token_length": "max_token_length",
    "max_steps": "max_train_steps",
    "num_epochs": "max_train_epochs",
    "test_seed": "seed",
    "gradient_acc_steps": "gradient_accumulation_steps",
    "log_dir": "logging_dir",
    "use_lion": "use_lion_optimizer",
    "scheduler": "lr_scheduler",
    "cosine_restarts": "lr_scheduler_num_cycles",
    "scheduler_power": "lr_scheduler_power",
    "no_meta": "no_metadata",
    "save_as": "save_model_as",
    "lora_model_for_resume": "network_weights",
    "net_dim": "network_dim",
    "alpha": "network_alpha",
    "unet_only": "network_train_unet_only",
    "text_only": "network_train_text_encoder_only",
    "warmup_lr_ratio": "lr_warmup_steps",
    "locon_dim": "conv_dim",
    "locon_alpha": "conv_alpha",
}
_WORDS = ("optimizer_args", "network_args", "lr_scheduler_args")
# Of the program itself, and of how it loads pictures.
_OWN = (
    "save_json_folder",
    "load_json_path",
    "multi_run_folder",
    "json_load_skip_list",
    "save_json_only",
    "tag_occurrence_txt_file",
    "sort_tag_occurrence_alphabetically",
    "num_workers",
    "persistent_workers",
)
_PREFIX = "sd_scripts."


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    return [name for name in _MARKS if name in table]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:  # noqa: ARG001 - as the others
    """The options of a file and what the user should know of it."""
    has_steps = not is_nothing(table.get("max_steps"))
    given = [key for key in _OWN if not is_nothing(table.get(key))]
    notes = [f"{', '.join(given)}: the program's own, and nothing here"] if given else []
    if has_steps and "num_epochs" in table:
        notes.append("num_epochs: not used, as max_steps is given")
    entries = [
        Entry(_RENAMED.get(key, key), _value(key, value), key)
        for key, value in table.items()
        if key not in _OWN
        and not (has_steps and key == "num_epochs")
        and (value is not False or key == "buckets")
    ]
    return entries, notes


def _value(key: str, value: Any) -> Any:
    if key in _WORDS and isinstance(value, dict):
        return [f"{name}={item}" for name, item in value.items() if not is_nothing(item)]
    if key == "network_module" and isinstance(value, str):
        return value.removeprefix(_PREFIX)
    return value
