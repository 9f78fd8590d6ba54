"""The set as a whole: buckets, orientation, amount, balance of the concepts."""

from __future__ import annotations

from collections.abc import Iterator

from lorapipe_dataset.check.buckets import Placed, Unplaced, bucket_report, place_all
from lorapipe_dataset.check.findings import Check, Finding, Rule, Skipped
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset
from lorapipe_engine.datasets.kinds import KINDS

MUCH_CUT = 0.15
LOPSIDED = 0.25  # fewer of one orientation than this share of the other
FAR_SHARE = 0.10

NO_BUCKET = Rule(
    "no-bucket", "error", "Pictures that fit no bucket", "take them out, or change the option that is named"
)
CUT = Rule(
    "crop-loss",
    "warning",
    "Pictures of which more than 15 % are cut away",
    "crop them yourself, or allow longer buckets (--max-bucket-reso, --min-bucket-reso)",
)
LONELY = Rule(
    "short-batch",
    "info",
    "Buckets with fewer pictures than a batch",
    "a smaller batch, larger --bucket-reso-steps, or crops of another shape",
)
ORIENTATION = Rule(
    "orientation",
    "info",
    "Far more portrait than landscape pictures, or the other way round",
    "the rare shape will come out worse; crop some pictures to it",
)
FEW = Rule("few-pictures", "warning", "Few pictures: it overtrains sooner", "more pictures, or fewer steps")
MANY = Rule(
    "many-pictures", "info", "Many pictures at the default rate", "train longer at the same learning rate"
)
EPOCH = Rule("epoch-length", "warning", "An epoch that is too short or too long", "lora-repeats DIR --rename")
SHARES = Rule(
    "balance",
    "warning",
    "Concepts of unequal shares",
    "lora-repeats DIR --rename, or leave it if it is meant",
)


def find_buckets(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """What bucketing does to the pictures."""
    rows = place_all(dataset, options.data)
    placed = [row for row in rows if isinstance(row, Placed)]
    readable = {picture.path for picture in dataset.trained if picture.size}
    for row in rows:
        if isinstance(row, Unplaced):
            if row.path in readable:
                yield Finding(NO_BUCKET, row.problem, (row.path,))
        elif row.placement.loss > MUCH_CUT:
            size, bucket = row.size, row.placement.bucket
            text = f"{row.placement.loss:.0%} of {size[0]}x{size[1]}, cut to {bucket[0]}x{bucket[1]}"
            yield Finding(CUT, text, (row.path,), {"loss": round(row.placement.loss, 4)})
    report = bucket_report(placed, options.data.train_batch_size)
    for group in report.buckets:
        if group.shown < report.batch_size:
            paths = tuple(one.path for one in placed if one.placement.bucket == group.size)
            text = f"{group.size[0]}x{group.size[1]}: {group.shown} for batches of {report.batch_size}"
            yield Finding(LONELY, text, paths)
    shares = report.shapes
    rare, common = sorted(("portrait", "landscape"), key=lambda name: shares[name])
    if shares[common] > 0.3 and shares[rare] < LOPSIDED * shares[common]:
        yield Finding(
            ORIENTATION, f"{common} {shares[common]:.0%}, {rare} {shares[rare]:.0%}", (), dict(shares)
        )


def find_amounts(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """How many pictures there are, and how often they come in an epoch."""
    if options.kind is None:
        raise Skipped("needs --kind character, style or concept")
    kind, count = KINDS[options.kind], len(dataset.trained)
    if kind.pictures and count < kind.pictures[0]:
        yield Finding(FEW, f"{count} for a {kind.name}; {kind.pictures[0]} to {kind.pictures[1]} are good")
    if kind.pictures and count > kind.pictures[1]:
        yield Finding(MANY, f"{count} for a {kind.name}; {kind.pictures[0]} to {kind.pictures[1]} are usual")
    if any(place.repeats is None for place in dataset.places if place.trained):
        return
    shown = sum(picture.place.repeats or 1 for picture in dataset.trained)
    low, high = kind.epoch_range
    if not low <= shown <= high:
        yield Finding(
            EPOCH,
            f"{shown} pictures an epoch; {low} to {high} are good for a {kind.name}",
            (),
            {"shown": shown},
        )


def find_shares(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Concepts that come far more or less often than an equal share."""
    shown = {
        name: sum(p.place.repeats or 1 for p in group) for name, group in sorted(dataset.concepts.items())
    }
    whole = sum(shown.values())
    off = {
        name: count / whole
        for name, count in shown.items()
        if abs(count / whole - 1 / len(shown)) > FAR_SHARE
    }
    if off:
        text = ", ".join(f"{name} {share:.0%}" for name, share in off.items())
        of = "an epoch" if dataset.numbered else "the pictures"
        yield Finding(SHARES, f"{text} of {of}; equal shares are {1 / len(shown):.0%}", (), off)


CHECKS = (
    Check((NO_BUCKET, CUT, LONELY, ORIENTATION), find_buckets),
    Check((FEW, MANY, EPOCH), find_amounts),
    Check((SHARES,), find_shares),
)
