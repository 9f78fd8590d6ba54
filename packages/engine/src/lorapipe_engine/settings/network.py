"""The LoRA itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.options import option
from lorapipe_engine.command.text import pairs_apart
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The LoRA."""

    network_module: str = option(
        "networks.lora",
        "Kind of network: networks.lora, networks.dylora, networks.lora_fa, networks.loha, networks.lokr, "
        "networks.oft, locon.locon_kohya, lycoris.kohya.",
    )
    algorithm: str | None = option(
        None,
        "The kind of network by its name, in the place of network_module: lora, locon, dylora, lora_fa, loha, lokr, "
        "ia3, full, oft, boft.",
    )
    network_dim: int | None = option(
        None,
        "Rank, the width of the network: lower makes a smaller file and learns slower. [default: 64 for SD 1.x "
        "and 2.x, 32 for SDXL]",
        min=1,
    )
    network_alpha: float | None = option(
        None,
        "Brake: the change is multiplied by alpha / dim, so that a lower alpha learns slower. [default: dim]",
        min=0,
    )
    network_args: tuple[str, ...] = option(
        (),
        "More of the network, as conv_dim=8 conv_alpha=4 rank_dropout=0.1 module_dropout=0.1, LoRA+ "
        "(loraplus_lr_ratio=16) and block-wise ranks and rates (block_dims=, down_lr_weight=, ...).",
    )
    network_weights: Path | None = option(
        None, "Go on training this LoRA file, at its own strength.", heading="What the LoRA begins with"
    )
    dim_from_weights: bool = option(False, "Take modules, ranks and alphas from network_weights.")
    base_weights: tuple[Path, ...] = option((), "Networks that are merged into the base before training.")
    base_weights_multiplier: tuple[float, ...] = option(
        (), "Strengths of the base_weights, in their order. [default: 1]"
    )
    network_dropout: float = option(
        0.0,
        "Share of the LoRA's inner values that each step leaves out at random, against learning by heart.",
        min=0,
        max=0.99,
        heading="How far the LoRA may go",
    )
    scale_weight_norms: float | None = option(
        None,
        "Hold the norm of every module's change under this, against burning; 0.9 to 1 if at all.",
        min=0,
        zero_is_off=True,
    )
    network_train_unet_only: bool = option(False, "Train the UNet, and leave the text encoders as they are.")
    network_train_text_encoder_only: bool = option(
        False, "Train the text encoders, and leave the UNet as it is."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "network_args", pairs_apart(self.network_args))
        if self.network_train_unet_only and self.network_train_text_encoder_only:
            raise ConfigError(
                "network_train_unet_only and network_train_text_encoder_only exclude each other; leave one of them out"
            )
