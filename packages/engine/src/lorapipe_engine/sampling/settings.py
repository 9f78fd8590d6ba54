"""What ``lora-sample`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.modes import Mode, flag
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AxesSettings:
    """Axes"""

    x: str | None = flag(
        None,
        "Columns, as file:run/*.safetensors; values as in A1111's X/Y/Z plot.",
        "--x",
        metavar="AXIS:VALUES",
    )
    y: str | None = flag(
        None, 'Rows, as "weight:0.7-1.5 [5]" or "seed:-1--1 [8]".', "--y", metavar="AXIS:VALUES"
    )
    sheets: tuple[str, ...] = flag(
        (), "A further axis; may be repeated.", "--sheet", "--z", metavar="AXIS:VALUES"
    )
    base_column: bool = flag(
        True,
        "Compare with the base model by itself: None before the networks, or weight 0.",
        opposite="no-base-column",
    )


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """A ready plan: --probe NAME [NETWORK]..."""

    probe: str | None = flag(
        None,
        "Of the guide's questions: weight, seeds, leak, text-encoder, headroom, resize, merge, or trigger=WORD,WORD.",
        metavar="NAME",
    )
    trigger: str | None = flag(
        None, "The network's trigger words, which leak takes out of the prompt.", metavar="WORDS"
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The models"""

    base: str | None = flag(
        None,
        "Base model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or demo.",
        *("--base", "--pretrained-model-name-or-path", "--ckpt"),
    )
    vae: str | None = flag(None, "Use this VAE instead of the base model's.", metavar="FILE")
    flow_model: bool = flag(
        False, "The base predicts rectified flow, as its file seldom tells.  [default: what the file tells]"
    )
    flow_shift: float | None = flag(
        None, "Shift of a flow model's steps; above 1 more of them are noisy.  [default: 3]", min=0.001
    )
    vae_scale: float | None = flag(
        None, "Factor of the VAE's latents, as 0.1406 of an EQ-VAE.  [default: the base's]", min=1e-6
    )
    vae_shift: float | None = flag(
        None, "Shift of the VAE's latents, taken off before they are scaled.  [default: the base's]"
    )
    vae_reflection: bool = flag(False, "The VAE was trained with mirrored edges.")
    v_prediction: bool | None = flag(
        None,
        "The base predicts v, or noise.  [default: what its files say]",
        *("--v-prediction", "--v-parameterization"),
        opposite="no-v-prediction",
    )
    zero_terminal_snr: bool | None = flag(
        None,
        "Begin at pure noise, as some bases of v-prediction are trained.  [default: what its files say]",
        opposite="no-zero-terminal-snr",
    )
    network: tuple[str, ...] = flag(
        (), "A network in every picture, with its strength; may be repeated.", metavar="FILE[:WEIGHT]"
    )
    lora_dir: tuple[Path, ...] = flag(
        (), "A folder whose networks prompts may name in <lora:NAME:0.8>; may be repeated.", metavar="DIR"
    )


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """The pictures"""

    prompt: str = flag("", "What to draw: A1111's weights, BREAK, <lora:NAME:0.8>, {a|b}, __wildcards__.")
    negative: str = flag("", "What the picture is not to show.", "--negative", "--negative-prompt")
    wildcards: tuple[Path, ...] = flag(
        (), "A folder of .txt files for __name__; may be repeated.", metavar="DIR"
    )
    seed: int = flag(
        -1, "Which noise a picture begins with: equal seeds, equal noise; -1 is drawn, once for all cells."
    )
    draw_seed: int = flag(0, "Where seeds of -1 come from: equal numbers draw equal seeds.")
    steps: int = flag(
        20,
        "How often a picture is refined; more takes longer and changes little from some 30 on.",
        min=1,
        max=1000,
    )
    cfg: float = flag(
        7.0,
        "How closely the prompt is followed (classifier-free guidance).",
        "--cfg",
        "--cfg-scale",
        "--scale",
    )
    sampler: str | None = flag(
        None,
        "How pictures are drawn from noise: A1111's name, in any case, or ComfyUI's or sd-scripts'.  [default: "
        "Euler a; flow models: Euler]",
    )
    schedule: str = flag(
        "Automatic", "How the noise falls over the steps, as Karras.", "--schedule", "--scheduler"
    )
    eta: float | None = flag(
        None, "Share of noise in ancestral, SDE and DDIM steps.  [default: 1; DDIM: 0]", min=0
    )
    size: str | None = flag(
        None, "Width and height in pixels.  [default: what the base was trained on]", metavar="WxH"
    )
    clip_skip: int = flag(1, "Take the text encoder's N-th layer from the end.", min=1, max=12)
    network_clip_skip: bool = flag(
        False,
        "Take the clip skip that the networks say they were trained with; where they say none, --clip-skip.",
    )


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """The drawing"""

    batch_size: int | None = flag(
        None,
        "Pictures that are drawn at once.  [default: by a card's free memory; 4 on the CPU]",
        min=1,
        max=256,
    )
    vae_precision: Literal["float", "bf16", "fp16"] | None = flag(
        None, "Numbers in which pictures are decoded.  [default: fp16 on a card, float on the CPU]"
    )
    no_half_vae: bool = flag(False, "Decode in float32, as --vae-precision float does.")
    device: str | None = flag(
        None, "Where pictures are drawn, as cuda:1 or cpu.  [default: a GPU if there is one]", metavar="NAME"
    )
    tokenizer_dir: Path | None = flag(
        None, "Folder with vocab.json and merges.txt of the base's tokenizer.", metavar="DIR"
    )
    overwrite: bool = flag(
        False, "Replace pictures of other parameters. Those of the same are not drawn again either way."
    )

    def __post_init__(self) -> None:
        if self.no_half_vae and self.vae_precision not in (None, "float"):
            raise ConfigError(
                f"--no-half-vae is --vae-precision float, not {self.vae_precision}; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """The result"""

    plan: Path | None = flag(
        None, "TOML or JSON file of these options; the command line overrides it.", metavar="FILE"
    )
    output_dir: Path = flag(
        Path("samples"), "Folder that the pictures are written to.", "-o", "--output-dir", metavar="DIR"
    )
    image_format: Literal["png", "webp", "jpg"] = flag(
        "png", "Kind of picture files; all hold the parameters.", "--format"
    )
    dry_run: bool = flag(False, "Count, and print a record for each cell; draw nothing.", "-n", "--dry-run")
    as_json: bool = flag(False, "Print records as JSON on a terminal too.", "--json")


MODES = (
    Mode("a plan of axes", (AxesSettings, ModelSettings, PictureSettings, DrawSettings, ResultSettings)),
    Mode(
        "--probe", (ProbeSettings, ModelSettings, PictureSettings, DrawSettings, ResultSettings), by="probe"
    ),
)
