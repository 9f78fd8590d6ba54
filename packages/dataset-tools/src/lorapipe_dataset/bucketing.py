"""lora-train's bucket options on the command lines of the dataset tools."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.command.options import option
from lorapipe_engine.settings import DataSettings


def _same(name: str) -> Any:
    """lora-train's option: its default, help and range."""
    row = next(row for row in dataclasses.fields(DataSettings) if row.name == name)
    return dataclasses.field(default=row.default, metadata=row.metadata)


@dataclass(frozen=True, kw_only=True)
class BucketSettings:
    """Buckets, as lora-train has them"""

    resolution: tuple[int, int] = option((512, 512), "Training size: one number, or width,height.")
    train_batch_size: int = _same("train_batch_size")
    enable_bucket: bool = _same("enable_bucket")
    min_bucket_reso: int = _same("min_bucket_reso")
    max_bucket_reso: int = _same("max_bucket_reso")
    bucket_reso_steps: int = _same("bucket_reso_steps")
    bucket_no_upscale: bool = _same("bucket_no_upscale")

    def data(self) -> DataSettings:
        """lora-train's settings with these, its defaults in all else."""
        own = {row.name: getattr(self, row.name) for row in dataclasses.fields(self)}
        return DataSettings(**{**own, "resolution": self.resolution})
