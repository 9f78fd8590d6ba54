"""What came of variants.py, in words: a line a run, a table of means, and how far loss curves lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

FIGURES = ("with the trigger", "without the trigger", "other people")


def told(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    shares = ", ".join(f"{name} {row['figures'][name]:.1%}" for name in FIGURES)
    return f"{shares}; mean loss {row['loss']:.4f}; {row['steps']} steps, {row['seconds']:.0f} s"


def markdown(rows: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
    """The table: a line for each variant, means over its seeds."""
    lines = [
        "| variant | base, trigger | LoRA, trigger | without trigger | other people | mean loss | last epoch | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        same = [row for row in rows if row["name"] == name]
        good = [row for row in same if "error" not in row]
        if not good:
            lines.append(f"| {name} | {same[0]['error']} |||||||")
            continue
        shares = [f"{mean(row['figures'][figure] for row in good):.1%}" for figure in ("base", *FIGURES)]
        if len(good) > 1:
            each = sorted(row["figures"][FIGURES[0]] for row in good)
            shares[1] += f" ({each[0]:.1%} to {each[-1]:.1%})"
        losses = [
            f"{mean(row['loss'] for row in good):.4f}",
            f"{mean(row['epochs'][-1] for row in good):.4f}",
        ]
        lines.append(
            "| " + " | ".join([name, *shares, *losses, f"{mean(r['seconds'] for r in good):.0f}"]) + " |"
        )
    lines += [f"| {name} | {reason} |||||||" for name, reason in skipped.items()]
    return "\n".join([*lines, "", *overlap(rows)]) + "\n"


SMOOTH = 20  # steps that a smoothed loss is the mean of
CURVES = ("AdamW", "batch 1, 4 accumulated", "AdamW, other draws")


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each step's loss and those before it, ``SMOOTH`` at most."""
    return [mean(losses[max(0, step - SMOOTH) : step]) for step in range(1, len(losses) + 1)]


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The smoothed losses of the runs that are to overlap, of the first seed."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        if row["name"] in CURVES and "error" not in row:
            by_name.setdefault(row["name"], smoothed(row["losses"]))
    return by_name


def overlap(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far the loss curves of batch 4 and of batch 1 with 4 accumulated lie apart, and, to compare, those of two
    runs that differ in their random draws alone.
    """
    by_name = curves(rows)
    lines = []
    for other in CURVES[1:]:
        if CURVES[0] not in by_name or other not in by_name:
            continue
        pairs = list(zip(by_name[CURVES[0]], by_name[other], strict=False))[SMOOTH - 1 :]
        gaps = [abs(one - two) / one for one, two in pairs]
        if gaps:
            lines.append(
                f"Losses of `{CURVES[0]}` and `{other}`, means of {SMOOTH} steps: {mean(gaps):.1%} apart on average, "
                f"at most {max(gaps):.1%}."
            )
    return lines


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw them, where there are two at least."""
    from lorapipe_engine.pictures.charts import Line, write_chart

    by_name = curves(rows)
    if len(by_name) > 1:
        lines = [Line(name, values) for name, values in by_name.items()]
        write_chart(path, lines, f"loss, means of {SMOOTH} steps", force=True)
