"""Pictures to latents, once: decode, place in the bucket, encode, keep.

What is kept is the VAE's mean and standard deviation, so that training draws a fresh sample at every step. The disk
cache is keyed by content (picture bytes, VAE, bucket, crop, mirror), lies in one folder of its own and is written
atomically: a stale entry cannot be met, and two runs may share it.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.files.tensorfile import TensorFile, open_tensors, write_tensors
from lorapipe_engine.files.writing.openfolder import open_folder
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.buckets import Placement
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright
from lorapipe_engine.pictures.white import on_white
from lorapipe_engine.train.base.modules import weights_key
from lorapipe_engine.train.base.vae_form import padding_of
from lorapipe_engine.train.data.augment import ColourShift
from lorapipe_engine.train.families.base import Family

if TYPE_CHECKING:
    from PIL.Image import Image

CACHE_VERSION = "latents-3"
READERS = 4  # threads


def vae_key(family: Family) -> str:
    """A name for the VAE's weights, precision and padding: another VAE never meets this one's latents. Scale and shift
    are no part of it, since what is kept is not scaled."""
    return weights_key([family.vae], family.vae_dtype) + padding_of(family.vae)


@dataclass(frozen=True)
class LatentJob:
    """One picture to encode: the file, its placement, whether it is mirrored, the filter it is resized with, and how
    its colours are shifted (of what is shifted nothing is cached)."""

    path: Path
    placement: Placement
    mirrored: bool = False
    interpolation: str | None = None
    colour: ColourShift | None = None


def read_pixels(job: LatentJob) -> Tensor:
    """The picture as trained: upright, alpha on white, scaled to cover its bucket, cropped; (3, H, W) in -1..1.

    Raises InputError for a file that is no picture or is cut short.
    """
    with open_upright(job.path) as opened:
        picture = put_in_place(on_white(opened) if opened.mode == "RGBA" else opened, job)
    if job.colour is not None:
        picture = job.colour.apply(picture)
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


@contextmanager
def open_upright(path: Path) -> Iterator[Image]:
    """A whole picture with its EXIF rotation applied: RGBA where anything of it may be transparent, else RGB.

    While the block runs its pixels count for the budget of all threads. Raises InputError for a file that is no
    picture, is cut short, or is beyond a bound.
    """
    from PIL import UnidentifiedImageError

    with ExitStack() as held:
        try:
            with open_picture(path) as opened:
                held.enter_context(GATE.room(opened.width * opened.height))
                picture = turn_upright(opened)
                clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
                picture = picture.convert("RGBA" if clear else "RGB")
        except PictureBound as error:
            raise InputError(f"{path}: {error}; mend it or take it out") from error
        except (OSError, SyntaxError, ValueError) as error:
            reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise InputError(f"{path}: not a whole picture ({reason}); mend it or take it out") from error
        yield picture


def put_in_place(picture: Image, job: LatentJob) -> Image:
    """A picture (or its mask, of the same shape) resized, cropped and mirrored as the job has it."""
    from PIL import ImageOps

    left, top = job.placement.crop
    width, height = job.placement.bucket
    resized = job.placement.resized
    if picture.size != resized:
        shrinks = resized[0] < picture.width and resized[1] < picture.height
        picture = picture.resize(resized, _filter(job.interpolation or ("area" if shrinks else "lanczos")))
    picture = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(picture) if job.mirrored else picture


def _filter(name: str) -> Any:
    from PIL.Image import Resampling

    return {
        "lanczos": Resampling.LANCZOS,
        "nearest": Resampling.NEAREST,
        "bilinear": Resampling.BILINEAR,
        "linear": Resampling.BILINEAR,
        "bicubic": Resampling.BICUBIC,
        "cubic": Resampling.BICUBIC,
        # Pillow's nearest to OpenCV's area filter, which the field uses to shrink.
        "area": Resampling.HAMMING,
    }[name]


class LatentCache:
    """Latents of earlier runs in a folder; ``folder`` None keeps nothing on disk. ``vae_key`` names the VAE's bytes.

    ``inside`` is the folder above it that the user named: below that no link is followed. ``damaged`` are the entries
    that were no latents of their pictures, and were made again.
    """

    def __init__(self, folder: Path | None, vae_key: str, inside: Path | None = None) -> None:
        self.folder = folder
        self.vae_key = vae_key
        self.inside = folder if inside is None else inside
        self.damaged: list[Path] = []

    def get(self, job: LatentJob) -> Tensor | None:
        """Mean and deviation (2C, h, w) in float32, or None where they must be made (a broken entry too)."""
        path = self._path(job)
        if path is None or self.inside is None or not os.path.lexists(path):
            return None
        with suppress(LoraError, KeyError, OSError), open_entry(path, self.inside) as file:
            latents = torch.from_numpy(np.array(file.read("latents"), dtype=np.float32))
            width, height = job.placement.bucket
            # Eight numbers for each cell, of some pixels a side, alike in both directions.
            fits = latents.ndim == 3 and latents.shape[0] == 8 and latents.numel() > 0
            if fits and latents.shape[1] * width == latents.shape[2] * height and latents.isfinite().all():
                return latents
        self.damaged.append(path)
        return None

    def put(self, job: LatentJob, latents: Tensor) -> None:
        """Keep an entry; a cache that cannot be written is no reason to stop."""
        path = self._path(job)
        if path is None or self.inside is None:
            return
        try:
            self.inside.mkdir(parents=True, exist_ok=True)
            write_tensors(path, {"latents": latents.numpy()}, force=True, inside=self.inside)
        except (LoraError, OSError):
            self.folder = None

    def _path(self, job: LatentJob) -> Path | None:
        folder = self.folder  # which a failed put in another thread takes away
        if folder is None:
            return None
        digest = hashlib.sha256(job.path.read_bytes())
        place = job.placement
        digest.update(
            f"{CACHE_VERSION}|{self.vae_key}|{place.resized}|{place.bucket}|{place.crop}|{job.mirrored}|"
            f"{job.interpolation or 'usual'}".encode()
        )
        name = digest.hexdigest()
        return folder / name[:2] / f"{name}.safetensors"


@contextmanager
def open_entry(path: Path, inside: Path) -> Iterator[TensorFile]:
    """An entry of a cache, read without following links. Raises OSError, LoraError for anything but a safetensors
    file."""
    with (
        open_folder(path.parent, inside=inside) as folder,
        os.fdopen(folder.open_file(path.name), "rb") as stream,
        open_tensors(stream) as file,
    ):
        yield file


def encode_all(
    jobs: Sequence[LatentJob],
    family: Family,
    cache: LatentCache,
    batch: int,
    progress: Iterable[int] | None = None,
) -> list[Tensor]:
    """Mean and deviation (2C, h, w) float32 on the CPU for each job, in order.

    Raises InputError for a broken picture, and for latents that are not finite (a VAE in half precision can
    overflow).
    """
    encoded: list[Tensor | None] = [None] * len(jobs)
    waiting: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    steps = range(len(jobs)) if progress is None else progress
    with closing(_looked_up(jobs, cache)) as rows:
        for index, (latents, pixels) in zip(steps, rows, strict=True):
            encoded[index] = latents
            if pixels is None:
                continue
            group = waiting.setdefault(jobs[index].placement.bucket, [])
            group.append((index, pixels))
            if len(group) == batch:
                _encode(group, jobs, family, cache, encoded)
                group.clear()
    for group in waiting.values():
        if group:
            _encode(group, jobs, family, cache, encoded)
    return [latents for latents in encoded if latents is not None]


def _looked_up(
    jobs: Sequence[LatentJob], cache: LatentCache
) -> Generator[tuple[Tensor | None, Tensor | None]]:
    """Of each job its latents from the cache, or else its pixels. Threads are some pictures ahead: reading and decoding
    them takes longer than a card takes to encode them."""

    def look(job: LatentJob) -> tuple[Tensor | None, Tensor | None]:
        latents = cache.get(job)
        return latents, read_pixels(job) if latents is None else None

    ahead: deque[Future[tuple[Tensor | None, Tensor | None]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for job in jobs:
                ahead.append(pool.submit(look, job))
                if len(ahead) > 2 * READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def encode_now(job: LatentJob, family: Family) -> Tensor:
    """Mean and deviation (2C, h, w) float32 of one picture, on the device. Raises InputError for a broken one."""
    with torch.inference_mode():
        both = torch.cat(family.encode_images(read_pixels(job)[None]), dim=1)
    return both[0].float().clone()


def _encode(
    group: Sequence[tuple[int, Tensor]],
    jobs: Sequence[LatentJob],
    family: Family,
    cache: LatentCache,
    rows: list[Tensor | None],
) -> None:
    pixels = torch.stack([pixels for _, pixels in group])  # (B, 3, H, W)
    with torch.inference_mode():
        mean, deviation = family.encode_images(pixels)
    both = torch.cat([mean, deviation], dim=1).float().cpu().clone()  # (B, 2C, h, w)
    for (index, _), latents in zip(group, both, strict=True):
        if not torch.isfinite(latents).all():
            raise InputError(
                f"{jobs[index].path}: its latents are not finite; try --no_half_vae or another --vae"
            )
        rows[index] = latents.clone()
        cache.put(jobs[index], latents.contiguous())
