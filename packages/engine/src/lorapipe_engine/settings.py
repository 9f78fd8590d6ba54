"""Every option of ``lora-train``, in the parts that the engine's functions take.

A field is an option: its name is sd-scripts' (so a command line or TOML of its users runs), its type and help stand
here and nowhere else. Values left at None are decided by what the base model is (see :func:`with_base_defaults`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lorapipe_engine.config import option
from lorapipe_engine.errors import ConfigError

PRECISIONS = ("no", "fp16", "bf16")
SAVE_PRECISIONS = ("float", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model."""

    pretrained_model_name_or_path: str | None = option(
        None,
        "Base model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or 'demo'.",
        alias="base",
    )
    vae: str | None = option(None, "Use this VAE instead of the base model's.")
    v2: bool = option(False, "The base is SD 2.x (found out by itself; an error where it is not).")
    clip_skip: int | None = option(
        None,
        "Take the text encoder's N-th layer from the end. [default: 2 for SD 1.x, else the last]",
        min=1,
        max=12,
    )
    max_token_length: int = option(225, "Longest caption in tokens: 75, 150 or 225.", choices=(75, 150, 225))
    tokenizer_dir: Path | None = option(None, "Folder with vocab.json and merges.txt of the CLIP tokenizer.")
    mixed_precision: str | None = option(
        None,
        "Precision of the frozen model. [default: bf16 on a GPU that has it, else fp16; no on the CPU]",
        choices=PRECISIONS,
    )
    no_half_vae: bool = option(False, "Keep the VAE in float32.")
    gradient_checkpointing: bool = option(
        False, "Recompute activations: much less memory, a third more time."
    )
    device: str | None = option(None, "cuda, cuda:1, cpu, mps. [default: the GPU if there is one]")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Pictures, buckets and captions."""

    train_data_dir: Path | None = option(None, "Folder with subfolders N_concept of pictures and captions.")
    resolution: tuple[int, int] = option((512, 512), "Training size: one number, or width,height.")
    train_batch_size: int = option(1, "Pictures a step.", min=1)
    enable_bucket: bool = option(True, "Keep each picture's shape, in buckets of about the wanted area.")
    min_bucket_reso: int = option(256, "Shortest side of a bucket.", min=8)
    max_bucket_reso: int = option(1536, "Longest side of a bucket.", min=8)
    bucket_reso_steps: int = option(64, "Bucket sides are multiples of this.", min=8)
    bucket_no_upscale: bool = option(False, "Never enlarge a picture.")
    caption_extension: str = option(".txt", "Suffix of caption files (.txt and .caption are tried after it).")
    caption_separator: str = option(",", "What stands between tags.")
    shuffle_caption: bool = option(False, "Shuffle the tags anew for every step.")
    keep_tokens: int = option(0, "Tags at the front that stay in place.", min=0)
    keep_tokens_separator: str = option("", "Tags before this mark stay in place.")
    caption_dropout_rate: float = option(0.0, "Share of steps trained with an empty caption.", min=0, max=1)
    caption_tag_dropout_rate: float = option(0.0, "Chance of each tag to be left out.", min=0, max=1)
    caption_prefix: str = option("", "Text put before every caption.")
    caption_suffix: str = option("", "Text put after every caption.")
    flip_aug: bool = option(False, "Train mirrored pictures too, half of the time.")
    cache_latents: bool = option(True, "Latents are always cached; accepted for sd-scripts' command lines.")
    cache_latents_to_disk: bool = option(False, "Keep the latents for later runs, in the cache folder.")
    cache_dir: Path | None = option(None, "Where cached latents lie. [default: the user's cache folder]")
    vae_batch_size: int = option(1, "Pictures encoded at once.", min=1)
    max_data_loader_n_workers: int = option(0, "Not needed (latents stay in memory); accepted.", min=0)
    persistent_data_loader_workers: bool = option(False, "Not needed; accepted.")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The LoRA."""

    network_module: str = option("networks.lora", "Kind of network.", choices=("networks.lora",))
    network_dim: int | None = option(None, "Rank. [default: 64 for SD 1.x and 2.x, 32 for SDXL]", min=1)
    network_alpha: float | None = option(None, "Strength is alpha / dim. [default: dim]", min=0)
    network_args: tuple[str, ...] = option((), "conv_dim=, conv_alpha=, rank_dropout=, module_dropout=.")
    network_dropout: float = option(0.0, "Dropout of the LoRA's inner values.", min=0, max=0.99)
    network_train_unet_only: bool = option(False, "Leave the text encoders as they are.")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the network is updated."""

    optimizer_type: str = option("AdamW", "Optimizer.")
    optimizer_args: tuple[str, ...] = option((), "Its arguments, as weight_decay=0.01 betas=0.9,0.99.")
    learning_rate: float | None = option(
        None, "Rate of every part without its own. [default: the optimizer's]", min=0
    )
    unet_lr: float | None = option(None, "Rate of the UNet. [default: learning_rate]", min=0)
    text_encoder_lr: float | None = option(
        None,
        "Rate of the text encoders. [default: half of unet_lr; the rate itself where learning_rate is given]",
        min=0,
    )
    lr_scheduler: str = option("cosine", "Curve of the rate.")
    lr_warmup_steps: float | None = option(
        None, "Warm-up: steps, or a share of the run below 1. [default: 0.05; 0 for constant]", min=0
    )
    lr_scheduler_num_cycles: float = option(
        1.0, "Cycles of cosine_with_restarts (n cycles are n-1 restarts).", min=0
    )
    lr_scheduler_power: float = option(
        1.0, "Power of polynomial; under 1 keeps the rate high for longer.", min=0
    )
    max_grad_norm: float = option(1.0, "Clip the gradient to this norm; 0 leaves it.", min=0)
    gradient_accumulation_steps: int = option(1, "Batches for one update.", min=1)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The training objective; :mod:`lorapipe_engine.train.loss` works with it."""

    v_parameterization: bool | None = option(
        None, "The base predicts v (SD 2.x 768). [default: what the file tells, else epsilon]"
    )
    min_snr_gamma: float | None = option(
        None, "Min-SNR weighting. [default: 5 for epsilon models; 0 is off]", min=0
    )
    zero_terminal_snr: bool = option(False, "Noise schedule that ends in pure noise.")
    debiased_estimation_loss: bool = option(False, "Debiased estimation weighting.")
    scale_v_pred_loss_like_noise_pred: bool = option(False, "Weigh v losses like epsilon losses.")
    v_pred_like_loss: float | None = option(None, "Weigh epsilon losses like v losses, this strongly.", min=0)
    noise_offset: float | None = option(None, "Offset noise; 0.05 to 0.1 if at all.", min=0)
    noise_offset_random_strength: bool = option(False, "Draw the offset's strength anew each step.")
    adaptive_noise_scale: float | None = option(None, "Offset grows with the picture's mean.")
    multires_noise_iterations: int = option(0, "Levels of multi-resolution noise.", min=0)
    multires_noise_discount: float = option(0.3, "How much each level counts.", min=0, max=1)
    ip_noise_gamma: float | None = option(None, "Input perturbation.", min=0)
    ip_noise_gamma_random_strength: bool = option(False, "Draw its strength anew each step.")
    loss_type: str = option("l2", "Loss.", choices=("l2", "l1", "huber", "smooth_l1"))
    huber_schedule: str = option(
        "snr", "Huber threshold's curve.", choices=("snr", "exponential", "constant")
    )
    huber_c: float = option(0.1, "Huber threshold.", min=0)
    huber_scale: float = option(1.0, "Factor of the Huber threshold.", min=0)
    min_timestep: int = option(0, "First timestep.", min=0, max=999)
    max_timestep: int = option(1000, "Timesteps end before this one.", min=1, max=1000)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Length, results and records of the run."""

    output_dir: Path = option(Path("output"), "Folder for the results.")
    output_name: str = option("last", "Name of the results, without suffix.")
    save_precision: str | None = option(
        None,
        "Precision of saved files. [default: bf16 where trained in bf16, else fp16]",
        choices=SAVE_PRECISIONS,
    )
    save_every_n_epochs: int | None = option(1, "Save after every N epochs.", min=1)
    save_every_n_steps: int | None = option(None, "Save after every N steps.", min=1)
    save_last_n_epochs: int | None = option(None, "Keep only the last N epoch files.", min=1)
    save_last_n_steps: int | None = option(None, "Keep only step files of the last N steps.", min=1)
    max_train_epochs: int | None = option(None, "Length in epochs; goes before max_train_steps.", min=1)
    max_train_steps: int = option(1600, "Length in optimizer steps.", min=1)
    seed: int = option(42, "Seed of every random draw.", min=0)
    sample_prompts: Path | None = option(None, "File of prompts to draw during training.")
    sample_every_n_epochs: int | None = option(None, "Draw samples after every N epochs.", min=1)
    sample_every_n_steps: int | None = option(None, "Draw samples after every N steps.", min=1)
    sample_at_first: bool = option(False, "Draw samples before the first step.")
    sample_sampler: str = option("ddim", "Sampler of the samples.")
    logging_dir: Path | None = option(None, "TensorBoard folder. [default: OUTPUT_DIR/logs]")
    log_prefix: str = option("", "Put before the log folder's name.")
    training_comment: str | None = option(None, "Comment for the metadata.")
    no_metadata: bool = option(False, "Keep only the few metadata that programs need.")
    metadata_title: str | None = option(None, "Title in the metadata.")
    metadata_author: str | None = option(None, "Author in the metadata.")
    metadata_description: str | None = option(None, "Description in the metadata.")
    metadata_license: str | None = option(None, "Licence in the metadata.")
    metadata_tags: str | None = option(None, "Tags in the metadata.")
    metadata_trigger_phrase: str | None = option(None, "Trigger words in the metadata.")
    overwrite: bool = option(False, "Replace results of an earlier run with the same name.", alias="force")

    @property
    def logs(self) -> Path:
        """The TensorBoard folder."""
        return self.logging_dir or self.output_dir / "logs"

    def __post_init__(self) -> None:
        if not self.output_name or Path(self.output_name).name != self.output_name:
            raise ConfigError(
                f"output_name: '{self.output_name}' is not a plain file name; folders go in output_dir"
            )


PARTS = (ModelSettings, DataSettings, NetworkSettings, OptimizerSettings, LossSettings, RunSettings)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The parts together, as one value to build and print; functions take the parts that they use."""

    model: ModelSettings
    data: DataSettings
    network: NetworkSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    run: RunSettings


def with_base_defaults(
    settings: TrainSettings, family: str, v_prediction: bool, encoder_layer: int | None
) -> TrainSettings:
    """Fill what depends on the base: clip skip, rank, alpha, min-SNR.

    ``encoder_layer`` is the clip skip that the base's own metadata asks for, if it does.
    """
    clip_skip = settings.model.clip_skip or encoder_layer or (2 if family == "sd1" else None)
    rank = settings.network.network_dim or (32 if family == "sdxl" else 64)
    alpha = settings.network.network_alpha if settings.network.network_alpha is not None else float(rank)
    gamma = settings.loss.min_snr_gamma
    if gamma is None and not v_prediction:
        gamma = 5.0
    return replace(
        settings,
        model=replace(settings.model, clip_skip=None if family == "sdxl" else clip_skip),
        network=replace(settings.network, network_dim=rank, network_alpha=alpha),
        loss=replace(settings.loss, v_parameterization=v_prediction, min_snr_gamma=gamma or None),
    )
