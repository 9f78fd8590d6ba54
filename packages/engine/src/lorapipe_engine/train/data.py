"""The dataset of a run: find the pictures, place them in buckets, hold their latents, make each step's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorapipe_engine.buckets import BucketRule, Placement, Size, place
from lorapipe_engine.captions import CaptionRule, find_caption, vary_caption
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.images import find_images, image_size, repeat_folders
from lorapipe_engine.settings import DataSettings
from lorapipe_engine.train.batches import Batch, stream
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.latents import LatentJob
from lorapipe_engine.train.step import MicroBatch


@dataclass(frozen=True)
class Picture:
    """One picture to train: file, caption, repeats an epoch, place in its bucket, size in the file (w, h)."""

    path: Path
    caption: str
    repeats: int
    placement: Placement
    size: Size


@dataclass(frozen=True)
class Concept:
    """A folder ``N_concept`` as it will be trained."""

    folder: Path
    repeats: int
    pictures: int
    without_caption: int


@dataclass(frozen=True)
class Dataset:
    """All pictures of a run, and the folders they come from."""

    pictures: tuple[Picture, ...]
    concepts: tuple[Concept, ...]

    @property
    def buckets(self) -> list[Size]:
        """The bucket of each picture."""
        return [picture.placement.bucket for picture in self.pictures]

    @property
    def repeats(self) -> list[int]:
        """The repeats of each picture."""
        return [picture.repeats for picture in self.pictures]


def scan(data: DataSettings) -> Dataset:
    """Read folders, captions and sizes (headers only).

    Raises InputError for a folder that is missing, has no ``N_concept`` level or no pictures, a broken picture, or a
    caption that is not UTF-8.
    """
    if data.train_data_dir is None:
        raise ConfigError("train_data_dir: no folder given")
    rule = bucket_rule(data)
    pictures: list[Picture] = []
    concepts: list[Concept] = []
    for folder in repeat_folders(data.train_data_dir):
        found = find_images(folder.path)
        bare = 0
        for path in found:
            caption = find_caption(path, data.caption_extension)
            bare += caption is None
            size = image_size(path)
            pictures.append(
                Picture(
                    path,
                    folder.concept if caption is None else caption.text,
                    folder.repeats,
                    _place(path, size, rule),
                    size,
                )
            )
        concepts.append(Concept(folder.path, folder.repeats, len(found), bare))
    if not pictures:
        raise InputError(f"{data.train_data_dir}: no pictures in its folders (png, jpg, jpeg, webp, bmp)")
    return Dataset(tuple(pictures), tuple(concepts))


def bucket_rule(data: DataSettings) -> BucketRule:
    """The bucket rule that the options describe."""
    low, high = data.min_bucket_reso, data.max_bucket_reso
    return BucketRule(
        resolution=data.resolution,
        # A small training size needs no second option: the bounds give way to it.
        min_size=min(low, *data.resolution),
        max_size=max(high, *data.resolution),
        step=data.bucket_reso_steps,
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
        tag_dropout=data.caption_tag_dropout_rate,
    )


def _place(path: Path, size: Size, rule: BucketRule) -> Placement:
    try:
        return place(size, rule)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error


def latent_jobs(dataset: Dataset, *, mirrored: bool) -> list[LatentJob]:
    """What the VAE must encode: every picture, then every picture mirrored if asked for."""
    plain = [LatentJob(picture.path, picture.placement) for picture in dataset.pictures]
    return plain + [LatentJob(job.path, job.placement, True) for job in plain] if mirrored else plain


class TrainingData:
    """Makes the inputs of each step from the latents in memory and the captions' own random streams."""

    def __init__(
        self,
        dataset: Dataset,
        latents: Sequence[Tensor],
        family: Family,
        rule: CaptionRule,
        *,
        seed: int,
        mirror: bool,
    ) -> None:
        self.dataset = dataset
        self.family = family
        self.rule = rule
        self.seed = seed
        self.mirror = mirror
        # On the device they cost little (a 512 px picture is 128 KiB) and save a copy at every step.
        self.latents = [row.to(family.device) for row in latents]

    def micro_batch(self, batch: Batch, epoch: int, share: float) -> MicroBatch:
        """The inputs of one forward pass; ``share`` is 1 / number of batches in this update."""
        rows = []
        captions = []
        for index, turn in zip(batch.pictures, batch.turns, strict=True):
            draw = stream(self.seed, "picture", epoch, index, turn)
            flipped = self.mirror and draw.random() < 0.5
            rows.append(self.latents[index + (len(self.dataset.pictures) if flipped else 0)])
            captions.append(vary_caption(self.dataset.pictures[index].caption, self.rule, draw))
        return MicroBatch(
            latents=torch.stack(rows),
            ids=self.family.tokenize(captions),
            weights=torch.full((len(rows),), share, device=self.family.device),
            geometry=self._geometry(batch),
        )

    def _geometry(self, batch: Batch) -> Tensor | None:
        """SDXL's original size, crop and target size, (B, 6) as h, w, top, left, h, w: the crop that was cut."""
        if self.family.plain_geometry(1, 64, 64) is None:
            return None
        rows = []
        for index in batch.pictures:
            picture = self.dataset.pictures[index]
            left, top = picture.placement.crop
            width, height = picture.placement.bucket
            rows.append((picture.size[1], picture.size[0], top, left, height, width))
        return torch.tensor(rows, dtype=torch.float32, device=self.family.device)
