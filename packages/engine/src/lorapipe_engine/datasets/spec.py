"""A subset (one folder) and a dataset (subsets that share resolution, batch size and buckets), as values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lorapipe_engine.datasets.pairs import Pairs
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.buckets import FINEST_STEP, BucketRule
from lorapipe_engine.pictures.captions import CaptionRule
from lorapipe_engine.settings import DataSettings


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A folder of pictures and how they are trained.

    ``repeats``: how often each comes in an epoch; ``class_tokens``: the caption of pictures that have none; ``is_reg``:
    regularisation pictures; ``is_preserved``: the network is held to the base's answer to them, not trained to theirs;
    ``flip``: half of the time mirrored; ``colour``: hue or gamma shifted now and then;
    ``random_crop``: cut elsewhere each time; ``interpolation``: filter of resizing, None for the usual; ``masks``:
    folders of their masks, the first looked into first; ``alpha_mask``: their transparency is the mask of those that
    have none there; ``metadata``: the JSON file that names the pictures with their captions, in place of text files
    beside them. ``pairs``: prompts in the place of pictures, of which ``folder`` is the file.
    """

    folder: Path
    repeats: int = 1
    class_tokens: str | None = None
    is_reg: bool = False
    is_preserved: bool = False
    caption_extension: str = ".txt"
    captions: CaptionRule = field(default_factory=CaptionRule)
    flip: bool = False
    colour: bool = False
    random_crop: bool = False
    interpolation: str | None = None
    masks: tuple[Path, ...] = ()
    alpha_mask: bool = False
    metadata: Path | None = None
    pairs: Pairs | None = None

    @property
    def is_masked(self) -> bool:
        """Whether parts of the pictures count less than others."""
        return self.alpha_mask or bool(self.masks)

    @property
    def is_redrawn(self) -> bool:
        """Whether the pixels differ from time to time in more than a mirror, so that latents cannot be kept."""
        return self.colour or self.random_crop


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Subsets that are trained at one resolution, in batches of one size. ``validation_split``: share of the pictures
    that is kept from training; ``validation_seed``: chooses which, None for the run's seed. ``asked_step``: what
    bucket_reso_steps asks for, where the buckets' own is a coarser one. ``notes``: what the user should know of the
    file that describes it."""

    subsets: tuple[Subset, ...]
    buckets: BucketRule
    batch_size: int = 1
    validation_split: float = 0.0
    validation_seed: int | None = None
    asked_step: int | None = None
    notes: tuple[str, ...] = ()

    def with_finest_step(self, finest: int) -> DatasetSpec:
        """The dataset with buckets whose sides are multiples of ``finest`` pixels at least, as a family needs it."""
        asked = self.asked_step or self.buckets.step
        if self.buckets.step >= finest:
            return self
        return replace(self, buckets=replace(self.buckets, step=finest), asked_step=asked)


def dataset_of(data: DataSettings, subsets: tuple[Subset, ...]) -> DatasetSpec:
    """Subsets, trained together as the options say. Raises ConfigError for impossible sizes."""
    return DatasetSpec(
        subsets=subsets,
        buckets=bucket_rule(data),
        batch_size=data.train_batch_size,
        validation_split=data.validation_split,
        validation_seed=data.validation_seed,
        asked_step=data.bucket_reso_steps if data.bucket_reso_steps < FINEST_STEP else None,
    )


def subset_of(
    data: DataSettings,
    folder: Path,
    *,
    repeats: int,
    class_tokens: str | None,
    is_reg: bool,
    is_preserved: bool = False,
    masks: tuple[Path, ...] = (),
    metadata: Path | None = None,
) -> Subset:
    """A folder, trained as the options say."""
    return Subset(
        folder=folder,
        repeats=repeats,
        class_tokens=class_tokens,
        is_reg=is_reg,
        is_preserved=is_preserved,
        caption_extension=data.caption_extension,
        captions=caption_rule(data),
        flip=data.flip_aug,
        colour=data.color_aug,
        random_crop=data.random_crop,
        interpolation=data.resize_interpolation,
        masks=masks if data.masked_loss else (),
        alpha_mask=data.alpha_mask,
        metadata=metadata,
    )


def bucket_rule(data: DataSettings) -> BucketRule:
    """The bucket rule that the options describe. Raises ConfigError for bounds that contradict each other."""
    is_bounded = data.enable_bucket and not data.bucket_no_upscale
    # The default lower bound is above a small upper one, and gives way to a resolution as small.
    is_asked = data.min_bucket_reso != DataSettings.min_bucket_reso
    if is_bounded and is_asked and data.min_bucket_reso > data.max_bucket_reso:
        raise ConfigError(
            f"min_bucket_reso: {data.min_bucket_reso} is above max_bucket_reso, {data.max_bucket_reso}; lower the "
            "first or raise the second"
        )
    return BucketRule(
        resolution=data.size,
        # A small training size needs no second option: the bounds give way to it.
        min_size=min(data.min_bucket_reso, *data.size),
        max_size=max(data.max_bucket_reso, *data.size),
        step=max(data.bucket_reso_steps, FINEST_STEP),
        no_upscale=data.bucket_no_upscale,
        enabled=data.enable_bucket,
    )


def caption_rule(data: DataSettings) -> CaptionRule:
    """How captions vary, as the options say."""
    return CaptionRule(
        separator=data.caption_separator,
        prefix=data.caption_prefix,
        suffix=data.caption_suffix,
        shuffle=data.shuffle_caption,
        keep_tokens=data.keep_tokens,
        keep_tokens_separator=data.keep_tokens_separator,
        dropout=data.caption_dropout_rate,
        dropout_epochs=data.caption_dropout_every_n_epochs,
        tag_dropout=data.caption_tag_dropout_rate,
        wildcards=data.enable_wildcard,
        secondary_separator=data.secondary_separator,
        warmup_least=data.token_warmup_min,
        warmup_steps=data.token_warmup_step,
    )
