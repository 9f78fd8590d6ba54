"""sd-scripts' options that this engine has under no such name: each is known, and says what it means here, why it is
not needed, or what to use in its place.

How they are judged: :mod:`lorapipe_engine.command.foreign`. An option that the engine learns moves from here to its
settings class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorapipe_engine.command.foreign import Foreign, ignored, items_of, obeyed, refused
from lorapipe_engine.errors import ConfigError

_OF_DEEPSPEED = "it is DeepSpeed's, which is not used here"
_NO_DDP = "several cards work without DDP here"
_NOT_COMPILED = "it changes speed alone, and the step has kernels of its own"
_CACHED = "latents are always cached, and stay in memory"
_CARDS = "is accelerate's; several cards: torchrun --no_python --nproc_per_node N lora-train ..."
# Where sd-scripts keeps the tokenizer in the folder of its cache.
_CACHED_TOKENIZERS = ("", "openai_clip-vit-large-patch14")


def _tokenizer(value: Any) -> dict[str, Any]:
    """The tokenizer in sd-scripts' folder of them; nothing where it was not downloaded yet."""
    for name in _CACHED_TOKENIZERS:
        folder = Path(str(value)).expanduser() / name
        if any((folder / file).is_file() for file in ("vocab.json", "tokenizer.json")):
            return {"tokenizer_dir": str(folder)}
    return {}


def _card(value: Any) -> dict[str, Any]:
    """The one card that is named. Raises ConfigError for several."""
    names = [str(name) for name in value] if isinstance(value, list | tuple) else str(value).split(",")
    if len(names) > 1 or not names[0].strip().isdigit():
        raise ConfigError(f"{_CARDS}; of one card its number")
    return {"device": f"cuda:{int(names[0])}"}


