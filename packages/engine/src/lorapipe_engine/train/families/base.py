"""What the training loop and the sampler need of a model family.

Shapes: B pictures, H x W pixels, h x w latents (H / ``latent_factor``, W / ``latent_factor``) of C channels. Every
tensor that goes in may lie on any device; what comes out lies on ``device``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorapipe_engine.models import keys
from lorapipe_engine.models.families import get_family
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.base.modules import place
from lorapipe_engine.train.families.text import Conditioning, TextEncoder
from lorapipe_engine.train.objective.objective import Objective, objective_class


class TargetModule(NamedTuple):
    """A module that may take a LoRA: part ("te1", "unet"), canonical path (see ``keys``), itself."""

    part: str
    path: str
    module: nn.Module


class Family(ABC):
    """A frozen base model on a device, behind one interface for every family.

    ``dtype`` is the precision of denoiser and text encoders, ``vae_dtype`` that of the VAE (None: the same).
    ``max_token_length`` and ``clip_skip`` are for the text encoders (see :meth:`make_text`). ``waiting``: denoiser and
    text encoders stay on the CPU until they are moved, so that the VAE has the device for itself.
    """

    name: ClassVar[str]

    def __init__(
        self,
        base: BaseModel,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype | None = None,
        max_token_length: int | None = None,
        clip_skip: int | None = None,
        waiting: bool = False,
    ) -> None:
        self.base = base
        self.facts = get_family(self.name)
        self.device = torch.device(device)
        self.dtype = dtype
        self.vae_dtype = vae_dtype or dtype
        # What a pass is computed again within, in the backward pass; called when it is computed the first time.
        self.recomputed: Callable[[], AbstractContextManager[None]] = nullcontext
        self.denoiser: Any = place(base.denoiser, torch.device("cpu") if waiting else self.device, dtype)
        self.vae: Any = place(base.vae, self.device, self.vae_dtype)
        self.text = self.make_text(
            max_token_length=max_token_length,
            clip_skip=clip_skip,
            device=self.device,
            dtype=dtype,
            waiting=waiting,
        )

    @abstractmethod
    def make_text(self, *, max_token_length: int | None, clip_skip: int | None, **place: Any) -> TextEncoder:
        """What reads the captions. ``max_token_length`` None: the family's own; ``clip_skip`` k: the k-th layer from
        the end (None and 1: the last); ``place``: device, dtype and whether the modules wait on the CPU.
        """

    # ---------------------------------------------------------------- facts

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts in training order: text encoders, then the denoiser, as the family names them."""
        return {**self.text.modules, self.facts.denoiser: self.denoiser}

    @property
    def train_parts(self) -> tuple[str, ...]:
        """Names of the parts that can be trained, in order."""
        return tuple(self.parts)

    @property
    def latent_scale(self) -> float:
        """What unscaled latents are multiplied with before the denoiser sees them."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shift(self) -> float:
        """What is taken off unscaled latents before that."""
        return float(getattr(getattr(self.vae, "config", None), "shift_factor", None) or 0.0)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent picture."""
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels on a side for one latent cell: 8, or what the VAE's levels give."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """(h, w) of the latents of a picture of width x height pixels."""
        return height // self.latent_factor, width // self.latent_factor

    # ---------------------------------------------------------------- pictures

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in -1..1 -> mean and deviation of unscaled latents, (B, C, h, w) float32."""
        self.vae.to(self.device)  # it may have been sent to the CPU to make room
        latents = self.vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        return latents.mean.float(), latents.std.float()

    def draw_latents(self, moments: Tensor, rows: slice, total: int) -> Tensor:
        """A sample of the VAE's distribution, scaled as the denoiser sees it, (B, C, h, w) float32.

        ``moments``: mean and deviation (B, 2C, h, w) of the ``rows`` of a batch of ``total``; all of it is drawn for.
        """
        mean, deviation = moments.chunk(2, dim=1)
        sample = torch.randn(total, *mean.shape[1:], device=mean.device)[rows]
        latents = mean + deviation * sample
        if self.latent_shift:
            latents = latents - self.latent_shift
        return latents * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled as the denoiser sees them -> pixels (B, 3, H, W) in about -1..1."""
        self.vae.to(self.device)
        pixels: Tensor = self.vae.decode(self.unscaled(latents).to(self.vae_dtype)).sample
        return pixels.float()

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the denoiser sees them -> as the VAE does, float32."""
        latents = latents.to(self.device, torch.float32) / self.latent_scale
        return latents + self.latent_shift if self.latent_shift else latents

    # ---------------------------------------------------------------- the denoiser

    def move_denoiser_to_device(self) -> None:
        """Have the denoiser on the device."""
        self.denoiser.to(self.device)

    @abstractmethod
    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, geometry: Tensor | None = None
    ) -> Tensor:
        """The denoiser's answer (B, C, h, w), float32, to noisy latents (B, C, h, w) at the objective's times (B,).

        ``geometry``: SDXL's (B, 6) original height and width, crop top and left, target height and width, in
        pixels.
        """

    def plain_geometry(self, count: int, width: int, height: int) -> Tensor | None:  # noqa: ARG002
        """The geometry of pictures that were neither scaled nor cropped; None where the family has none."""
        return None

    def objective(self, options: LossSettings, prediction: str) -> Objective:
        """What a run learns: the objective of the base's ``prediction``, a name of
        :data:`lorapipe_engine.models.predictions.PREDICTIONS`."""
        objective = objective_class(prediction)(options, prediction, self.device)
        objective.latent_factor = self.latent_factor
        return objective

    # ---------------------------------------------------------------- the network

    def target_modules(self, conv: bool = False) -> Iterator[TargetModule]:
        """Modules that take a LoRA: text encoders first, then the denoiser, each in the order of its module tree.

        With ``conv`` also everything in residual blocks and samplers. Call it before adapters are attached.
        """
        for part, root in self.parts.items():
            classes = (*self.facts.targets[part], *(self.facts.conv_targets.get(part, ()) if conv else ()))
            for path, module in find_targets(root, classes):
                yield TargetModule(part, keys.canonical(self.name, part, path), module)

    def lora_name(self, part: str, path: str) -> str:
        """Name of a module in a LoRA file, such as ``lora_unet_down_blocks_0_attentions_0_proj_in``."""
        return keys.lora_name(self.name, part, path)

    def checkpoint_activations(self, *, with_draws: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them. ``with_draws``: modules draw numbers
        (dropout), so that the random stream has to be wound back, which a captured step cannot do.
        """
        settings: dict[str, Any] = {
            "use_reentrant": False,
            "preserve_rng_state": with_draws,
            "context_fn": lambda: (nullcontext(), self.recomputed()),
        }
        self.denoiser.enable_gradient_checkpointing(partial(checkpoint, **settings))
        # The library only recomputes in training mode; there is no dropout in these models.
        self.denoiser.train()
        self.text.checkpoint_activations(settings)


def find_targets(root: nn.Module, classes: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each linear layer and convolution in modules of the named classes, in tree order."""
    for path, module in root.named_modules():
        if type(module).__name__ not in classes:
            continue
        for inner, child in module.named_modules():
            if isinstance(child, nn.Linear | nn.Conv2d):
                yield f"{path}.{inner}" if path else inner, child
