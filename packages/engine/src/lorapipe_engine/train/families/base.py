"""What the training loop and the sampler need of a model family.

Shapes: B pictures, H x W pixels, h x w latents (H / ``latent_factor``, W / ``latent_factor``), n chunks of 75
tokens. Every tensor that goes in may lie on any device; what comes out lies on ``device``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorapipe_engine.models import keys
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.base.tokenizers import Tokenizer
from lorapipe_engine.train.families import clip as text
from lorapipe_engine.train.objective.objective import Objective, objective_class

if TYPE_CHECKING:
    from lorapipe_engine.train.base.load import BaseModel

# Classes whose linear layers and convolutions take a LoRA (kohya's target lists), by the part of the model.
TEXT_TARGETS = ("CLIPAttention", "CLIPMLP")
UNET_TARGETS = ("Transformer2DModel",)
UNET_CONV_TARGETS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told: text states ``hidden`` (B, 75n+2, C), and for SDXL ``pooled`` (B, P)."""

    hidden: Tensor
    pooled: Tensor | None = None


class TargetModule(NamedTuple):
    """A module that may take a LoRA: part ("unet", "te1", "te2"), canonical path (see ``keys``), itself."""

    part: str
    path: str
    module: nn.Module


class Family(ABC):
    """A frozen base model on a device, behind one interface for every family.

    ``dtype`` is the precision of UNet and text encoders, ``vae_dtype`` that of the VAE (None: the same).
    ``chunks`` (1 to 3) sets the caption length to 75, 150 or 225 tokens. ``waiting``: UNet and text encoders stay on
    the CPU until they are woken, so that the VAE has the device for itself.
    """

    name: ClassVar[str]
    pads: ClassVar[tuple[int | None, ...]]  # what each text encoder is padded with; None: its EOS

    def __init__(
        self,
        base: BaseModel,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype | None = None,
        chunks: int = 3,
        waiting: bool = False,
    ) -> None:
        self.base = base
        self.device = torch.device(device)
        self.dtype = dtype
        self.vae_dtype = vae_dtype or dtype
        self.chunks = chunks
        place = torch.device("cpu") if waiting else self.device
        self.unet: Any = _place(base.unet, place, dtype)
        self.vae: Any = _place(base.vae, self.device, self.vae_dtype)
        self.text_encoders: tuple[Any, ...] = tuple(
            _place(encoder, place, dtype) for encoder in base.text_encoders
        )
        self.tokenizers = base.tokenizers
        self._stayed: list[list[tuple[nn.Parameter, Tensor]]] = [[] for _ in self.text_encoders]

    # ---------------------------------------------------------------- facts

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts in training order: "te1", for SDXL "te2", "unet"."""
        found = {f"te{index}": encoder for index, encoder in enumerate(self.text_encoders, start=1)}
        return {**found, "unet": self.unet}

    @property
    def train_parts(self) -> tuple[str, ...]:
        """Names of the parts that can be trained, in order."""
        return tuple(self.parts)

    @property
    def latent_scale(self) -> float:
        """What unscaled latents are multiplied with before the UNet sees them."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent picture (4 for all of Stable Diffusion)."""
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
        """Pixels (B, 3, H, W) in -1..1 -> mean and deviation of unscaled latents, (B, 4, h, w) float32."""
        self.vae.to(self.device)  # it may have been sent to the CPU to make room
        latents = self.vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        return latents.mean.float(), latents.std.float()

    def draw_latents(self, moments: Tensor, rows: slice, total: int) -> Tensor:
        """A sample of the VAE's distribution, scaled as the denoiser sees it, (B, C, h, w) float32.

        ``moments``: mean and deviation (B, 2C, h, w) of the ``rows`` of a batch of ``total``; all of it is drawn for.
        """
        mean, deviation = moments.chunk(2, dim=1)
        sample = torch.randn(total, *mean.shape[1:], device=mean.device)[rows]
        return (mean + deviation * sample) * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, h, w), scaled as the UNet sees them -> pixels (B, 3, H, W) in about -1..1."""
        self.vae.to(self.device)
        unscaled = latents.to(self.device, torch.float32) / self.latent_scale
        pixels: Tensor = self.vae.decode(unscaled.to(self.vae_dtype)).sample
        return pixels.float()

    # ---------------------------------------------------------------- text

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids, one (B, n, 77) int64 tensor for each text encoder. Longer captions are cut."""
        return tuple(
            self._chunked([tokenizer.encode(line) for line in texts], tokenizer, pad)
            for tokenizer, pad in zip(self.tokenizers, self.pads, strict=True)
        )

    def tokenize_weighted(self, texts: Sequence[str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Ids as of :meth:`tokenize`, and multipliers (B, 75n+2), of captions such as ``a (red:1.2) cat``."""
        ids, weights = [], []
        for tokenizer, pad in zip(self.tokenizers, self.pads, strict=True):
            rows = [text.weighted_ids(line, tokenizer.encode) for line in texts]
            ids.append(self._chunked([row for row, _ in rows], tokenizer, pad))
            factors = [text.chunk_weights(factor, self.chunks) for _, factor in rows]
            weights.append(torch.tensor(factors, device=self.device))
        return tuple(ids), tuple(weights)

    def _chunked(self, rows: Sequence[Sequence[int]], tokenizer: Tokenizer, pad: int | None) -> Tensor:
        bos, eos = tokenizer.bos, tokenizer.eos
        ids = [text.chunk_ids(row, self.chunks, bos, eos, eos if pad is None else pad) for row in rows]
        return torch.tensor(ids, dtype=torch.int64, device=self.device).reshape(-1, self.chunks, 77)

    def wake_unet(self) -> None:
        """Have the UNet on the device."""
        self.unet.to(self.device)

    def rest_text(self) -> None:
        """Send the text encoders to the CPU, to make room; :meth:`wake_text` brings them back."""
        for encoder, stayed in zip(self.text_encoders, self._stayed, strict=True):
            for parameter, value in stayed:
                parameter.data = value
            stayed.clear()
            encoder.to("cpu")

    def wake_text(self, *, for_good: bool = False) -> None:
        """Have the text encoders on the device. Unless ``for_good``, their values stay on the CPU too, so that nothing
        has to be copied when they rest; they must not be trained in between."""
        for encoder, stayed in zip(self.text_encoders, self._stayed, strict=True):
            if next(encoder.parameters()).device.type != self.device.type:
                if not for_good:
                    stayed += [(parameter, parameter.data) for parameter in encoder.parameters()]
                encoder.to(self.device)

    @abstractmethod
    def encode_text(
        self,
        ids: Sequence[Tensor],
        *,
        clip_skip: int | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> Conditioning:
        """Ids from :meth:`tokenize` -> conditioning, differentiable; nothing in it waits for the device.

        ``clip_skip`` k takes the k-th layer from the end (None and 1: the last); ``weights`` multiply text
        states.
        """

    # ---------------------------------------------------------------- the UNet

    @abstractmethod
    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, geometry: Tensor | None = None
    ) -> Tensor:
        """The UNet's answer (B, 4, h, w), float32, to noisy latents (B, 4, h, w) at timesteps (B,) in 0..999.

        ``geometry``: SDXL's (B, 6) original height and width, crop top and left, target height and width, in
        pixels.
        """

    def plain_geometry(self, count: int, width: int, height: int) -> Tensor | None:  # noqa: ARG002
        """The geometry of pictures that were neither scaled nor cropped; None where the family has none."""
        return None

    def objective(self, options: LossSettings, prediction: str) -> Objective:
        """What a run learns: the objective of the base's ``prediction``, a name of
        :data:`lorapipe_engine.models.predictions.PREDICTIONS`."""
        return objective_class(prediction)(options, prediction, self.device)

    # ---------------------------------------------------------------- the network

    def target_modules(self, conv: bool = False) -> Iterator[TargetModule]:
        """Modules that take a LoRA: text encoders first, then the UNet, each in the order of its module tree.

        With ``conv`` also everything in residual blocks and samplers. Call it before adapters are attached.
        """
        for part, root in self.parts.items():
            classes = TEXT_TARGETS if part != "unet" else UNET_TARGETS + (UNET_CONV_TARGETS if conv else ())
            for path, module in find_targets(root, classes):
                canonical = path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"
                yield TargetModule(part, canonical, module)

    def lora_name(self, part: str, path: str) -> str:
        """Name of a module in a LoRA file, such as ``lora_unet_down_blocks_0_attentions_0_proj_in``."""
        return keys.lora_name(self.name, part, path)

    def checkpoint_activations(self, *, with_draws: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them. ``with_draws``: modules draw numbers
        (dropout), so that the random stream has to be wound back, which a captured step cannot do.
        """
        settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": with_draws}
        self.unet.enable_gradient_checkpointing(partial(checkpoint, **settings))
        # Both libraries only recompute in training mode; there is no dropout in these models.
        self.unet.train()
        for encoder in self.text_encoders:
            # transformers 5.2x renamed it; the old name warns there.
            name = "activation_checkpointing_enable"
            if not hasattr(encoder, name):
                name = "gradient_checkpointing_enable"
            getattr(encoder, name)(settings)
            encoder.train()


def find_targets(root: nn.Module, classes: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each linear layer and convolution in modules of the named classes, in tree order."""
    for path, module in root.named_modules():
        if type(module).__name__ not in classes:
            continue
        for inner, child in module.named_modules():
            if isinstance(child, nn.Linear | nn.Conv2d):
                yield f"{path}.{inner}", child


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    # Torch's own ``to``: that of diffusers warns about every change of the dtype.
    return nn.Module.to(module.requires_grad_(False).eval(), device, dtype)
