"""The base model and how it is computed with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.options import option

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model."""

    pretrained_model_name_or_path: str | None = option(
        None,
        "Base model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or 'demo'.",
        alias="base",
    )
    vae: str | None = option(None, "Use this VAE instead of the base model's.")
    vae_custom_scale: float | None = option(
        None, "Scale of the VAE's latents, as 0.1406 of an EQ-VAE. [default: the base's]", min=1e-6
    )
    vae_custom_shift: float | None = option(
        None, "Shift of the VAE's latents, taken off before they are scaled. [default: the base's]"
    )
    vae_reflection_padding: bool = option(False, "The VAE was trained with mirrored edges.")
    v2: bool = option(False, "The base is SD 2.x (found out by itself; an error where it is not).")
    clip_skip: int | None = option(
        None,
        "Take the text encoder's N-th layer from the end. [default: 2 for SD 1.x, else the last]",
        min=1,
        max=12,
        taken_as={"0": 1},
    )
    max_token_length: int | None = option(
        None,
        "How much of a caption is read, in tokens: 75, 150 or 225; what is longer is cut. [default: 225]",
        choices=(75, 150, 225),
        # sd-scripts cuts into 75 tokens what is longer, and without a number; a GUI begins with 255.
        taken_as={"255": 225, "77": 75, "0": 75},
    )
    tokenizer_dir: Path | None = option(None, "Folder with vocab.json and merges.txt of the CLIP tokenizer.")
    mixed_precision: str | None = option(
        None,
        "Number type in which the frozen model is computed. [default: bf16 on a GPU that has it, else fp16; no "
        "on the CPU]",
        choices=PRECISIONS,
        taken_as={"fp32": "no", "float32": "no", "float": "no", "float16": "fp16", "bfloat16": "bf16"},
        heading="Precision, memory and device",
    )
    full_bf16: bool = option(
        False,
        "Round the network and its gradients to bf16 in every step; small steps are lost. Seldom wanted.",
    )
    full_fp16: bool = option(
        False, "Round the network and its gradients to fp16 in every step, as full_bf16 does to bf16."
    )
    no_half_vae: bool = option(
        False, "Compute the VAE in float32, for one that gives black pictures in half precision."
    )
    fp8_base: bool = option(
        False, "Keep the frozen UNet's and text encoders' weights in 8 bits: half the memory, a little blur."
    )
    fp8_base_unet: bool = option(
        False, "Keep the frozen UNet's weights in 8 bits, and the text encoders' as they are."
    )
    quantize_base: str | None = option(
        None,
        "Keep the frozen weights as whole numbers of 8 bits, or in 4 (NF4, with bitsandbytes), which is a quarter.",
        choices=("int8", "nf4"),
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations: much less memory, a third more time."
    )
    step_capture: str = option(
        "auto", "Capture the step as a CUDA graph, which is much faster.", choices=("auto", "off")
    )
    vram: str | None = option(
        None,
        "Fit the run to a card of so many GiB, by options that are not given: auto is this card's free memory.",
        choices=("8", "12", "16", "24", "auto"),
    )
    ignore_memory: bool = option(False, "Train even where the card's memory is said to be too small.")
    device: str | None = option(
        None, "Where the run is computed: cuda, cuda:1, cpu, mps. [default: the GPU if there is one]"
    )
