"""lora-train's bucket options on the command lines of the dataset tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.pictures.buckets import BucketRule, Size
from lorapipe_engine.settings import DataSettings


def _same(name: str) -> Any:
    """lora-train's option: its default, help and range."""
    row = next(row for row in dataclasses.fields(DataSettings) if row.name == name)
    return dataclasses.field(default=row.default, metadata=row.metadata)


@dataclass(frozen=True, kw_only=True)
class BucketSettings:
    """Buckets, as lora-train has them"""

    resolution: tuple[int, int] = _same("resolution")
    train_batch_size: int = _same("train_batch_size")
    enable_bucket: bool = _same("enable_bucket")
    min_bucket_reso: int = _same("min_bucket_reso")
    max_bucket_reso: int = _same("max_bucket_reso")
    bucket_reso_steps: int = _same("bucket_reso_steps")
    bucket_no_upscale: bool = _same("bucket_no_upscale")

    def data(self) -> DataSettings:
        """lora-train's settings with these, its defaults in all else."""
        return DataSettings(**{row.name: getattr(self, row.name) for row in dataclasses.fields(self)})


def bucket_rule(data: DataSettings) -> BucketRule:
    """The rule that lora-train makes of these options (bounds give way to the resolution)."""
    return BucketRule(
        resolution=data.resolution,
        min_size=min(data.min_bucket_reso, *data.resolution),
        max_size=max(data.max_bucket_reso, *data.resolution),
        step=data.bucket_reso_steps,
        no_upscale=data.bucket_no_upscale,
        enabled=data.enable_bucket,
    )


def batches_per_epoch(buckets: Sequence[Size], repeats: Sequence[int], batch_size: int) -> int:
    """Batches of an epoch as lora-train makes them: each bucket's pictures times repeats, the last batch short."""
    totals: dict[Size, int] = {}
    for bucket, count in zip(buckets, repeats, strict=True):
        totals[bucket] = totals.get(bucket, 0) + count
    return sum(-(-total // batch_size) for total in totals.values())
