"""Where the trainer puts each picture, and what that means for the set: a record a picture, and a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.pictures.dataset import Dataset, Picture
from lorapipe_engine.command.text import printable
from lorapipe_engine.datasets.spec import bucket_rule
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.batches import batches_per_epoch
from lorapipe_engine.pictures.buckets import BucketRule, Placement, Size, place
from lorapipe_engine.settings import DataSettings

WORST = 5


@dataclass(frozen=True)
class Placed:
    """A picture in its bucket, ``repeats`` times an epoch."""

    path: Path
    size: Size
    placement: Placement
    repeats: int

    @property
    def scale(self) -> float:
        """How much the picture is enlarged, below 1 reduced."""
        return max(r / s for r, s in zip(self.placement.resized, self.size, strict=True))

    def as_record(self) -> dict[str, Any]:
        """The record of ``lora-check buckets --json``."""
        return {
            "path": str(self.path),
            "image": list(self.size),
            "bucket": list(self.placement.bucket),
            "resized": list(self.placement.resized),
            "crop": list(self.placement.crop),
            "loss": round(self.placement.loss, 4),
            "repeats": self.repeats,
        }


@dataclass(frozen=True)
class Unplaced:
    """A picture that has no bucket, and why."""

    path: Path
    problem: str

    def as_record(self) -> dict[str, Any]:
        """The record of ``lora-check buckets --json``."""
        return {"path": str(self.path), "error": self.problem}


@dataclass(frozen=True)
class Bucket:
    """One bucket: pictures, pictures of an epoch (repeats counted), mean share that is cut away, the last batch."""

    size: Size
    pictures: int
    shown: int
    loss: float
    rest: int


@dataclass(frozen=True)
class BucketReport:
    """All buckets, largest first; ``shapes`` are shares of portrait, landscape and square pictures of an epoch. Without
    ``numbered`` no folder says how often its pictures come, and each counts once."""

    buckets: tuple[Bucket, ...]
    shapes: dict[str, float]
    worst: tuple[Placed, ...]
    loss: float
    batches: int
    batch_size: int
    numbered: bool = True

    def as_record(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "buckets": [
                {
                    "bucket": list(bucket.size),
                    "pictures": bucket.pictures,
                    "shown": bucket.shown,
                    "loss": round(bucket.loss, 4),
                    "last_batch": bucket.rest,
                }
                for bucket in self.buckets
            ],
            "orientation": {name: round(share, 4) for name, share in self.shapes.items()},
            "crop_loss": round(self.loss, 4),
            "worst": [placed.as_record() for placed in self.worst],
            "batches_per_epoch": self.batches,
        }


def place_all(dataset: Dataset, data: DataSettings) -> list[Placed | Unplaced]:
    """The trained pictures in their buckets, in the order of their names. Raises ConfigError for a wrong rule."""
    rule = bucket_rule(data)
    return [_place(picture, rule) for picture in dataset.trained]


def _place(picture: Picture, rule: BucketRule) -> Placed | Unplaced:
    if picture.size is None:
        return Unplaced(picture.path, picture.problem or "cannot be read")
    try:
        placement = place(picture.size, rule)
    except ConfigError as error:
        return Unplaced(picture.path, str(error))
    return Placed(picture.path, picture.size, placement, picture.place.repeats or 1)


def bucket_report(placed: Sequence[Placed], batch_size: int, *, numbered: bool = True) -> BucketReport:
    """Gather pictures by bucket; ``numbered``: whether the folders say how often each comes."""
    groups: dict[Size, list[Placed]] = {}
    for one in placed:
        groups.setdefault(one.placement.bucket, []).append(one)
    buckets = [
        Bucket(
            size,
            len(group),
            shown := sum(one.repeats for one in group),
            sum(one.placement.loss for one in group) / len(group),
            shown % batch_size,
        )
        for size, group in groups.items()
    ]
    buckets.sort(key=lambda bucket: (-bucket.shown, bucket.size))
    losses = [one.placement.loss for one in placed]
    worst = sorted(placed, key=lambda one: (-one.placement.loss, one.path))[:WORST]
    return BucketReport(
        tuple(buckets),
        _shapes(buckets),
        tuple(one for one in worst if one.placement.loss > 0),
        sum(losses) / max(1, len(losses)),
        batches_per_epoch(
            [(0, p.placement.bucket) for p in placed], [p.repeats for p in placed], [batch_size]
        ),
        batch_size,
        numbered,
    )


def _shapes(buckets: Sequence[Bucket]) -> dict[str, float]:
    shown = dict.fromkeys(("portrait", "landscape", "square"), 0)
    for bucket in buckets:
        width, height = bucket.size
        shown["square" if width == height else "portrait" if width < height else "landscape"] += bucket.shown
    whole = max(1, sum(shown.values()))
    return {name: count / whole for name, count in shown.items()}


def table(report: BucketReport) -> Iterator[str]:
    """The report for a person."""
    yield (
        f"{'bucket':>11}  {'images':>6}  {'epoch' if report.numbered else 'once':>6}  {'share':>5}  {'cut':>6}"
        + ("  last batch" if report.batch_size > 1 else "")
    )
    whole = max(1, sum(bucket.shown for bucket in report.buckets))
    for bucket in report.buckets:
        rest = f"  {bucket.rest} of {report.batch_size}" if bucket.rest else ""
        yield (
            f"{bucket.size[0]:>5}x{bucket.size[1]:<5}  {bucket.pictures:>6}  {bucket.shown:>6}  "
            f"{bucket.shown / whole:>5.0%}  {bucket.loss:>6.1%}{rest}"
        )
    shapes = ", ".join(f"{name} {share:.0%}" for name, share in report.shapes.items())
    how = "an epoch" if report.numbered else "with each picture once"
    yield f"{shapes}; {report.loss:.1%} of a picture is cut away on average; {report.batches} batches {how}"
    for one in report.worst:
        width, height = one.size
        yield f"cut most: {one.placement.loss:.1%} of {printable(str(one.path))} ({width}x{height})"
