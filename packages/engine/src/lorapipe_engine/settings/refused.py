"""sd-scripts' options that this engine has no use for: each is known, and says why or what to use in its place.

Most are refused. Those that only ask for what happens anyway are accepted with a note, so that a command line or a
file made for sd-scripts runs. A value that means "off" is always accepted in silence. An option that the engine
learns moves from here to its settings class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click

from lorapipe_engine.command.options import WordsOption
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True)
class Foreign:
    """An option of sd-scripts: ``why`` it is not here; whether it is a ``flag``, whether it is ``ignored`` with a note
    instead of refused, and the values besides nothing and false that mean ``off``."""

    why: str
    flag: bool = False
    ignored: bool = False
    off: tuple[Any, ...] = ()


def _refuse(why: str, *names: str, flag: bool = False, off: tuple[Any, ...] = ()) -> dict[str, Foreign]:
    return {name: Foreign(why, flag=flag, off=off) for name in names}


def _ignore(why: str, *names: str, flag: bool = False) -> dict[str, Foreign]:
    return {name: Foreign(why, flag=flag, ignored=True) for name in names}


_ONE_DEVICE = "training runs on one device"

FOREIGN: dict[str, Foreign] = {
    # What happens anyway, or is not needed here.
    **_ignore("attention is always torch's fused kernel", "xformers", "sdpa", "mem_eff_attn", flag=True),
    **_ignore("tensors are read one by one, straight to where they go", "lowram", "highvram", flag=True),
    **_ignore("files are read in the way that suits the disk", "disable_mmap_load_safetensors", flag=True),
    **_ignore(
        "entries of the cache are found by their content and need no check", "skip_cache_check", flag=True
    ),
    **_ignore("sizes of pictures are read from their headers, which is quick", "cache_info", flag=True),
    **_ignore("the configuration is always kept beside the curves", "log_config", flag=True),
    **_ignore("messages are plain text anyway", "console_log_simple", flag=True),
    **_ignore("texts are encoded with their batch", "text_encoder_batch_size"),
    # Keys that a GUI writes into its files and sd-scripts passes over.
    **_ignore("it is a GUI's own, and max_train_epochs is the option", "epoch"),
    **_ignore("it is a GUI's own, and noise_offset is the option", "noise_offset_type"),
    # Optimizers.
    **_refuse("use --optimizer_type AdamW8bit", "use_8bit_adam", flag=True),
    **_refuse("use --optimizer_type Lion", "use_lion_optimizer", flag=True),
    **_refuse(
        "does nothing for a LoRA, whose gradients are small; leave it out", "fused_backward_pass", flag=True
    ),
    **_refuse(
        "use --optimizer_type AdamWScheduleFree, RAdamScheduleFree or SGDScheduleFree",
        "optimizer_schedulefree_wrapper",
        flag=True,
    ),
    **_refuse("use --optimizer_args", "schedulefree_wrapper_args"),
    # Networks.
    **_refuse("use --unet_lr 0, which leaves the UNet out", "network_train_text_encoder_only", flag=True),
    # Data.
    **_refuse("is spelt caption_extension", "caption_extention"),
    **_refuse("use --random_crop; or cut the pictures around the faces before", "face_crop_aug_range"),
    **_refuse("use --print-config, which writes all options as TOML", "output_config", flag=True),
    **_refuse("captions come from text files; lora-clean writes them from other forms", "in_json"),
    **_refuse("repeats stand in the folders' names, as 10_name", "dataset_repeats", off=(1,)),
    **_refuse("classes of one's own are not loaded", "dataset_class"),
    **_refuse("use lora-check, which shows buckets and captions", "debug_dataset", flag=True),
    **_refuse("use --tokenizer_dir, a folder with vocab.json and merges.txt", "tokenizer_cache_dir"),
    # Speed and memory.
    **_refuse("is for larger models; use --gradient_checkpointing", "blocks_to_swap", off=(0,)),
    **_refuse("the step is not compiled; leave it out", "torch_compile", flag=True),
    **_refuse("the step is not compiled; leave it out", "dynamo_backend", off=("no", "inductor")),
    **_refuse("use --gradient_checkpointing", "cpu_offload_checkpointing", flag=True),
    **_refuse(_ONE_DEVICE, "ddp_timeout"),
    **_refuse(_ONE_DEVICE, "ddp_gradient_as_bucket_view", "ddp_static_graph", "deepspeed", flag=True),
    **_refuse(_ONE_DEVICE, "zero_stage", off=(2,)),
    **_refuse(_ONE_DEVICE, "zero3_init_flag", "zero3_save_16bit_model", flag=True),
    **_refuse(_ONE_DEVICE, "fp16_master_weights_and_gradients", flag=True),
    **_refuse(_ONE_DEVICE, "offload_optimizer_device", "offload_param_device", off=("none", "cpu")),
    **_refuse(_ONE_DEVICE, "offload_optimizer_nvme_path", "offload_param_nvme_path"),
    # Saving and going on.
    **_refuse("use --save_every_n_epochs", "save_n_epoch_ratio"),
    **_refuse(
        "run the same command again: it goes on where the run stopped", "initial_epoch", "initial_step"
    ),
    **_refuse(
        "run the same command again: it goes on where the run stopped", "skip_until_initial_step", flag=True
    ),
    **_refuse(
        "upload the finished file: hf upload OWNER/NAME FILE",
        "huggingface_repo_id",
        "huggingface_repo_type",
        "huggingface_path_in_repo",
        "huggingface_token",
        "huggingface_repo_visibility",
    ),
    **_refuse(
        "upload the finished file: hf upload OWNER/NAME FILE",
        "save_state_to_huggingface",
        "resume_from_huggingface",
        "async_upload",
        flag=True,
    ),
    # Logs.
    **_refuse("use -q for less, -v for more", "console_log_level", off=("INFO",)),
    **_refuse("send the messages to a file: lora-train ... 2> FILE", "console_log_file"),
    **_refuse(
        "curves are written for TensorBoard and as metrics.jsonl, which need no settings",
        "log_tracker_config",
    ),
}


@dataclass
class ForeignOptions:
    """Takes options that no settings class has; ``notes`` are those that were accepted and do nothing."""

    notes: list[str] = field(default_factory=list)

    def __call__(self, name: str, value: Any, place: str) -> bool:
        """Whether the option is one of sd-scripts'. Raises ConfigError for one that is refused."""
        row = FOREIGN.get(name)
        if row is None:
            return False
        if value in (None, False, "", (), *row.off) or value == []:
            return True
        if not row.ignored:
            where = f"{place}: " if place else ""
            raise ConfigError(f"{where}{name}: {row.why}")
        note = f"{name} is not needed: {row.why}"
        if note not in self.notes:
            self.notes.append(note)
        return True


def foreign_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds the options to a command, unseen in its help; :func:`given_options` reads them."""
    for name, row in reversed(FOREIGN.items()):
        settings: dict[str, Any] = {"hidden": True, "expose_value": False, "callback": _remember}
        if row.flag:
            function = click.option(f"--{name}", name, is_flag=True, default=None, **settings)(function)
        else:
            function = click.option(f"--{name}", name, cls=WordsOption, multiple=True, **settings)(function)
    return function


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        context.meta.setdefault(__name__, []).append((parameter.name, value))


def given_options(options: ForeignOptions) -> None:
    """Judge the options of the command line that is being run. Raises ConfigError for one that is refused."""
    for name, value in click.get_current_context().meta.get(__name__, []):
        number = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        options(name, int(number) if isinstance(number, str) and number.isdigit() else number, "")
