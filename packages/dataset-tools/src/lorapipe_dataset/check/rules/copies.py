"""Copies: the same picture twice, or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from lorapipe_dataset.check.findings import NOT_DECODED, Check, Finding, Rule, Skipped
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.copies import Sameness, find_groups
from lorapipe_dataset.check.pictures.crops import MOST, find_crops
from lorapipe_dataset.check.pictures.dataset import Dataset

EXACT = Rule(
    "duplicate",
    "warning",
    "The same picture more than once",
    "keep the first of each group (--fix moves the others away)",
    fixable=True,
)
NEAR = Rule(
    "near-duplicate",
    "warning",
    "Nearly the same picture more than once",
    "keep the first of each group, the largest (--fix moves the others away; look at them first)",
    fixable=True,
)
VARIANT = Rule(
    "variant",
    "info",
    "Variants of a picture: other details or colours",
    "keep them if they differ in what you tag",
)
CROP = Rule(
    "crop",
    "info",
    "Pictures that are cut out of others",
    "keep them where the part is meant, as a face; else it is trained more often than the rest",
)
RULES: dict[Sameness, Rule] = {"exact": EXACT, "near": NEAR, "variant": VARIANT}


def find_copies(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Groups of copies among what is trained, the one to keep first. What is not trained is nobody's copy: a larger
    original that lies beside must not take the place of a picture that is trained.
    """
    if not options.look:
        raise Skipped(NOT_DECODED)
    for group in find_groups(dataset.trained, options.distance):
        size = group.pictures[0].size or (0, 0)
        text = f"{len(group.pictures)} pictures, keep {group.pictures[0].path.name} ({size[0]}x{size[1]})"
        data = {"keep": str(group.pictures[0].path), "distance": group.distance}
        yield Finding(RULES[group.sameness], text, tuple(picture.path for picture in group.pictures), data)


def find_parts(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Pictures that are parts of others, but for those that are copies. It takes several times as long as all else, so
    it is done where it is asked for."""
    if not (options.crops or CROP.id in options.only):
        return
    if not options.look:
        raise Skipped(NOT_DECODED)
    if len(dataset.trained) > MOST:
        raise Skipped(f"more than {MOST:,} pictures, too many to compare each with the parts of all others")
    copies = [
        [one.path for one in group.pictures] for group in find_groups(dataset.trained, options.distance)
    ]
    same = {frozenset(pair) for group in copies for pair in combinations(group, 2)}
    for crop in find_crops(dataset.trained, same):
        left, top, right, bottom = (round(100 * share) for share in crop.box)
        text = (
            f"{crop.area:.0%} of {crop.whole.path.name}: {left} to {right} % across, {top} to {bottom} % down"
        )
        data = {"whole": str(crop.whole.path), "box": [round(share, 3) for share in crop.box]}
        yield Finding(CROP, text, (crop.part.path, crop.whole.path), data)


CHECKS = (Check((EXACT, NEAR, VARIANT), find_copies), Check((CROP,), find_parts))
