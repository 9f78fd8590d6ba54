"""``lora-inspect curves``: rate, loss, validation and norms of runs, in the terminal or as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.modes import Mode, flag, mode_options, read_mode
from lorapipe_engine.command.records import write_json
from lorapipe_engine.command.tool import complain, say, show, tool_command
from lorapipe_engine.errors import ConfigError, InputError, LoraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorapipe_engine.pictures.charts import Chart
    from lorapipe_inspect.curves.read import Run

EXAMPLES = """
lora-inspect curves out/
lora-inspect curves out/mina.metrics.jsonl --only loss --smooth 100
lora-inspect curves slow/ fast/ -o runs.svg
lora-inspect curves logs/ --tag loss/average
"""
KINDS = ("rate", "loss", "timesteps", "validation", "figures", "norms")


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """What is drawn, and where"""

    only: tuple[str, ...] = flag(
        (), f"Show these only: {', '.join(KINDS)} (may be repeated).", metavar="KIND"
    )
    tag: tuple[str, ...] = flag((), "Show the curve of this tag (may be repeated).", metavar="TAG")
    smooth: int | None = flag(
        None, "Steps of the running mean of loss and gradient norm; 1 for none.  [default: by length]", min=1
    )
    output: Path | None = flag(
        None, "Write the charts as a picture instead.", "-o", "--output", metavar="FILE.png|svg"
    )
    force: bool = flag(False, "Replace the picture if it exists.", needs="output")
    as_json: bool = flag(False, "Print all curves as one JSON object per run.", "--json")


MODES = (Mode("curves", (CurveSettings,)),)


@tool_command("lora-inspect curves", examples=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@mode_options(*MODES)
def command(runs: tuple[str, ...], **flags: Any) -> int:
    """Draw what runs recorded: learning rate, loss, validation, norms.

    RUN are metrics.jsonl files of lora-train, TensorBoard's event files, or folders of a run. Several runs share each
    chart.
    """
    wanted = read_mode(MODES, flags)[CurveSettings]
    _check(wanted)
    from lorapipe_inspect.curves.charts import charts_of
    from lorapipe_inspect.curves.read import find_runs
    from lorapipe_inspect.text import short_names

    recorded, failed = _read(find_runs(runs))
    if wanted.as_json:
        for run in recorded:
            curves = {tag: [list(curve.steps), list(curve.values)] for tag, curve in run.curves.items()}
            write_json({"path": str(run.path), "file": str(run.path), "curves": curves})
        return 1 if failed else 0
    names = short_names([str(run.path) for run in recorded])
    charts = charts_of(recorded, names, wanted.only or KINDS, wanted.tag, wanted.smooth)
    missing = [tag for tag in wanted.tag if not any(tag in run.curves for run in recorded)]
    if missing or not charts:
        known = ", ".join(dict.fromkeys(tag for run in recorded for tag in run.curves))
        raise InputError(f"{missing[0] if missing else 'no such curves'}: the runs have {known}")
    _put(charts, wanted)
    return 1 if failed else 0


def _check(wanted: CurveSettings) -> None:
    """Raise ConfigError for kinds that are none, and for options that exclude each other."""
    from lorapipe_engine.command.configuration import nearest

    for kind in wanted.only:
        if kind not in KINDS:
            raise ConfigError(f"--only {kind}: none of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if wanted.only and wanted.tag:
        raise ConfigError("--only and --tag exclude each other; give one of them")
    if wanted.as_json and (wanted.output or wanted.only or wanted.tag or wanted.smooth):
        raise ConfigError("--json prints all curves as they were recorded; it goes with no other option")


def _read(paths: Sequence[Path]) -> tuple[list[Run], bool]:
    """The runs that can be read; what cannot is told. Raises the error where none can."""
    from lorapipe_inspect.curves.read import read_run

    runs: list[Run] = []
    errors: list[LoraError] = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except LoraError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    for one in errors:
        complain(str(one))
    for run in runs:
        for note in run.notes:
            say(f"lora-inspect curves: note: {run.path}: {note}")
    return runs, bool(errors)


def _put(charts: Sequence[Chart], wanted: CurveSettings) -> None:
    from lorapipe_engine.pictures.charts import text_chart, write_charts

    if wanted.output is not None:
        write_charts(wanted.output, charts, force=wanted.force)
        say(f"lora-inspect curves: {wanted.output}")
        return
    import shutil
    import sys

    braille = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    columns = min(shutil.get_terminal_size((80, 24)).columns, 120) - 2
    for number, chart in enumerate(charts):
        text = text_chart(chart.lines, columns=columns, braille=braille, from_zero=chart.from_zero)
        show(*([""] if number else []), chart.title, *text.split("\n"))
