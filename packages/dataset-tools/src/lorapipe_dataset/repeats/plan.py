"""The plan of an epoch: each concept's repeats and share, the epochs to train, and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorapipe_dataset.repeats.numbers import Target, choose_repeats, epochs_to, shares
from lorapipe_dataset.repeats.sources import Concept, folder_name
from lorapipe_engine.command.text import printable
from lorapipe_engine.datasets.kinds import Kind
from lorapipe_engine.errors import ConfigError

FAR_SHARE = 0.10  # a share this far from its wish is told


@dataclass(frozen=True)
class Row:
    """One concept of the plan. ``share`` and ``wished`` are shares of an epoch, 0 to 1."""

    concept: Concept
    repeats: int
    share: float
    wished: float

    @property
    def images(self) -> int:
        return len(self.concept.pictures)

    @property
    def shown(self) -> int:
        """Pictures of the concept in an epoch, repeats counted."""
        return self.repeats * self.images


@dataclass(frozen=True)
class Plan:
    """The whole epoch; ``batches`` are forward passes, of which ``accumulation`` make one optimizer step."""

    rows: tuple[Row, ...]
    kind: Kind
    target: Target
    batches: int
    accumulation: int

    @property
    def images(self) -> int:
        return sum(row.images for row in self.rows)

    @property
    def shown(self) -> int:
        """Pictures in an epoch, repeats counted."""
        return sum(row.shown for row in self.rows)

    @property
    def epochs(self) -> int:
        """Epochs until the kind's recommended number of pictures has been shown."""
        return epochs_to(self.kind.total, self.shown)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.batches // self.accumulation)


def weights_of(concepts: Sequence[Concept], by: str, given: Mapping[str, float]) -> list[float]:
    """The weight of each concept: 1, the root of its number of pictures, or what the user wrote."""
    if by == "sqrt":
        return [len(concept.pictures) ** 0.5 for concept in concepts]
    if by == "weight":
        if not given and not any(concept.weight for concept in concepts):
            raise ConfigError("--by weight: no weights; give --weight NAME=2, or name folders {2}name")
        return [given.get(concept.name, concept.weight or 1.0) for concept in concepts]
    return [1.0] * len(concepts)


def plan_rows(
    concepts: Sequence[Concept], weights: Sequence[float], target: Target, fixed: Mapping[str, float]
) -> tuple[Row, ...]:
    """Choose the repeats; ``fixed`` ones stay. Concepts are sorted by name.

    Where some are fixed, the others share what the fixed ones leave of the epoch.
    """
    order = sorted(range(len(concepts)), key=lambda index: concepts[index].name)
    concepts = [concepts[index] for index in order]
    weights = [weights[index] for index in order]
    open_ones = [index for index, concept in enumerate(concepts) if concept.name not in fixed]
    chosen = {i: int(fixed[c.name]) for i, c in enumerate(concepts) if c.name in fixed}
    if open_ones:
        taken = sum(repeats * len(concepts[index].pictures) for index, repeats in chosen.items())
        counts = [len(concepts[index].pictures) for index in open_ones]
        numbers = choose_repeats(counts, [weights[i] for i in open_ones], _rest(target, taken))
        chosen |= dict(zip(open_ones, numbers, strict=True))
    repeats = [chosen[index] for index in range(len(concepts))]
    parts = shares(repeats, [len(concept.pictures) for concept in concepts])
    whole = sum(weights)
    return tuple(
        Row(concept, r, part, weight / whole)
        for concept, r, part, weight in zip(concepts, repeats, parts, weights, strict=True)
    )


def _rest(target: Target, taken: int) -> Target:
    return Target(max(1, target.length - taken), max(1, target.low - taken), max(1, target.high - taken))


# -------------------------------------------------------------------------------- telling


def warnings_of(plan: Plan) -> list[str]:
    """What the guide says of such numbers: amount of pictures, length of an epoch, balance of the concepts."""
    return [*_amount(plan), *_length(plan), *_balance(plan)]


def _amount(plan: Plan) -> list[str]:
    if plan.kind.pictures is None:
        return []
    low, high = plan.kind.pictures
    count = f"{_plural(plan.images, 'picture')} {'is' if plan.images == 1 else 'are'}"
    if plan.images < low:
        return [f"{count} few for a {plan.kind.name} ({low} to {high}): it overtrains sooner"]
    if plan.images > high:
        return [
            f"{count} many for a {plan.kind.name} ({low} to {high}): "
            "it has to train longer at the same learning rate"
        ]
    return []


def _length(plan: Plan) -> list[str]:
    low, high = plan.kind.epoch_range
    floor = [row for row in plan.rows if row.repeats == 1 and row.images > high]
    advice = [
        f"{row.concept.name}: {row.images} pictures are more than an epoch should have ({high}) even once each"
        for row in floor
    ]
    if plan.shown > high and not floor:
        advice.append(f"{plan.shown} pictures an epoch are above {low} to {high}: fewer repeats")
    elif plan.shown < low:
        shown = _plural(plan.shown, "picture")
        advice.append(
            f"{shown} an epoch {'is' if plan.shown == 1 else 'are'} below {low} to {high}: more repeats"
        )
    return advice


def _balance(plan: Plan) -> list[str]:
    return [
        f"{row.concept.name}: {row.share:.0%} of an epoch instead of {row.wished:.0%}"
        for row in plan.rows
        if abs(row.share - row.wished) > FAR_SHARE
    ]


def table(plan: Plan) -> list[str]:
    """The plan for a person."""
    width = max(7, *(len(printable(row.concept.name)) for row in plan.rows))
    lines = [f"{'concept':<{width}}  {'images':>6}  {'repeats':>7}  {'epoch':>6}  {'share':>5}"]
    lines += [
        f"{printable(row.concept.name):<{width}}  {row.images:>6}  {row.repeats:>7}  "
        f"{row.shown:>6}  {row.share:>5.0%}"
        for row in plan.rows
    ]
    if len(plan.rows) > 1:
        lines.append(f"{'total':<{width}}  {plan.images:>6}  {'':>7}  {plan.shown:>6}  {1:>5.0%}")
    lines.append(
        f"{_plural(plan.steps_per_epoch, 'step')} an epoch, {_plural(plan.epochs, 'epoch')} "
        f"to about {plan.kind.total} pictures "
        f"({plan.kind.total_range[0]} to {plan.kind.total_range[1]} for a {plan.kind.name}), "
        f"{_plural(plan.steps_per_epoch * plan.epochs, 'step')} in all"
    )
    return lines


def as_record(plan: Plan, output: str | None) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "path": output,
        "kind": plan.kind.name,
        "concepts": [
            {
                "concept": row.concept.name,
                "folder": folder_name(row.repeats, row.concept.name),
                "images": row.images,
                "repeats": row.repeats,
                "shown": row.shown,
                "share": round(row.share, 4),
                "wished": round(row.wished, 4),
            }
            for row in plan.rows
        ],
        "images": plan.images,
        "images_per_epoch": plan.shown,
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": plan.epochs,
        "steps": plan.steps_per_epoch * plan.epochs,
        "total_images": plan.kind.total,
        "warnings": warnings_of(plan),
    }


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
