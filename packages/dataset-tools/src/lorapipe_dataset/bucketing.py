"""The trainer's bucket options as they stand on the command lines of the dataset tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from lorapipe_engine.command.options import Field, build_settings, fields_of
from lorapipe_engine.pictures.buckets import BucketRule, Size
from lorapipe_engine.settings import DataSettings

NAMES = (
    "resolution",
    "train_batch_size",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)


def bucket_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds lora-train's bucket options (``NAMES``) as raw flags; :func:`read_options` reads them."""
    rows = {field.name: field for field in fields_of(DataSettings)}
    for name in reversed(NAMES):
        function = _flag(rows[name])(function)
    return function


def _flag(field: Field) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    if field.type is bool:
        names = f"--{field.name}/--no_{field.name}"
        text = field.facts.help + ("  [default: yes]" if field.default else "")
        return click.option(names, field.name, default=None, is_flag=True, help=text)
    metavar = "N[,N]" if field.is_pair else "N"
    text = f"{field.facts.help}  [default: {shown}]"
    return click.option(f"--{field.name}", field.name, default=None, help=text, metavar=metavar)


def read_options(flags: dict[str, Any]) -> DataSettings:
    """Take the bucket options out of ``flags`` and check them as lora-train does. Raises ConfigError."""
    given = {name: flags.pop(name) for name in NAMES}
    settings: DataSettings = build_settings([DataSettings], given)[0][0]
    return settings


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
