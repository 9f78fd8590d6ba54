"""The dataset of a run as tensors: latents held in memory, captions and weights, the inputs of each step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorapipe_engine.datasets.scan import Dataset, Picture, scan
from lorapipe_engine.datasets.spec import bucket_rule, caption_rule
from lorapipe_engine.pictures.batches import Batch, stream
from lorapipe_engine.pictures.captions import CaptionRule, When, drops_caption, rewrite_caption, vary_caption
from lorapipe_engine.train.data.augment import draw_colour, draw_crop
from lorapipe_engine.train.data.latents import LatentJob, encode_now
from lorapipe_engine.train.data.masks import latent_mask
from lorapipe_engine.train.data.microbatch import Held, MicroBatch
from lorapipe_engine.train.data.preserved import Preserved
from lorapipe_engine.train.data.text_cache import TextCache
from lorapipe_engine.train.families.base import Family

__all__ = [
    "Dataset",
    "Picture",
    "Shown",
    "TrainingData",
    "bucket_rule",
    "caption_rule",
    "latent_jobs",
    "scan",
]

Key = tuple[int, bool]  # the number of a picture, and whether it is mirrored


def latent_jobs(dataset: Dataset) -> dict[Key, LatentJob]:
    """What the VAE must encode once: every picture, and mirrored those whose subset is trained so; not those whose
    pixels are drawn anew for every step."""
    jobs = {}
    for index, picture in enumerate(dataset.pictures):
        subset = dataset.subset_of(picture)
        if not subset.is_redrawn:
            for mirrored in (False, True) if subset.flip else (False,):
                jobs[index, mirrored] = _job(dataset, picture, mirrored)
    return jobs


def _job(dataset: Dataset, picture: Picture, mirrored: bool) -> LatentJob:
    return LatentJob(picture.path, picture.placement, mirrored, dataset.subset_of(picture).interpolation)


@dataclass(frozen=True)
class Shown:
    """A picture as one step sees it: mean and deviation of its latents (2C, h, w), its caption, SDXL's numbers (height
    and width in the file, top and left of the crop, height and width of the crop), its mask (1, h, w) if any is used.
    """

    latents: Tensor
    caption: str
    geometry: tuple[int, int, int, int, int, int]
    mask: Tensor | None = None


class TrainingData:
    """Makes the inputs of each step. What is drawn for a picture (mirror, crop, colours, caption) comes from a random
    stream of its own, so that a step is a pure function of seed, epoch, step and pictures.

    ``latents``: mean and deviation, (2C, h, w), by the keys of :func:`latent_jobs`. ``reg_weight``: weight of the loss
    of regularisation pictures. ``weighted``: captions hold weights, as ``(red:1.2)``. ``preserved``: what is held to
    the base.
    """

    def __init__(
        self,
        dataset: Dataset,
        latents: Mapping[Key, Tensor],
        family: Family,
        *,
        seed: int,
        reg_weight: float = 1.0,
        weighted: bool = False,
        preserved: Preserved | None = None,
    ) -> None:
        self.dataset = dataset
        self.family = family
        self.seed = seed
        self.weighted = weighted
        # On the device they cost little (a 512 px picture is 128 KiB) and save a copy at every step.
        self.latents = {key: row.to(family.device) for key, row in latents.items()}
        self._preserved = preserved
        self._marked = [
            preserved is not None and preserved.marks_subsets and dataset.subset_of(picture).is_preserved
            for picture in dataset.pictures
        ]
        self._weights = [
            0.0 if marked else reg_weight if dataset.subset_of(picture).is_reg else 1.0
            for picture, marked in zip(dataset.pictures, self._marked, strict=True)
        ]
        # With any mask every batch has one, so that batches of one size have one shape.
        self._has_masks = any(row.subset.is_masked for row in dataset.folders)
        self._masks: dict[Key, Tensor] = {}
        self._cache: TextCache | None = None
        self._variants = 1
        self._has_geometry = family.plain_geometry(1, 64, 64) is not None

    def use_text(self, cache: TextCache, variants: int, epochs: int) -> None:
        """Take the captions' states from a cache, which is filled with all that a run of ``epochs`` shows. A caption
        that varies has up to ``variants`` forms, one after the other; which are left empty is drawn anew all the same.
        """
        self._cache = cache
        self._variants = variants
        cache.prepare(self._captions(epochs))

    def _captions(self, epochs: int) -> Iterator[str]:
        for index, picture in enumerate(self.dataset.pictures):
            rule = self.dataset.subset_of(picture).captions
            if rule.drops:
                yield ""
            count = min(self._variants, epochs * picture.repeats) if rule.is_rewritten else 1
            for number in range(count):
                caption = self._variant(index, number)
                yield caption
                if self._preserved is not None and not self._preserved.marks_subsets:
                    yield from self._preserved.captions(caption, rule)
                    if rule.drops:
                        yield from self._preserved.captions("", rule)

    def _variant(self, index: int, number: int) -> str:
        """One of the cached forms of a caption."""
        picture = self.dataset.pictures[index]
        rule = self.dataset.subset_of(picture).captions
        draw = stream(self.seed, "caption", index, number % self._variants)
        return rewrite_caption(picture.caption, rule, draw)

    def _caption(self, index: int, turn: int, when: When, draw: random.Random) -> str:
        picture = self.dataset.pictures[index]
        rule = self.dataset.subset_of(picture).captions
        if self._cache is None:
            return vary_caption(picture.caption, rule, draw, when)
        if drops_caption(rule, draw, when):
            return ""
        return self._variant(index, when.epoch * picture.repeats + turn if rule.is_rewritten else 0)

    def micro_batch(self, batch: Batch, when: When, share: float, rows_of: range | None = None) -> MicroBatch:
        """The inputs of one forward pass; ``share`` is 1 / number of batches in this update. ``rows_of``: only these of
        the batch (at least one), as a process's share of it."""
        total = len(batch.pictures)
        own = rows_of or range(total)
        share *= len(own) / total  # a loss is a mean over rows, and the whole one their sum over processes
        shown = [(batch.pictures[row], batch.turns[row]) for row in own]
        rows = [
            self._show(index, turn, when, stream(self.seed, "picture", when.epoch, index, turn))
            for index, turn in shown
        ]
        device = self.family.device
        captions = [row.caption for row in rows]
        weights = [self._weights[index] * share for index, _ in shown]
        geometry = [row.geometry for row in rows]
        return MicroBatch(
            latents=torch.stack([row.latents for row in rows]),
            tokens=self.family.text.tokenize(captions, weighted=self.weighted),
            weights=torch.tensor(weights, device=device),
            geometry=torch.tensor(geometry, dtype=torch.float32, device=device)
            if self._has_geometry
            else None,
            mask=torch.stack([row.mask for row in rows if row.mask is not None]) if self._has_masks else None,
            text=None if self._cache is None else self._cache.take(captions),
            part=None if len(own) == total else (own.start, total),
            held=self._held(shown, captions, when, share),
        )

    def _held(
        self, shown: Sequence[tuple[int, int]], captions: Sequence[str], when: When, share: float
    ) -> Held | None:
        """What the pass of pictures, each with its turn, holds to the base; None where this step holds nothing."""
        preserved, device = self._preserved, self.family.device
        if preserved is None or not preserved.is_at(when.step):
            return None
        if preserved.marks_subsets:
            weights = [share * self._marked[index] for index, _ in shown]
            return Held(torch.tensor(weights, device=device))
        held = [
            preserved.caption(caption, self._rule(index), when.epoch, index, turn)
            for caption, (index, turn) in zip(captions, shown, strict=True)
        ]
        return Held(
            torch.full((len(shown),), share, device=device),
            self.family.text.tokenize(held, weighted=self.weighted),
            None if self._cache is None else self._cache.take(held),
        )

    def _rule(self, index: int) -> CaptionRule:
        return self.dataset.subset_of(self.dataset.pictures[index]).captions

    def _show(self, index: int, turn: int, when: When, draw: random.Random) -> Shown:
        picture = self.dataset.pictures[index]
        subset = self.dataset.subset_of(picture)
        job = _job(self.dataset, picture, subset.flip and draw.random() < 0.5)
        if subset.random_crop:
            job = replace(job, placement=draw_crop(job.placement, draw))
        if subset.colour:
            job = replace(job, colour=draw_colour(draw))
        return Shown(
            encode_now(job, self.family) if subset.is_redrawn else self.latents[index, job.mirrored],
            self._caption(index, turn, when, draw),
            geometry_of(picture, job),
            self._mask(index, job) if self._has_masks else None,
        )

    def _mask(self, index: int, job: LatentJob) -> Tensor:
        """The mask of a picture on the device; kept, unless it is cut elsewhere each time."""
        picture = self.dataset.pictures[index]
        subset = self.dataset.subset_of(picture)
        mask = self._masks.get((index, job.mirrored))
        if mask is None or subset.random_crop:
            size = self.family.latent_size(*job.placement.bucket)
            mask = latent_mask(picture, job, size, alpha=subset.alpha_mask).to(self.family.device)
            self._masks[index, job.mirrored] = mask
        return mask


def geometry_of(picture: Picture, job: LatentJob) -> tuple[int, int, int, int, int, int]:
    """SDXL's numbers of a picture: the crop that is really cut, in the picture as it is shown (mirrored or not)."""
    place = job.placement
    left, top = place.crop
    if job.mirrored:
        left = place.resized[0] - place.bucket[0] - left
    return (picture.size[1], picture.size[0], top, left, place.bucket[1], place.bucket[0])
