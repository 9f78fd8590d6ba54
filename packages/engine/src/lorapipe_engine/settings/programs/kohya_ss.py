"""Presets of kohya_ss, the GUI of sd-scripts: flat JSON, in which a number of 0 most often means "not given"."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, is_nothing
from lorapipe_engine.errors import ConfigError

NAME = "kohya_ss"
_MARKS = ("LoRA_type", "max_resolution", "stop_text_encoder_training_pct", "lr_warmup", "model_list")

_RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
}
# The GUI's own, of which nothing reaches the training.
_OWN = frozenset(
    {
        *("LoRA_type", "LyCORIS_preset", "sdxl", "model_list", "save_as_bool", "train_on_input"),
        *("no_token_padding", "extra_accelerate_launch_args", "caption_metadata_filename"),
        *("latent_metadata_filename", "noise_offset_type", "additional_parameters", "full_path"),
        *("num_cpu_threads_per_process", "main_process_port", "gpu_ids", "dynamo_mode", "save_clip"),
    }
)
# Numbers of which the GUI leaves 0 out, so that the trainer's default holds.
_ZERO_IS_NONE = frozenset(
    {
        *("save_every_n_steps", "save_every_n_epochs", "save_last_n_steps", "save_last_n_steps_state"),
        *("save_last_n_epochs", "save_last_n_epochs_state", "max_train_epochs", "max_train_steps"),
        *("vae_batch_size", "scale_weight_norms", "seed", "clip_skip", "adaptive_noise_scale"),
        *("sample_every_n_steps", "sample_every_n_epochs", "noise_offset", "ip_noise_gamma"),
        *("v_pred_like_loss", "network_alpha", "max_token_length", "prior_loss_weight"),
        *("num_processes", "num_machines", "blocks_to_swap"),
    }
)
# LoRA_type -> network_module and, of LyCORIS, the algorithm.
_TYPES = {
    "Standard": ("networks.lora", None),
    "Kohya LoCon": ("networks.lora", None),
    "LoCon": ("networks.lora", None),
    "Kohya DyLoRA": ("networks.dylora", None),
    "LoRA-FA": ("networks.lora_fa", None),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "LyCORIS/iA3": ("lycoris.kohya", "ia3"),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora"),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora"),
    "LyCORIS/GLoKr": ("lycoris.kohya", "glokr"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
}
_DROPOUTS = ("rank_dropout", "module_dropout")
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
)
_CONV = ("conv_dim", "conv_alpha")
_SWITCHES = ("use_tucker", "use_scalar", "rank_dropout_scale", "train_norm", "dora_wd", "bypass_mode")
# The network's arguments that a type has besides.
_LYCORIS = (*_CONV, *_DROPOUTS, *_SWITCHES)
_OF_TYPE = {
    "Standard": (*_DROPOUTS, *_BLOCKS),
    "Kohya LoCon": (*_CONV, *_DROPOUTS, *_BLOCKS),
    "LoCon": (*_CONV, *_DROPOUTS, *_BLOCKS),
    "Kohya DyLoRA": (*_CONV, *_DROPOUTS, *_BLOCKS, "unit"),
    "LoRA-FA": (*_DROPOUTS, *_BLOCKS),
    "LyCORIS/LoKr": (*_LYCORIS, "factor", "decompose_both", "full_matrix"),
    "LyCORIS/DyLoRA": (*_LYCORIS, "unit"),
    "LyCORIS/BOFT": (*_LYCORIS, "constrain", "rescaled"),
    "LyCORIS/Diag-OFT": (*_LYCORIS, "constrain", "rescaled"),
    "LyCORIS/iA3": ("train_on_input",),
}
_ARGUMENTS = {name for names in _OF_TYPE.values() for name in names} - {"train_on_input"}
# As the GUI sets them where nobody touched them.
_UNTOUCHED: Mapping[str, tuple[Any, ...]] = {
    "conv_dim": (1,),
    "conv_alpha": (1,),
    "factor": (-1,),
    "unit": (1,),
}
_SPELT = {"constrain": "constraint"}


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    return [name for name in _MARKS if name in table]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a preset and what the user should know of it. Raises ConfigError."""
    kind = _kind(table, path)
    entries = [
        Entry(_RENAMED.get(key, key), _value(key, value), key)
        for key, value in table.items()
        if key not in _OWN and key not in _ARGUMENTS and key not in _SPECIAL and not _is_left_out(key, value)
    ]
    arguments, notes = _arguments(table, kind)
    entries += [
        Entry("network_module", _TYPES[kind][0], "LoRA_type"),
        Entry("network_args", arguments, "LoRA_type"),
        *_length(table),
        *_rates(table),
        *_noise(table),
        *_more(table, path),
    ]
    if table.get("xformers"):
        entries.append(Entry("sdpa" if table["xformers"] == "sdpa" else "xformers", True, "xformers"))
    if table.get("use_wandb"):
        entries.append(Entry("log_with", "wandb", "use_wandb"))
    return entries, notes


