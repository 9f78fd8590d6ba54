"""What ``lora-grid`` does once its options are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.records import write_json
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_engine.errors import ConfigError, InputError, MissingExtra
from lorapipe_engine.files.writing.atomic import check_output
from lorapipe_inspect.grid.cells import Cell, find_cells
from lorapipe_inspect.grid.layout import Grid, lay_out
from lorapipe_inspect.grid.settings import BestSettings, FigureSettings, GridSettings
from lorapipe_inspect.text import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorapipe_inspect.grid.judge.choose import Choice
    from lorapipe_inspect.grid.looks import Look
    from lorapipe_inspect.grid.study import Study

MOST_COMPLAINTS = 20  # lines about broken cells; the rest is counted


def run(words: Sequence[str], chosen: Chosen, stdin: BinaryIO | None = None) -> int:
    """Lay out, measure, choose, write; the exit status: 1 where cells were broken or --best cannot tell.

    Raises LoraError where nothing could be done.
    """
    wanted, figures, best = chosen[GridSettings], chosen[FigureSettings], chosen[BestSettings]
    _check_outputs(wanted)
    _require_pillow()
    from lorapipe_inspect.grid.looks import look_at
    from lorapipe_inspect.grid.study import decide, measure, verdict

    cells, looks = look_at(find_cells(words, stdin))
    _tell_broken(cells)
    failed = any(cell.error for cell in cells)
    if all(cell.error for cell in cells):
        raise InputError(f"none of the {counted(len(cells), 'cell')} has a picture that can be read")
    # A picture that cannot be read, and of which no record says what it was to be, has no place.
    placed = [cell.values or not cell.error for cell in cells]
    cells, looks = [*compress(cells, placed)], [*compress(looks, placed)]
    grid = lay_out(cells, wanted.x, wanted.y)
    if wanted.output or wanted.html:
        grid.check_size()
    study = measure(grid, looks, figures)
    choice = decide(study, best) if best.best else None
    told = verdict(study, choice) if choice else []
    told += _words(cells)
    _write(wanted, grid, study, looks, told)
    if wanted.as_json:
        write_json(_record(grid, study, choice, told))
    elif wanted.output or wanted.html:
        show(*told)
    else:
        show(*_report(grid, study, told))
    cannot_tell = choice is not None and choice.network is None
    return 1 if cannot_tell or failed else 0


def _check_outputs(wanted: GridSettings) -> None:
    """Raise ConfigError or OutputError for outputs that cannot be written, before any work."""
    for option, path, suffixes in (
        ("-o", wanted.output, (".png",)),
        ("--html", wanted.html, (".html", ".htm")),
    ):
        if path is not None:
            if path.suffix.lower() not in suffixes:
                raise ConfigError(f"{option} {path}: a file that ends in {suffixes[0]} is meant")
            check_output(path, force=wanted.force)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtra("lora-grid needs Pillow, which is not installed: pip install pillow") from error


def _tell_broken(cells: Sequence[Cell]) -> None:
    # Cells may share a picture.
    broken = {cell.path: cell.error for cell in cells if cell.error}
    for path, error in list(broken.items())[:MOST_COMPLAINTS]:
        complain(f"{path}: {error}")
    if len(broken) > MOST_COMPLAINTS:
        complain(f"and {len(broken) - MOST_COMPLAINTS:,} more pictures that cannot be read")


def _words(cells: Sequence[Cell]) -> list[str]:
    from lorapipe_inspect.grid.judge.words import known_words, lines_of

    words = known_words(cells)
    return lines_of(words) if words else []


# -------------------------------------------------------------------------------- files


def _write(
    wanted: GridSettings, grid: Grid, study: Study, looks: Sequence[Look | None], told: Sequence[str]
) -> None:
    title = wanted.title or ""
    if wanted.output is not None:
        from lorapipe_inspect.grid.sheet import write_sheets

        size = _cell_size(looks, wanted.size)
        for path in write_sheets(wanted.output, grid, paint, size, title, force=wanted.force):
            say(f"lora-grid: sheet: {path}")
    if wanted.html is not None:
        _write_page(wanted, wanted.html, grid, study, title, told)


def _write_page(
    wanted: GridSettings, path: Path, grid: Grid, study: Study, title: str, told: Sequence[str]
) -> None:
    from lorapipe_inspect.grid.page import HEAVY, Page, write_page

    bases = [None if base == index else base for index, base in enumerate(study.pairs.bases)]
    page = Page(
        title or " × ".join(axis.title for axis in grid.axes[:2]) or "lora-grid",
        bases,
        study.rows,
        shown_figures(study),
        told,
        wanted.quality,
        wanted.size,
    )
    size = write_page(path, grid, page, paint, force=wanted.force)
    if size > HEAVY:
        say(
            f"lora-grid: note: {path} has {size / (1 << 20):,.0f} MiB, which browsers are slow with; "
            "--size makes it less"
        )
    say(f"lora-grid: page: {path}")


def shown_figures(study: Study) -> list[Any]:
    """The figures that the page has on its cells, of those that some cell has."""
    from lorapipe_inspect.grid.page import Shown

    known = [
        Shown("move", "move", "mean colour difference to the base cell (CIE76)", 1),
        Shown("recall", "recall", "share of the prompt's tags found, more than the base's", 2),
        Shown("ccip", "CCIP", "likeness to held-out pictures, more than the base's", 3),
        Shown("dino", "DINO", "mean cosine to held-out pictures, more than the base's", 3),
        Shown("clip", "CLIP", "mean cosine to held-out pictures, more than the base's", 3),
        Shown("clip_t", "CLIP-T", "cosine to the prompt, more than the base's", 3),
        Shown("encoder", "encoder", "mean cosine to held-out pictures, more than the base's", 3),
        Shown("tags", "tags", "cosine of the tags to the dataset's mean, more than the base's", 3),
        Shown("chroma", "chroma", "mean chroma, more than the base's", 1),
        Shown("clipped", "clipped", "share of black and white pixels, more than the base's", 3),
        Shown("edges", "edges", "difference of neighbouring pixels, more than the base's", 2),
    ]
    return [one for one in known if any(one.key in row for row in study.rows)]


def paint(cell: Cell) -> Image:
    """A cell's picture in RGB, upright. Raises InputError for one that changed since it was looked at."""
    from PIL import Image

    from lorapipe_inspect.grid.looks import decode

    try:
        return Image.fromarray(decode(cell))
    except Exception as error:  # Pillow raises whatever its readers meet
        raise InputError(f"{cell.path}: changed while it was read; start again") from error


