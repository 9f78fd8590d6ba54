"""Which curves stand on which chart, and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lorapipe_engine.pictures.charts import Chart, Line
from lorapipe_inspect.curves.read import Curve, Run

_DIVERGENCE = "validation loss less the training loss"
_BY_TIME = "validation loss by timestep"
_HELD = "loss of preservation"
TITLES = (
    *("learning rate", "loss", "loss by timestep", _HELD, "validation loss", _BY_TIME, _DIVERGENCE),
    "gradient norm",
)
Pick = tuple[Run, str, str]  # a run, its name, a tag
_EPOCHS = "loss/epoch_average"  # recorded by epoch, beside curves by step
_FEW = 50  # steps by which a curve is smoothed, at most
_COUNT = "max_norm/keys_scaled"
_FIGURES, _PASSES = "figures/", "figures/passes"  # of lora-train --early_stop_by; the second is 0 or 1


def kind_of(tag: str) -> str | None:
    """What a tag is about; None for tags that are none of the usual ones."""
    if tag.startswith("loss/validation/"):
        return "validation"
    if tag.startswith("loss/timesteps/"):
        return "timesteps"
    if tag.startswith("loss/"):
        return None if tag == _EPOCHS else "loss"
    if tag.startswith("lr/"):
        return "rate"
    if tag.startswith(_FIGURES):
        return None if tag == _PASSES else "figures"
    if tag.startswith(("norm/", "max_norm/")) or tag == "grad_norm":
        return None if tag == _COUNT else "norms"
    return None


def charts_of(
    runs: Sequence[Run], names: Sequence[str], kinds: Iterable[str], tags: Sequence[str], smooth: int | None
) -> list[Chart]:
    """Charts of all runs, of each kind, or one for each of ``tags`` where some are given.

    ``smooth``: steps of the running mean of losses and gradient norms; None for a fiftieth of the run.
    """
    panels: dict[str, list[Pick]] = {}
    for run, name in zip(runs, names, strict=True):
        chosen = [(tag, tag) for tag in tags if tag in run.curves]
        chosen = chosen if tags else [pair for kind in kinds for pair in _of_kind(run, kind)]
        for title, tag in chosen:
            panels.setdefault(title, []).append((run, name, tag))
    order = list(tags or TITLES)
    ranked = sorted(panels, key=lambda title: order.index(title) if title in order else len(order))
    return [_chart(title, panels[title], smooth) for title in ranked]


def _of_kind(run: Run, kind: str) -> Iterator[tuple[str, str]]:
    """A run's tags of a kind, each with the title of its chart: those of one size share one."""
    tags = [tag for tag in run.curves if kind_of(tag) == kind]
    if kind == "rate":
        # An optimizer that finds its rate itself shows what comes of it.
        own = [tag for tag in tags if tag.startswith("lr/d*lr/")]
        yield from (("learning rate", tag) for tag in own or tags)
    elif kind == "loss":
        known = [tag for tag in ("loss/current", "loss/average") if tag in tags]
        yield from (("loss", tag) for tag in known[:1] or tags)
        yield from ((_HELD, tag) for tag in tags if known and tag == "loss/preservation")
    elif kind == "timesteps":
        yield from (("loss by timestep", tag) for tag in sorted(tags))
    elif kind == "figures":
        yield from ((tag.removeprefix(_FIGURES), tag) for tag in tags)
    elif kind == "validation":
        yield from ((_validation_chart(tag), tag) for tag in tags)
    else:
        yield from ((tag.rpartition("/")[0] or "gradient norm", tag) for tag in tags)


def _validation_chart(tag: str) -> str:
    if tag.endswith("divergence"):
        return _DIVERGENCE
    return _BY_TIME if re.search(r"_at_[\d.e+-]+$", tag) else "validation loss"


def _chart(title: str, picks: Sequence[Pick], smooth: int | None) -> Chart:
    lines: list[Line] = []
    means: set[int] = set()
    runs = {run.path for run, _, _ in picks}
    tags = {tag for _, _, tag in picks}
    for run, name, tag in picks:
        curve = run.curves[tag]
        count = _steps(curve, tag, smooth)
        means |= {count} if count > 1 else set()
        short = tag.rpartition("/")[2] if len(tags) > 1 else ""
        label = " ".join(word for word in (name if len(runs) > 1 else "", short) if word) or tag
        lines.append(Line(label, smoothed(curve.values, count), curve.steps))
    note = f", means of {' and '.join(map(str, sorted(means)))} steps" if means else ""
    return Chart(title + note, lines, from_zero=title == "learning rate")


def _steps(curve: Curve, tag: str, smooth: int | None) -> int:
    """How many steps a curve is smoothed by: what jumps from step to step, so that others can be seen."""
    if tag not in ("loss/current", "loss/preservation", "grad_norm"):
        return 1
    return max(1, min(_FEW, len(curve.values) // 50)) if smooth is None else smooth


def smoothed(values: Sequence[float], count: int) -> list[float]:
    """The mean of each value and the ``count - 1`` before it, of as many as there are at the start."""
    if count <= 1:
        return list(values)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - count)
    return [float(value) for value in (sums[ends] - sums[starts]) / (ends - starts)]
