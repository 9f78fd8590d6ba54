"""Before the first step: latents and, if asked for, text states of the whole dataset, made or taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorapipe_engine.command.progress import progress
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.cachefolder import cache_folder
from lorapipe_engine.models.families import is_text
from lorapipe_engine.pictures.captions import fixed_caption
from lorapipe_engine.settings import DataSettings, TrainSettings
from lorapipe_engine.train.base.shelf import Shelf, stamp
from lorapipe_engine.train.data.examples import TrainingData, latent_jobs
from lorapipe_engine.train.data.latents import LatentCache, LatentJob, encode_all, vae_key
from lorapipe_engine.train.data.preserved import Preserved
from lorapipe_engine.train.data.text_cache import TextCache
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.processes import ALONE, Processes


def prepare_data(
    settings: TrainSettings,
    parts: Sequence[Dataset],
    family: Family,
    epochs: int,
    say: Callable[[str], None],
    processes: Processes = ALONE,
    shelf: Shelf | None = None,
    preserved: Preserved | None = None,
) -> list[TrainingData]:
    """Encode every picture of each dataset, and every caption where text states are cached.

    ``epochs``: of the run, which the cached forms of a caption are taken in turn over. What is not needed any more
    leaves the device then, and what waited for room is on it. Several processes share the work out, and each has all of
    it in the end. ``shelf``: where latents and text states of an earlier run may be. ``preserved``: what steps on the
    first dataset hold to the base.
    """
    shelf = shelf or Shelf()
    held = [preserved, *[None] * len(parts)]
    sets = [
        load_data(settings, part, family, say, processes, shelf, own)
        for part, own in zip(parts, held, strict=False)
    ]
    if not any(row.subset.is_redrawn for part in parts for row in part.folders):
        family.vae.to("cpu")
    if family.device.type == "cuda":
        torch.cuda.empty_cache()  # what encoding took is in the way of the weights
    if not caches_text(settings.data):
        family.text.move_to_device(for_good=True)
    else:
        cache = TextCache(
            family,
            weighted=settings.data.weighted_captions,
            folder=_folder(settings.data) / "text"
            if settings.data.cache_text_encoder_outputs_to_disk
            else None,
            inside=_folder(settings.data),
            processes=processes,
            shelf=shelf,
            made_with=text_key(settings),
        )
        for data in sets:
            data.use_text(cache, settings.data.text_cache_variants, epochs)
        say_damaged(cache.damaged, say)
        family.text.move_to_cpu()
    family.move_denoiser_to_device()
    return sets


def load_data(
    settings: TrainSettings,
    dataset: Dataset,
    family: Family,
    say: Callable[[str], None],
    processes: Processes,
    shelf: Shelf,
    preserved: Preserved | None = None,
) -> TrainingData:
    """Encode every picture, or take its latents from the cache, or as an earlier run of the same process made them."""
    jobs = latent_jobs(dataset)
    to_disk = settings.data.cache_latents_to_disk
    cache = LatentCache(
        _folder(settings.data) / "latents" if to_disk else None,
        vae_key(family) if to_disk else "",
        _folder(settings.data),
    )
    own = [list(jobs.values())[number] for number in processes.own(len(jobs))]

    def encode() -> list[Tensor]:
        with progress(total=len(own), label="latents", unit="picture") as bar:
            return encode_all(own, family, cache, settings.data.vae_batch_size, bar)

    # All or nothing: what is encoded together is part of what comes out, to the last bit. Those on disk stay there.
    made = encode() if to_disk else shelf.latents(latents_key(own, family, settings.data), encode)
    say_damaged(cache.damaged, say)
    latents = processes.exchange(made, len(jobs))
    return TrainingData(
        dataset,
        dict(zip(jobs, latents, strict=True)),
        family,
        seed=settings.run.seed,
        reg_weight=settings.loss.prior_loss_weight,
        weighted=settings.data.weighted_captions,
        preserved=preserved,
    )


def latents_key(jobs: Sequence[LatentJob], family: Family, data: DataSettings) -> Hashable:
    """What decides the latents of pictures besides the base."""
    files = tuple(stamp(path) for path in dict.fromkeys(job.path for job in jobs))
    return tuple(jobs), files, family.vae_dtype, str(family.device), data.vae_batch_size


def text_key(settings: TrainSettings) -> Hashable:
    """What decides the text states of captions besides the base: how it is run, and what was merged into it."""
    merged = tuple(stamp(path) for path in settings.network.base_weights)
    return settings.model, merged, settings.network.base_weights_multiplier


def say_damaged(paths: Sequence[Path], say: Callable[[str], None]) -> None:
    """Name entries of a cache that could not be trusted."""
    if paths:
        count = "1 entry" if len(paths) == 1 else f"{len(paths)} entries"
        say(f"note: {count} of the cache damaged or a link, and not used, the first {paths[0]}")


def _folder(data: DataSettings) -> Path:
    return data.cache_dir or cache_folder()


def caches_text(data: DataSettings) -> bool:
    """Whether captions are encoded before the first step."""
    return data.cache_text_encoder_outputs or data.cache_text_encoder_outputs_to_disk


def check_cached_text(data: DataSettings, dataset: Dataset, trained: Sequence[str]) -> None:
    """Raise ConfigError where cached text states cannot be what training needs. ``trained``: the trained parts."""
    if not caches_text(data):
        return
    if any(is_text(part) for part in trained):
        raise ConfigError(
            "cache_text_encoder_outputs: the text encoders are trained, so what they say changes; give "
            "--network_train_unet_only, or leave the cache out"
        )
    if any(row.subset.captions.warmup_steps for row in dataset.folders):
        raise ConfigError(
            "cache_text_encoder_outputs: with token_warmup_step captions differ at every step; leave one of both out"
        )


def long_captions(dataset: Dataset, family: Family) -> str | None:
    """How many captions are longer than the limit, and which is the longest; None if none is."""
    limit = family.text.limit
    longest, file, count = limit, None, 0
    for picture in dataset.pictures:
        # No caption has more tokens than bytes.
        text = fixed_caption(picture.caption, dataset.subset_of(picture).captions)
        if len(text.encode()) <= limit:
            continue
        tokens = family.text.count(text)
        count += tokens > limit
        if tokens > longest:
            longest, file = tokens, picture.path
    if file is None:
        return None
    what = "1 caption is" if count == 1 else f"{count} captions are"
    more = f"; --max_token_length {family.text.longer} takes more" if family.text.longer else ""
    return f"{what} longer than {limit} tokens and cut there, the longest that of {file} with {longest}{more}"
