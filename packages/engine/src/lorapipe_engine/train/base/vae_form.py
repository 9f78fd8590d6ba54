"""What a user says of a VAE because its file cannot: scale and shift of its latents, and how its edges are padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True)
class VaeForm:
    """Latents are (z - ``shift``) · ``scale`` of what the VAE encodes; None leaves what the base has. ``reflects``: its
    convolutions see the picture mirrored beyond its edges, not black."""

    scale: float | None = None
    shift: float | None = None
    reflects: bool = False

    def apply(self, vae: Any) -> None:
        """Change a VAE in place. Raises ConfigError for one that has no such numbers."""
        numbers = {"scaling_factor": self.scale, "shift_factor": self.shift}
        given = {name: value for name, value in numbers.items() if value is not None}
        if given:
            if not hasattr(vae, "register_to_config") or "scaling_factor" not in vae.config:
                raise ConfigError("vae_custom_scale: this family's VAE has its own; leave it out")
            vae.register_to_config(**given)
        if self.reflects:
            for module in vae.modules():
                if isinstance(module, nn.Conv2d):
                    module.padding_mode = "reflect"


def padding_of(vae: nn.Module) -> str:
    """How a VAE's convolutions pad, where it is not the usual way; else nothing."""
    modes = {module.padding_mode for module in vae.modules() if isinstance(module, nn.Conv2d)}
    return ",".join(sorted(modes - {"zeros"}))
