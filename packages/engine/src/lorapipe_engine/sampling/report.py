"""What is said of a plan before it is drawn, and its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lorapipe_engine.command.records import Record, write_record
from lorapipe_engine.sampling.cells import Placed, cell_record
from lorapipe_engine.sampling.plan import Plan
from lorapipe_engine.sampling.values import value_label

MANY = 1000  # pictures


def plan_lines(plan: Plan) -> Iterator[str]:
    """The axes, how many pictures of which sizes, how often the model is evaluated."""
    for axis in plan.axes:
        labels = [_quoted(value_label(value)) for value in axis.values]
        shown = ", ".join(labels if len(labels) <= 12 else [*labels[:10], "...", labels[-1]])
        yield f"{axis.title} ({len(labels)}): {shown}"
    pictures = plan.pictures
    sizes = Counter(f"{row.cell.width}x{row.cell.height}" for row in pictures)
    how_many = ", ".join(f"{count:,} of {size}" if len(sizes) > 1 else size for size, count in sizes.items())
    shared = len(plan.cells) - len(pictures)
    equal = f" ({shared:,} of the cells are equal to others)" if shared else ""
    yield (
        f"{_counted(len(plan.cells), 'cell')}, {_counted(len(pictures), 'picture')}{equal}: {how_many}, "
        f"{_counted(plan.evaluations, 'evaluation')} of the model"
    )
    if len(pictures) > MANY:
        yield f"note: more than {MANY:,} pictures; fewer values make a smaller plan"
    yield from (f"note: {note}" for note in plan.notes)


def _quoted(label: str) -> str:
    return label if label and "," not in label else f'"{label}"'


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def write_plan(plan: Plan, *, as_json: bool) -> None:
    """A record for each cell to stdout, in the order of the axes: JSON, or on a terminal a line for people."""
    for placed in plan.cells:
        write_cell(placed, as_json=as_json)


def write_cell(placed: Placed, *, as_json: bool) -> None:
    """The record of one cell to stdout, at once."""
    record = Record(placed.path, cell_record(placed))
    words = ", ".join(f"{title} {value_label(value)}" for title, value in placed.values.items())
    write_record(record, jsonl=True if as_json else None, text=f"{placed.path}  {words}")