_SPECIAL = frozenset(
    {
        *("epoch", "max_train_epochs", "max_train_steps", "lr_warmup", "lr_warmup_steps"),
        *("stop_text_encoder_training_pct", "stop_text_encoder_training", "unet_lr", "text_encoder_lr"),
        *("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
        *("multires_noise_iterations", "multires_noise_discount", "xformers", "use_wandb", "use_cp"),
    }
)


def _kind(table: Mapping[str, Any], path: Path) -> str:
    kind = table.get("LoRA_type")
    if kind is None and "network_dim" not in table:
        raise ConfigError(
            f"{path}: a preset of {NAME} without LoRA_type and network_dim, so one of full training; lora-train makes "
            "LoRA networks: load it in the GUI's LoRA tab and save it there"
        )
    kind = kind or "Standard"
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ConfigError(
            f"{path}: LoRA_type: '{kind}' is no network of SD 1.x, 2.x or SDXL; known: {', '.join(_TYPES)}"
        )
    return kind


def _is_zero(value: Any) -> bool:
    return is_nothing(value) or (isinstance(value, int | float | str) and _number(value) == 0)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _is_left_out(key: str, value: Any) -> bool:
    """Whether the GUI does not hand the value on. False is its "not asked for" everywhere but of buckets."""
    if key == "enable_bucket":
        return value is None
    if value in ("None", "none") and key not in ("mixed_precision", "dynamo_backend"):
        return True
    return is_nothing(value) or (key in _ZERO_IS_NONE and _is_zero(value))


def _value(key: str, value: Any) -> Any:
    if key in ("optimizer_args", "lr_scheduler_args") and isinstance(value, str):
        return shlex.split(value)
    return value


def _arguments(table: Mapping[str, Any], kind: str) -> tuple[list[str], list[str]]:
    """``network_args`` of the type, and a note on those of other types."""
    algo = _TYPES[kind][1]
    words = []
    if algo is not None:
        words = [f"algo={algo}", f"preset={table.get('LyCORIS_preset') or 'full'}"]
    taken = _OF_TYPE.get(kind, _LYCORIS)
    unused = []
    given = {**table, "use_tucker": table.get("use_tucker") or table.get("use_cp")}
    for name in sorted(_ARGUMENTS):
        value = given.get(name)
        if _is_zero(value):
            continue
        if name in taken:
            words.append(f"{_SPELT.get(name, name)}={value}")
        elif _number(value) not in _UNTOUCHED.get(name, ()):
            unused.append(name)
    notes = [f"{', '.join(unused)}: not used by LoRA_type {kind}"] if unused else []
    return words, notes


def _length(table: Mapping[str, Any]) -> list[Entry]:
    """Steps where they are given, else epochs; a warm-up in per cent of the run, or in steps."""
    entries = []
    if not _is_zero(table.get("max_train_epochs")):
        entries.append(Entry("max_train_epochs", table["max_train_epochs"], "max_train_epochs"))
    elif not _is_zero(table.get("max_train_steps")):
        entries.append(Entry("max_train_steps", table["max_train_steps"], "max_train_steps"))
    elif not _is_zero(table.get("epoch")):
        entries.append(Entry("max_train_epochs", table["epoch"], "epoch"))
    if not _is_zero(table.get("lr_warmup_steps")):
        entries.append(Entry("lr_warmup_steps", table["lr_warmup_steps"], "lr_warmup_steps"))
    elif not is_nothing(table.get("lr_warmup")):
        entries.append(Entry("lr_warmup_steps", f"{table['lr_warmup']}%", "lr_warmup"))
    return entries


def _rates(table: Mapping[str, Any]) -> list[Entry]:
    """The rates of the parts: 0 of one of them leaves it out, 0 of both means learning_rate for both."""
    entries = []
    names = [name for name in ("unet_lr", "text_encoder_lr") if not is_nothing(table.get(name))]
    if any(not _is_zero(table[name]) for name in names):
        entries = [Entry(name, table[name], name) for name in names]
    stop, share = (
        table.get(name) for name in ("stop_text_encoder_training", "stop_text_encoder_training_pct")
    )
    if not _is_zero(stop):
        entries.append(Entry("stop_text_encoder_training", stop, "stop_text_encoder_training"))
    elif not _is_zero(share):
        value = share if _number(share) == -1 else f"{share}%"
        entries.append(Entry("stop_text_encoder_training", value, "stop_text_encoder_training_pct"))
    return entries


def _noise(table: Mapping[str, Any]) -> list[Entry]:
    """One of two kinds of noise: the other's numbers stay in the preset and are not used."""
    if table.get("noise_offset_type") == "Multires":
        names: tuple[str, ...] = ("multires_noise_iterations", "multires_noise_discount")
    elif table.get("noise_offset_type") == "Original":
        names = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
    else:
        names = (
            *("multires_noise_iterations", "multires_noise_discount"),
            *("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
        )
    if _is_zero(table.get(names[0])):
        names = names[2:]
    return [Entry(name, table[name], name) for name in names if not _is_zero(table.get(name))]


def _more(table: Mapping[str, Any], path: Path) -> list[Entry]:
    """The words that a user put behind the GUI's own, as a command line."""
    key = "additional_parameters"
    text = table.get(key)
    if is_nothing(text):
        return []
    try:
        words = shlex.split(str(text))
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: cannot be split into words ({error})") from None
    entries: list[Entry] = []
    while words:
        name, sign, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"{path}: {key}: '{name}' belongs to no option; options begin with --")
        values = [value] if sign else []
        while not sign and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        given = (values[0] if len(values) == 1 else values) if values else True
        entries.append(Entry(name.removeprefix("--"), given, key))
    return entries