def _cell_size(looks: Sequence[Look | None], longest: int | None) -> tuple[int, int]:
    """Width and height of all cells on a sheet: room for every picture, brought to ``longest``."""
    sizes = [look.size for look in looks if look is not None]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    scale = min(1.0, longest / max(width, height)) if longest else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


# -------------------------------------------------------------------------------- words


def _report(grid: Grid, study: Study, told: Sequence[str]) -> list[str]:
    from lorapipe_inspect.grid.study import table

    places = 1
    for axis in grid.axes:
        places *= len(axis.values)
    lines = [f"{counted(len(grid.cells), 'cell')}, {counted(places - len(grid.places), 'place')} empty"]
    for axis in grid.axes:
        shown = "; ".join(label[:60] for label in axis.labels[:8])
        more = f" ... ({len(axis.labels)})" if len(axis.labels) > 8 else ""
        lines.append(f"  {axis.title}: {shown}{more}")
    return [*lines, *table(study), *told]


def _record(grid: Grid, study: Study, choice: Choice | None, told: Sequence[str]) -> dict[str, Any]:
    from lorapipe_inspect.grid.study import name_of, way_of

    def plain(network: Any) -> dict[str, Any]:
        return dict(zip(study.pairs.names, network, strict=True))

    record: dict[str, Any] = {
        "axes": [
            {"name": axis.name, "values": list(axis.values), "labels": list(axis.labels)}
            for axis in grid.axes
        ],
        "cells": [
            {"path": str(cell.path), "values": dict(cell.values), "figures": dict(row), "error": cell.error}
            for cell, row in zip(grid.cells, study.rows, strict=True)
        ],
        "networks": [
            {
                "name": name_of(study, network),
                "values": plain(network),
                **{key: value for key, value in vars(one).items() if key != "burn"},
                "burn": dict(one.burn),
                "unasked": dict(study.unasked[network].tags) if network in study.unasked else None,
            }
            for network, one in study.networks.items()
        ],
    }
    if choice is not None:
        record["best"] = {
            "network": None if choice.network is None else plain(choice.network),
            "name": None if choice.network is None else name_of(study, choice.network),
            "reason": choice.reason or None,
            "figure": choice.figure,
            "values": [{"name": name_of(study, one), "value": value} for one, value in choice.values.items()],
            "interval": choice.interval,
            "way": way_of(study, choice),
            "ties": [name_of(study, one) for one in choice.ties],
            "runner_up": None if choice.runner_up is None else name_of(study, choice.runner_up),
            "failed": {name_of(study, one): list(reasons) for one, reasons in choice.failed.items()},
            "untested": list(choice.untested),
            "pictures": choice.pictures,
            "few": [name_of(study, one) for one in choice.few],
        }
    record["lines"] = list(told)
    return record
