"""Aspect-ratio buckets: which size each picture is trained at, and what of it is cut away.

The rule is the field's own (sd-scripts), since it decides which pixels are trained: pictures of similar shape
share a bucket of about the wanted area, are scaled to *cover* it and cropped at the centre. All sizes are
``(width, height)`` in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lorapipe_engine.errors import ConfigError

Size = tuple[int, int]
FINEST_STEP = 8  # pixels: one of latents


@dataclass(frozen=True, kw_only=True)
class BucketRule:
    """How sizes are chosen.

    ``resolution``: wanted area, as width and height; ``min_size`` and ``max_size``: bounds of either side of a
    bucket; ``step``: every side is a multiple of it; ``no_upscale``: never enlarge a picture (the bounds then
    do not apply); ``enabled``: false trains every picture at ``resolution`` itself.
    """

    resolution: Size
    min_size: int = 256
    max_size: int = 1536
    step: int = 64
    no_upscale: bool = False
    enabled: bool = True

    def __post_init__(self) -> None:
        if min(self.resolution) < 8:
            raise ConfigError(
                f"resolution: {self.resolution[0]}x{self.resolution[1]} is too small (8 at least)"
            )
        if self.step < FINEST_STEP or self.step % FINEST_STEP:
            raise ConfigError(f"bucket_reso_steps: {self.step} is not a multiple of 8")
        if self.enabled and not self.no_upscale:
            if self.min_size > min(self.resolution):
                raise ConfigError(
                    f"min_bucket_reso: {self.min_size} is above the resolution "
                    f"{self.resolution[0]}x{self.resolution[1]}; lower it, or leave enable_bucket off"
                )
            if self.max_size < max(self.resolution):
                raise ConfigError(
                    f"max_bucket_reso: {self.max_size} is below the resolution "
                    f"{self.resolution[0]}x{self.resolution[1]}; raise it"
                )


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: its bucket, the size it is resized to, and the corner of the crop in that size."""

    bucket: Size
    resized: Size
    crop: tuple[int, int]

    @property
    def loss(self) -> float:
        """Share of the resized picture that the crop cuts away, 0 to 1."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


@lru_cache(maxsize=64)
def bucket_sizes(rule: BucketRule) -> tuple[Size, ...]:
    """All buckets of a rule, sorted by width and height (none for ``no_upscale``, where pictures decide)."""
    if rule.no_upscale:
        return ()
    if not rule.enabled:
        return (rule.resolution,)
    step = rule.step
    area = rule.resolution[0] * rule.resolution[1]
    low = rule.min_size // step * step
    high = -(-rule.max_size // step) * step
    side = int(area**0.5) // step * step
    sizes = {(side, side)}
    for width in range(max(low, step), high + step, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(size for size in sizes if min(size) > 0))


def place(image: Size, rule: BucketRule) -> Placement:
    """Choose the bucket of a picture of size ``image``.

    Raises ConfigError for a picture that is smaller than one bucket step where enlarging is forbidden, and for a
    resolution that is too small for every bucket.
    """
    if not rule.enabled:
        return _cover(image, rule.resolution)
    if rule.no_upscale:
        return _place_without_enlarging(image, rule)
    sizes = bucket_sizes(rule)
    if not sizes:
        raise ConfigError(
            f"bucket_reso_steps: no bucket with sides of {rule.step} has so small an area as the resolution "
            f"{rule.resolution[0]}x{rule.resolution[1]}; lower it, or leave enable_bucket off"
        )
    if image in sizes:
        return _cover(image, image)
    ratio = image[0] / image[1]
    # The first of the nearest, by width/height: portrait and landscape twins may differ (train.md, section 7).
    far = [abs(other - ratio) for other in _ratios(rule)]
    return _cover(image, sizes[far.index(min(far))])


@lru_cache(maxsize=64)
def _ratios(rule: BucketRule) -> tuple[float, ...]:
    return tuple(width / height for width, height in bucket_sizes(rule))


def _cover(image: Size, bucket: Size) -> Placement:
    """Scale to cover the bucket, crop at the centre."""
    width, height = image
    if width / height > bucket[0] / bucket[1]:
        scale = bucket[1] / height
    else:
        scale = bucket[0] / width
    resized = (int(width * scale + 0.5), int(height * scale + 0.5))
    crop = ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)
    return Placement(bucket, resized, crop)


def _place_without_enlarging(image: Size, rule: BucketRule) -> Placement:
    width, height = image
    area = rule.resolution[0] * rule.resolution[1]
    step = rule.step
    resized = image
    if width * height > area:
        resized = _shrink_to_area(width / height, area, step)
    bucket = (resized[0] // step * step, resized[1] // step * step)
    if min(bucket) < step:
        raise ConfigError(
            f"a picture of {width}x{height} is smaller than one bucket step of {step}: "
            "leave it out, lower bucket_reso_steps, or allow enlarging (without bucket_no_upscale)"
        )
    crop = ((resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2)
    return Placement(bucket, resized, crop)


def _shrink_to_area(ratio: float, area: int, step: int) -> Size:
    """The size of aspect ``ratio`` nearest to ``area`` of which one side is a multiple of ``step``."""

    def floor_to_step(value: float) -> int:
        return int(value + 0.5) // step * step

    width, height = (area * ratio) ** 0.5, area / (area * ratio) ** 0.5
    by_width = floor_to_step(width)
    by_height = floor_to_step(height)
    ratio_by_width = by_width / floor_to_step(by_width / ratio) if floor_to_step(by_width / ratio) else 1e9
    ratio_by_height = floor_to_step(by_height * ratio) / by_height if by_height else 1e9
    if abs(ratio_by_width - ratio) < abs(ratio_by_height - ratio):
        return by_width, int(by_width / ratio + 0.5)
    return int(by_height * ratio + 0.5), by_height
