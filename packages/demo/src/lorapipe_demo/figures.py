"""What the network learned: the pictures that are drawn, and the judge's figures of them with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo import recipe
from lorapipe_demo.made import Made
from lorapipe_demo.scene import TRIGGER
from lorapipe_engine.command.progress import progress
from lorapipe_engine.models.bases import demo_base

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorapipe_demo.judge import Judge

FIRST_SEED = 1000
CONFIDENCE = 0.95
LINE_EVERY = 15.0  # seconds between lines that tell the time left, where there is no terminal
MERGED = 8  # pictures that the merged base is compared by


@dataclass(frozen=True)
class Series:
    """Pictures to draw: a prompt and a seed each, with a network or none, by the demo's base or another file.

    ``in_weights`` and ``strength``: see :meth:`lorapipe_demo.sampling.Painter.draw`.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    network: Path | None = None
    base: Path | None = None
    in_weights: bool = True
    strength: float = 1.0


@dataclass(frozen=True)
class Share:
    """In how many of ``count`` pictures she was seen."""

    seen: int
    count: int

    @property
    def value(self) -> float:
        """The share, 0..1."""
        return self.seen / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The shares, 0..1, that would not make this count surprising: Clopper and Pearson's interval of 95 %."""
        tail = (1 - CONFIDENCE) / 2
        low = _solve(lambda p: 1 - _at_most(self.seen - 1, self.count, p) - tail) if self.seen else 0.0
        high = _solve(lambda p: tail - _at_most(self.seen, self.count, p)) if self.seen < self.count else 1.0
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % (interval {100 * low:.0f} to {100 * high:.0f})"


def _at_most(seen: int, count: int, share: float) -> float:
    """How likely ``seen`` or fewer of ``count`` are."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(seen + 1))


def _solve(rising: Callable[[float], float]) -> float:
    """Where a function that rises over 0..1 is zero."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return low


def shown_epochs(epochs: int, shown: int) -> list[int]:
    """The epochs that the grid shows, counted from 1: at equal distances, the last among them."""
    count = min(epochs, shown)
    return [place * epochs // count for place in range(1, count + 1)]


def plan_series(networks: Sequence[Path], made: Made, shown: int) -> dict[str, Series]:
    """Everything that is drawn, by name. Figures, grid and the check of the merged base share pictures.

    ``networks``: one for each epoch; ``shown``: see :class:`lorapipe_demo.recipe.Recipe`.
    """
    scenes = recipe.exam_scenes()
    calls = [recipe.with_trigger(scene) for scene in scenes]
    silent = [recipe.without_trigger(scene) for scene in scenes]
    others, seeds = recipe.other_prompts(), [FIRST_SEED + index for index in range(recipe.EXAM_SIZE)]
    last = networks[-1]
    few = recipe.COMPARED_OTHERS
    rest, rest_seeds = [*silent[:few], *others[:few]], [*seeds[:few], *seeds[:few]]
    compared = [*calls[: recipe.COMPARED_CALLS], *rest], [*seeds[: recipe.COMPARED_CALLS], *rest_seeds]
    series = {
        "base": Series(calls, seeds),
        # With adapters beside the layers, as in training: the merged base is compared with these.
        "calls": Series(calls, seeds, last, in_weights=False),
        "silent": Series(silent, seeds, last),
        "others": Series(others, seeds, last),
        "small": Series(calls, seeds, made.small),
        "merged": Series(calls[:MERGED], seeds[:MERGED], base=made.merged),
        "base, others": Series(rest, rest_seeds),
    }
    if made.extracted is not None:
        series["extracted"] = Series(calls, seeds, made.extracted)
    for epoch in shown_epochs(len(networks), shown):
        network = networks[epoch - 1]
        if network != last:
            series[f"epoch {epoch}"] = Series(*compared, network)
        for weight in recipe.WEIGHTS:
            if weight != 1:
                row = Series(calls[:1], seeds[:1], network, strength=weight)
                series[f"epoch {epoch}, weight {weight:g}"] = row
    return series


def draw_series(series: Mapping[str, Series], device: str | None, steps: int) -> dict[str, list[Image]]:
    """The pictures of every series, with the time left on a bar or in lines. ``steps``: of the sampler."""
    from lorapipe_demo.sampling import Painter

    painters: dict[Path, Painter] = {}
    drawn: dict[str, list[Image]] = {}
    total = sum(len(row.prompts) for row in series.values())
    with progress(total, "drawing", "pictures", line_every=LINE_EVERY) as bar:
        for name, row in series.items():
            base = row.base or demo_base()
            if base not in painters:
                painters[base] = Painter(base, device, steps)
            drawn[name] = painters[base].draw(
                row.prompts,
                row.network,
                row.seeds,
                bar.update,
                in_weights=row.in_weights,
                strength=row.strength,
            )
    return drawn


def shares(drawn: Mapping[str, Sequence[Image]], judge: Judge) -> dict[str, Share]:
    """How often the judge sees her, by what was drawn."""
    titles = {
        "base": "base model, with the trigger",
        "calls": "LoRA, with the trigger",
        "silent": "LoRA, same prompts without the trigger",
        "others": "LoRA, other people",
        "small": f"LoRA at rank {recipe.SMALL_RANK}, with the trigger",
        "extracted": "LoRA out of the merged base, with the trigger",
    }
    figures = {}
    for name, title in titles.items():
        if name not in drawn:
            continue
        answers = judge.look(drawn[name])
        figures[title] = Share(sum(answer["character"] == TRIGGER for answer in answers), len(answers))
    return figures
