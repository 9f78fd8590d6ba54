"""The keys of kohya_ss' presets that are no options of the trainer, by what they are for."""

from __future__ import annotations

RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
}
# The GUI hands these on for SDXL alone.
OF_SDXL = frozenset({"sdxl_no_half_vae", "sdxl_cache_text_encoder_outputs"})
# The GUI's own, of which nothing reaches the training.
OWN = frozenset(
    {
        *("model_list", "save_as_bool", "save_as", "file_path", "headless"),
        *("no_token_padding", "extra_accelerate_launch_args", "caption_metadata_filename", "print_only"),
        *("latent_metadata_filename", "full_path", "use_latent_files", "training_preset", "lowvram"),
        *("num_cpu_threads_per_process", "main_process_port", "dynamo_mode"),
        *("create_caption", "create_buckets"),
    }
)
# The base says it itself.
OF_BASE = frozenset({"sdxl", "sdxl_checkbox"})
# What every family but SD 1.x, 2.x and SDXL is chosen by ends so.
CHECKBOX = "_checkbox"
_OTHER_FAMILIES = ("flux1_", "sd3_", "anima_", "lumina_", "hunyuan_", "chroma_")
# Keys of those families that begin with no name of theirs. The GUI writes them into every preset.
_OF_OTHER_FAMILIES = frozenset(
    {
        *("ae", "apply_t5_attn_mask", "attn_mode", "blocks_to_swap", "byt5", "clip_g", "clip_l"),
        *("clip_g_dropout_rate", "clip_l_dropout_rate", "cpu_offload_checkpointing", "discrete_flow_shift"),
        *("double_blocks_to_swap", "enable_all_linear", "enable_scaled_pos_embed", "gemma2"),
        *("gemma2_max_token_length", "ggpo_beta", "ggpo_sigma", "guidance_scale", "img_attn_dim"),
        *("img_mlp_dim", "img_mod_dim", "in_dims", "llm_adapter_path", "logit_mean", "logit_std"),
        *(
            "mem_eff_save",
            "mode_scale",
            "model_prediction_type",
            "model_type",
            "pos_emb_random_crop_rate",
            "qwen3",
        ),
        *("qwen3_max_token_length", "sample_batch_size", "save_clip", "save_t5xxl", "show_timesteps"),
        *("show_timesteps_resolution", "sigmoid_scale", "single_blocks_to_swap", "single_dim"),
        *("single_mod_dim", "split_attn", "split_mode", "split_qkv", "system_prompt", "t5_dropout_rate"),
        *("t5_max_token_length", "t5_tokenizer_path", "t5xxl", "t5xxl_device", "t5xxl_dtype", "t5xxl_lr"),
        *("t5xxl_max_token_length", "text_encoder", "timestep_sampling", "train_blocks"),
        *("train_double_block_indices", "train_lora_ggpo", "train_single_block_indices", "train_t5xxl"),
        *("txt_attn_dim", "txt_mlp_dim", "txt_mod_dim", "unsloth_offload_checkpointing"),
        *("use_flash_attn", "use_sage_attn", "vae_chunk_size", "vae_disable_cache", "weighting_scheme"),
    }
)
# Numbers of which the GUI leaves 0 out, so that the trainer's default holds.
ZERO_IS_NONE = frozenset(
    {
        *("save_every_n_steps", "save_last_n_steps", "save_last_n_steps_state"),
        *("save_last_n_epochs", "save_last_n_epochs_state", "max_train_epochs", "max_train_steps"),
        *("vae_batch_size", "scale_weight_norms", "seed", "adaptive_noise_scale", "max_timestep"),
        *("sample_every_n_steps", "sample_every_n_epochs", "noise_offset", "ip_noise_gamma"),
        *("v_pred_like_loss", "network_alpha", "max_token_length", "prior_loss_weight"),
        *("num_processes", "num_machines"),
    }
)
# Keys that a preset of another tab has, and the tab.
OF_TABS = {
    "num_vectors_per_token": "textual inversion",
    "leco_denoise_guidance_scale": "LECO sliders, which --slider trains here",
    "prompts_file": "LECO sliders, which --slider trains here",
}


def is_of_other_family(key: str) -> bool:
    """Whether a key says something of FLUX.1, SD3 and the like alone."""
    return key in _OF_OTHER_FAMILIES or key.startswith(_OTHER_FAMILIES)


# ------------------------------------------------------------------------------- arguments of the network

# LoRA_type -> network_module and, of LyCORIS, the algorithm.
TYPES = {
    "Standard": ("networks.lora", None),
    "Kohya LoCon": ("networks.lora", None),
    "Kohya DyLoRA": ("networks.dylora", None),
    "Kohya LoHa": ("networks.loha", None),
    "Kohya LoKr": ("networks.lokr", None),
    "LoRA-FA": ("networks.lora_fa", None),
    # The GUI opens the first as the second.
    "LoCon": ("lycoris.kohya", "locon"),
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
CONV = ("conv_dim", "conv_alpha")
_DROPOUTS = ("rank_dropout", "module_dropout")
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
)
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_KOHYA = (*_DROPOUTS, *_BLOCKS, *_PLUS)
_LYCORIS = (*_DROPOUTS, "rank_dropout_scale", "train_norm", *_PLUS)
_WITH_CONV = (*_LYCORIS, *CONV, "use_tucker")
_FACTORED = (*_WITH_CONV, "use_scalar", "dora_wd", "bypass_mode")
_OFT = (*_WITH_CONV, "constrain", "rescaled")
# The arguments that the GUI hands on for a type; it shows no others.
OF_TYPE: dict[str, tuple[str, ...]] = {
    "Standard": _KOHYA,
    "Kohya LoCon": (*_KOHYA, *CONV),
    "Kohya DyLoRA": (*_KOHYA, *CONV, "unit"),
    "Kohya LoHa": (*_DROPOUTS, *_PLUS, *CONV, "use_tucker"),
    "Kohya LoKr": (*_DROPOUTS, *_PLUS, *CONV, "use_tucker", "factor"),
    "LoRA-FA": _KOHYA,
    "LoCon": _FACTORED,
    "LyCORIS/LoCon": _FACTORED,
    "LyCORIS/LoHa": _FACTORED,
    "LyCORIS/LoKr": (*_FACTORED, "factor", "decompose_both", "full_matrix"),
    "LyCORIS/iA3": ("train_on_input", *_PLUS),
    "LyCORIS/DyLoRA": (*_WITH_CONV, "unit"),
    "LyCORIS/BOFT": _OFT,
    "LyCORIS/Diag-OFT": _OFT,
    "LyCORIS/GLoRA": _WITH_CONV,
    "LyCORIS/GLoKr": (*_FACTORED, "factor", "decompose_both", "full_matrix"),
    "LyCORIS/Native Fine-Tuning": _LYCORIS,
}
ARGUMENTS = frozenset(name for names in OF_TYPE.values() for name in names)
# Keys of an argument in older presets.
OLD_ARGUMENTS = {"use_cp": "use_tucker", "conv_dims": "conv_block_dims", "conv_alphas": "conv_block_alphas"}
SPELT = {"constrain": "constraint"}
SPELT_BY_LYCORIS = {**SPELT, "unit": "block_size"}
