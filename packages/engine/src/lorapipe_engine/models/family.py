"""What a model family is to every tool: facts and names, without torch. Each family has a file of its own beside this.

:mod:`lorapipe_engine.models.families` has the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

Kind = Literal["checkpoint", "lora", "unet", "vae", "text_encoder", "refiner", "unknown"]
Shapes = Mapping[str, tuple[int, ...]]

LOAD_SD = "lorapipe_engine.train.base.stable_diffusion:load"


@dataclass(frozen=True)
class Recognised:
    """What a weight file is. ``family`` is None where names do not tell, or tell of one not known here.

    "refiner" is the SDXL refiner, which no tool takes as a base.
    """

    kind: Kind
    family: str | None = None


@dataclass(frozen=True)
class Layout:
    """What the numbers in LDM names depend on: residual layers in a UNet level, and levels of the VAE."""

    layers_per_block: int = 2
    vae_levels: int = 4


STANDARD = Layout()


class Place(NamedTuple):
    """A layer's tensor inside a checkpoint tensor.

    Rows ``start`` to ``stop`` (first dimension) of the checkpoint tensor are tensor ``path.kind`` of ``part``
    (kind "weight" or "bias"). If ``transposed``, their transpose is; start and stop span rows of the file.
    """

    part: str
    path: str
    kind: str
    start: int
    stop: int
    transposed: bool = False

    @property
    def tensor(self) -> str:
        """Name of the tensor, such as ``conv_in.weight``."""
        return f"{self.path}.{self.kind}"


def whole_place(part: str, tensor: str, rows: int) -> Place:
    """The place of a tensor that stands alone."""
    path, _, kind = tensor.rpartition(".")
    return Place(part, path, kind, 0, rows)


def flat_name(prefix: str, path: str) -> str:
    """A LoRA name in kohya's way: ``lora_unet`` and a path with underscores for its dots."""
    return f"{prefix}_{path.replace('.', '_')}"


@dataclass(frozen=True)
class BlockLayout:
    """How many blocks a denoiser has on each side and in the middle, as block-wise options count them; ``ends``: one
    more before and after. ``number``: the block of a module by its name in a LoRA file; None for other names."""

    side: int
    middle: int
    number: Callable[[str], int | None]
    ends: int = 0

    @property
    def count(self) -> int:
        """All of them, and so the length of ``block_dims``."""
        return 2 * (self.side + self.ends) + self.middle


class Names:
    """How layers are called in checkpoints and LoRA files. This is the plain way: a checkpoint has canonical paths
    behind the part's prefix, and a LoRA file kohya's flat names of them, or dotted ones behind the part's name.

    A family whose files differ has a class of its own.
    """

    def canonical(self, part: str, path: str) -> str:  # noqa: ARG002
        """The canonical path of a layer from its path in the module tree."""
        return path

    def locate(
        self,
        family: Family,
        key: str,
        shape: tuple[int, ...],
        layout: Layout,  # noqa: ARG002
    ) -> tuple[Place, ...]:
        """Layers whose tensors lie in a checkpoint's tensor; none for keys that no layer has."""
        for part, prefix in family.checkpoint_prefixes.items():
            if key.startswith(prefix):
                return (whole_place(part, key.removeprefix(prefix), shape[0] if shape else 0),)
        return ()

    def kohya(self, family: Family, part: str, path: str, layers_per_block: int) -> str:  # noqa: ARG002
        """The name that kohya's trainer gives to a layer."""
        return flat_name(family.lora_prefixes[part], path)

    def others(
        self,
        family: Family,  # noqa: ARG002
        part: str,
        path: str,
        layers_per_block: int,  # noqa: ARG002
        checkpoint_path: str | None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Further names that a LoRA file may have for a layer. ``checkpoint_path``: its path there, where known."""
        return (f"{part}.{path}",)

    classes: ClassVar[Mapping[str, str]] = {}
    """Classes as the model's first code named them, and what they are called in the module tree that is trained."""

    def in_checkpoint(self, family: Family, part: str, path: str, layers_per_block: int) -> str | None:  # noqa: ARG002
        """The layer's path in a checkpoint without the part's prefix; None where it has none."""
        return path

    def speaks_checkpoint(self, pattern: str) -> bool:  # noqa: ARG002
        """Whether a pattern of paths is written for a checkpoint's, where those are others than the module tree's."""
        return False


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Parts: ``denoiser`` is the name of the one that predicts; "te1", "te2" are the text encoders in order; "vae".
    ``checkpoint_prefixes`` and ``lora_prefixes`` go by part: what keys of a single-file checkpoint, and names in a
    LoRA file, begin with. ``names`` maps the layers, ``blocks`` counts them for block-wise options (None: there are no
    such options for it). ``targets`` and ``conv_targets``: classes, by part, whose linear layers and convolutions take
    a LoRA, always and with ``conv_dim``. ``recognise``: what a file of this family is, or None where it is another's.

    ``context_width`` is the width of the text states in the published models. ``latent_scale`` multiplies latents on
    their way to the denoiser. ``prediction`` is what the base answers, a name of
    :mod:`lorapipe_engine.models.predictions`, where its file does not tell; None: files of both kinds do not tell.
    ``rank`` and ``clip_skip`` are what a run takes unasked; ``reads_clip_skip`` False: it means nothing to it.

    ``bucket_step``: sides of pictures are multiples of it, in pixels.

    ``base_version``, ``architecture`` and ``implementation`` are the words of the metadata
    (``ss_base_model_version``, ``modelspec.*``) for plain noise prediction, ``v_version`` and ``v_architecture`` those
    for v-prediction, where they differ.

    ``trainer``: "module:class" that trains it, ``loader``: "module:function" that loads it.

    For UNets: ``ldm_names``: LoRA files name UNet modules as checkpoints do, not as diffusers does.
    ``plain_up_blocks``: diffusers' up blocks that upsample but have no attention. ``heads``: of attention, where they
    are not one for each 64 channels. ``activations`` of the text encoders; ``spare_text_layers``: last layers in the
    checkpoint that are never run.
    """

    name: str
    title: str
    checkpoint_prefixes: Mapping[str, str]
    lora_prefixes: Mapping[str, str]
    targets: Mapping[str, tuple[str, ...]]
    conv_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    denoiser: str = "unet"
    names: Names = field(default_factory=Names)
    blocks: BlockLayout | None = None
    recognise: Callable[[Shapes], Recognised | None] | None = None
    context_width: int
    latent_scale: float
    prediction: str | None = "epsilon"
    resolution: int
    rank: int = 64
    clip_skip: int | None = None
    reads_clip_skip: bool = True
    base_version: str
    v_version: str | None = None
    architecture: str
    v_architecture: str | None = None
    implementation: str = "diffusers"
    trainer: str
    loader: str = LOAD_SD
    ldm_names: bool = False
    plain_up_blocks: frozenset[int] = frozenset()
    heads: int | None = None
    activations: tuple[str, ...] = ()
    bucket_step: int = 8
    spare_text_layers: int = 0

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The text encoders in order: "te1", for SDXL also "te2"."""
        return tuple(part for part in self.lora_prefixes if is_text(part))


def is_text(part: str) -> bool:
    """Whether a part is a text encoder; any other that is trained is the denoiser."""
    return re.fullmatch(r"te\d*", part) is not None
