"""Pictures as the cells of a grid: kept with their parameters, laid out and compared by ``lora-grid``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorapipe_demo import recipe
from lorapipe_demo.concept import draw_concept
from lorapipe_demo.figures import Series
from lorapipe_demo.programs import run, say_lines
from lorapipe_demo.scene import TRIGGER
from lorapipe_engine.command.tool import say
from lorapipe_engine.pictures.parameters import save_with_parameters
from lorapipe_engine.sampling.infotext import write_infotext
from lorapipe_engine.sampling.prompts.tags import Tag

if TYPE_CHECKING:
    from PIL.Image import Image

HELD_OUT = "held-out"
ZOOM = 2  # of the kept pictures, to be seen
CANNOT_TELL = 1  # lora-grid's status where no epoch is named
# A line of prompts for the seeds, each with a place of its own.
SEEDS_PROMPT = f"{TRIGGER}, 1girl, solo, smile, {{forest|beach|night sky|classroom|sunset|snow}}"

Placed = tuple[str, int]  # the name of a series, and a picture's place in it


def show_grid(
    series: Mapping[str, Series], drawn: Mapping[str, Sequence[Image]], steps: int, output_dir: Path
) -> Path:
    """Write ``grid.png`` (epochs and weights of one prompt, the base in front) and ``grid.html`` (these, and the
    pictures by which epochs are compared), and say which epoch ``lora-grid`` names by their likeness to fresh pictures
    of her, drawn into ``held-out``. Returns the path of the PNG.
    """
    folder = output_dir / "cells"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records = [_keep(folder, number, series, drawn, at, steps) for number, at in enumerate(_cells(series))]
    prompt, seed = records[0]["prompt"], records[0]["seed"]
    first = [row for row in records if (row["prompt"], row["seed"]) == (prompt, seed)]
    for name, rows in (("grid", first), ("all", records)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    run(("lora-grid", "cells/grid.jsonl", "-o", "grid.png", "--title", prompt, "--force"), folder=output_dir)
    seed, pictures = recipe.HELD_OUT_SEED, recipe.HELD_OUT
    shutil.rmtree(output_dir / HELD_OUT, ignore_errors=True)
    draw_concept(output_dir / HELD_OUT, TRIGGER, pictures=pictures, repeats=1, seed=seed)
    say("")
    say(f"drew {pictures} pictures of {TRIGGER} that were not trained on, to compare with")
    likeness = ("--encoder", "demo", "--held-out", HELD_OUT)
    page = ("--html", "grid.html", "--force", "--best", "--trigger", TRIGGER, *likeness)
    allowed = (0, CANNOT_TELL)
    say_lines(run(("lora-grid", "cells/all.jsonl", *page), folder=output_dir, allowed=allowed))
    return output_dir / "grid.png"


def show_seeds(networks: Sequence[Path], steps: int, device: str | None, output_dir: Path) -> Path:
    """Write ``seeds.png``: all epochs with eight seeds, each before a background of its own. Returns its path."""
    names = [str(path.relative_to(output_dir)) for path in networks]
    shutil.rmtree(output_dir / "seeds", ignore_errors=True)
    how = ("--steps", str(steps), "--sampler", "DDIM", "--cfg", f"{recipe.GUIDANCE:g}", "--clip-skip", "2")
    where = ("-o", "seeds", "--batch-size", "8", *(("--device", device) if device else ()))
    draw = (
        "lora-sample",
        "--probe",
        "seeds",
        *names,
        "--base",
        "demo",
        "--prompt",
        SEEDS_PROMPT,
        *how,
        *where,
    )
    run(draw, ("lora-grid", "-o", "seeds.png", "--html", "seeds.html", "--force"), folder=output_dir)
    return output_dir / "seeds.png"


def _cells(series: Mapping[str, Series]) -> Iterator[Placed]:
    """The pictures that are laid out: of the base, and of each epoch that is shown."""
    few, calls = recipe.COMPARED_OTHERS, recipe.COMPARED_CALLS
    yield from (("base", place) for place in range(calls))
    yield from (("base, others", place) for place in range(2 * few))
    for name, row in series.items():
        if name.startswith("epoch "):
            yield from ((name, place) for place in range(len(row.prompts)))
    for name, count in (("calls", calls), ("silent", few), ("others", few)):
        yield from ((name, place) for place in range(count))


def _keep(
    folder: Path,
    number: int,
    series: Mapping[str, Series],
    drawn: Mapping[str, Sequence[Image]],
    at: Placed,
    steps: int,
) -> dict[str, Any]:
    """Write a picture with its parameters; its record."""
    row, place = series[at[0]], at[1]
    prompt, seed = row.prompts[place], row.seeds[place]
    record: dict[str, Any] = {"path": f"{number:03d}.png", "file": "None"}
    stored = prompt
    if row.network is not None:
        record |= {"file": row.network.stem, "weight": row.strength}
        stored = f"{prompt} {Tag(row.network.stem, row.strength, row.strength).text()}"
    picture = drawn[at[0]][place]
    record |= {"prompt": prompt, "seed": seed, "steps": steps, "sampler": "DDIM", "cfg": recipe.GUIDANCE}
    pairs = {
        "Steps": steps,
        "Sampler": "DDIM",
        "CFG scale": recipe.GUIDANCE,
        "Seed": seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": "demo",
        "Clip skip": 2,
    }
    with (folder / record["path"]).open("wb") as file:
        shown = picture.resize((picture.width * ZOOM, picture.height * ZOOM))
        save_with_parameters(shown, file, ".png", write_infotext(stored, "", pairs))
    return record