FOREIGN: dict[str, Foreign] = {
    # What happens anyway, or is not needed here.
    **ignored("attention is always torch's fused kernel", "xformers", "sdpa", "mem_eff_attn", flag=True),
    **ignored(
        "attention is always torch's fused kernel", "flash_attn", "sage_attn", "diffusers_xformers", flag=True
    ),
    **ignored("attention is always torch's fused kernel", "attn_mode"),
    **ignored("tensors are read one by one, straight to where they go", "lowram", "highvram", flag=True),
    **ignored("files are read in the way that suits the disk", "disable_mmap_load_safetensors", flag=True),
    **ignored(_CACHED, "cache_latents", "persistent_data_loader_workers", flag=True),
    **ignored(_CACHED, "max_data_loader_n_workers"),
    **ignored(
        "entries of the cache are found by their content and need no check", "skip_cache_check", flag=True
    ),
    **ignored("sizes of pictures are read from their headers, which is quick", "cache_info", flag=True),
    **ignored("the configuration is always kept beside the curves", "log_config", flag=True),
    **ignored("messages are plain text anyway", "console_log_simple", flag=True),
    **ignored("texts are encoded with their batch", "text_encoder_batch_size"),
    **ignored("a flow model's times always have fractions", "flow_continuous_timesteps", flag=True),
    # Keys that a GUI writes into its files and sd-scripts passes over.
    **ignored("it is a GUI's own, and max_train_epochs is the option", "epoch"),
    **ignored("it is a GUI's own, and noise_offset is the option", "noise_offset_type"),
    **ignored("the base says it itself", "sdxl", flag=True),
    # Optimizers.
    **obeyed(
        "taken as optimizer_type AdamW8bit",
        "use_8bit_adam",
        lambda _: {"optimizer_type": "AdamW8bit"},
        flag=True,
    ),
    **obeyed(
        "taken as optimizer_type Lion", "use_lion_optimizer", lambda _: {"optimizer_type": "Lion"}, flag=True
    ),
    **obeyed(
        "taken as lr_scheduler_num_cycles",
        "lr_restart_cycles",
        lambda value: {"lr_scheduler_num_cycles": value},
    ),
    **items_of("text_encoder_lr", "text_encoder_lr1", "text_encoder_lr2"),
    **ignored("it saves memory of large gradients, and a LoRA's are small", "fused_backward_pass", flag=True),
    **refused(
        "use --optimizer_type AdamWScheduleFree, RAdamScheduleFree or SGDScheduleFree",
        "optimizer_schedulefree_wrapper",
        flag=True,
    ),
    **refused("use --optimizer_args", "schedulefree_wrapper_args"),
    # sd-scripts' programs for whole models.
    **refused("is of training whole models; use --text_encoder_lr", "learning_rate_te"),
    **refused(
        "is of training whole models; use --text_encoder_lr with two values",
        "learning_rate_te1",
        "learning_rate_te2",
    ),
    **refused(
        "is of training whole models; a LoRA's text encoders are trained unless --network_train_unet_only is given",
        "train_text_encoder",
        flag=True,
    ),
    **refused(
        "is of training whole models; use down_lr_weight, mid_lr_weight, up_lr_weight in network_args",
        "block_lr",
    ),
    **ignored(
        "it saves memory of whole models' optimizers", "fused_optimizer_groups", "blockwise_fused_optimizers"
    ),
    **refused("is of training whole models; use --ema_decay 0.999 for an average", "use_ema", flag=True),
    **ignored("captions are always padded to their chunk", "no_token_padding", flag=True),
    **refused(
        "is of textual inversion; lora-train makes LoRA networks", "token_string", "num_vectors_per_token"
    ),
    # Data.
    **obeyed("taken as caption_extension", "caption_extention", lambda value: {"caption_extension": value}),
    **refused("use --random_crop; or cut the pictures around the faces before", "face_crop_aug_range"),
    **refused("use --print-config, which writes all options as TOML", "output_config", flag=True),
    **refused("classes of one's own are not loaded", "dataset_class"),
    **refused("use lora-check, which shows buckets and captions", "debug_dataset", flag=True),
    **obeyed(
        "the tokenizer is taken from there if it is in it (tokenizer_dir names its folder)",
        "tokenizer_cache_dir",
        _tokenizer,
    ),
    # Speed and memory.
    **ignored(
        "it is for larger models; gradient_checkpointing saves memory here", "blocks_to_swap", off=(0,)
    ),
    **ignored(_NOT_COMPILED, "torch_compile", "compile", "compile_fullgraph", flag=True),
    **ignored(_NOT_COMPILED, "dynamo_backend", off=("no", "inductor")),
    **ignored(
        _NOT_COMPILED, "compile_backend", "compile_mode", "compile_dynamic", "compile_cache_size_limit"
    ),
    **refused("use --gradient_checkpointing", "cpu_offload_checkpointing", flag=True),
    **ignored(_NO_DDP, "ddp_timeout"),
    **ignored(_NO_DDP, "ddp_gradient_as_bucket_view", "ddp_static_graph", flag=True),
    **refused("it is not used here, each card has the whole base: leave it out", "deepspeed", flag=True),
    **ignored(_OF_DEEPSPEED, "zero_stage"),
    **ignored(_OF_DEEPSPEED, "zero3_init_flag", "zero3_save_16bit_model", flag=True),
    **ignored(_OF_DEEPSPEED, "fp16_master_weights_and_gradients", flag=True),
    **ignored(_OF_DEEPSPEED, "offload_optimizer_device", "offload_param_device", off=("none",)),
    **ignored(_OF_DEEPSPEED, "offload_optimizer_nvme_path", "offload_param_nvme_path"),
    # Other families.
    **refused(
        "is of FLUX, SD3 and the like, which are not trained here; leave it out for SD 1.x, 2.x and SDXL",
        *("guidance_scale", "training_shift", "model_prediction_type"),
        *("t5xxl", "clip_l", "clip_g", "ae", "t5xxl_max_token_length", "t5xxl_device", "t5xxl_dtype"),
        *("network_reg_dims", "network_reg_lrs", "qwen3", "gemma2", "train_blocks", "model_type"),
    ),
    **refused(
        "is of FLUX, SD3 and the like, which are not trained here; leave it out for SD 1.x, 2.x and SDXL",
        *("apply_t5_attn_mask", "split_mode", "split_qkv", "train_t5xxl"),
        flag=True,
    ),
    **refused("masks of inpainting models are not trained here; leave it out", "train_inpainting", flag=True),
    # Saving and going on.
    **refused("run the same command again: it goes on where the run stopped", "initial_epoch", off=(1,)),
    **refused("run the same command again: it goes on where the run stopped", "initial_step", off=(0,)),
    **refused(
        "run the same command again: it goes on where the run stopped", "skip_until_initial_step", flag=True
    ),
    **refused("upload the finished file: hf upload OWNER/NAME FILE", "huggingface_repo_id"),
    **ignored(
        "nothing is uploaded without huggingface_repo_id",
        "huggingface_repo_type",
        "huggingface_path_in_repo",
        "huggingface_token",
        "huggingface_repo_visibility",
    ),
    **ignored(
        "nothing is uploaded without huggingface_repo_id",
        "save_state_to_huggingface",
        "async_upload",
        flag=True,
    ),
    **refused("download the state, and name it with resume", "resume_from_huggingface", flag=True),
    # Words for accelerate launch, which starts sd-scripts.
    **ignored(
        "it is accelerate's; lora-train sets up its own processes and threads",
        "num_cpu_threads_per_process",
        "main_process_port",
        "machine_rank",
        "dynamo_mode",
        "extra_accelerate_launch_args",
    ),
    **ignored(
        "it is accelerate's; lora-train sets up its own processes and threads",
        "dynamo_use_fullgraph",
        "dynamo_use_dynamic",
        flag=True,
    ),
    **obeyed("the card is taken as device", "gpu_ids", _card, off=("all", "0", 0, ["0"], [0])),
    **refused(_CARDS, "num_processes", "num_machines", off=(1,)),
    **refused(_CARDS, "multi_gpu", flag=True),
    # Logs.
    **ignored("-q says less, -v says more", "console_log_level", off=("INFO",)),
    **refused("send the messages to a file: lora-train ... 2> FILE", "console_log_file"),
    **ignored("curves need no settings of their programs", "log_tracker_config"),
}
