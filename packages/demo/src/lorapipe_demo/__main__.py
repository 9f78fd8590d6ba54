"""The demo: pictures of a character that the base model does not know, tagged, cleaned and made a dataset; a LoRA of
her; and what it learned.

python -m lorapipe_demo [--output_dir demo-run]
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorapipe_demo import recipe, weights
from lorapipe_demo.dataset import build_dataset
from lorapipe_demo.programs import require_tools, run
from lorapipe_demo.scene import TRIGGER, Scene
from lorapipe_engine.cli import require_training_extra
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.models.bases import demo_base

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorapipe_demo.sampling import Painter

NAME = TRIGGER


@tool_command("lorapipe-demo", examples="python -m lorapipe_demo --output_dir demo-run")
@click.option(
    "--output_dir", type=click.Path(path_type=Path), default=Path("demo-run"), help="Folder for everything."
)
@click.option("--device", default=None, help="cuda or cpu. [default: the GPU if there is one]")
def demo(output_dir: Path, device: str | None) -> None:
    """Make a dataset of bare pictures, train a LoRA of a drawn character with it, draw a grid with every epoch.

    The network is then looked into, made smaller, and merged into its base, and both results are drawn with. The
    path of the grid goes to stdout. What an earlier demo left in the folder is replaced.
    """
    require_training_extra()
    require_tools()
    began = time.monotonic()
    dataset = build_dataset(output_dir)
    networks = train(dataset, output_dir / "networks", device)
    weights.inspect(networks)
    small = weights.resize(networks[-1], output_dir / "small.safetensors")
    merged = weights.merge(networks[-1], output_dir / "merged.safetensors")
    figures, grid = look(networks, small, merged, device)
    path = output_dir / "grid.png"
    grid.save(path)
    (output_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    say(f"\n{NAME} in the picture, of {recipe.EXAM_SIZE} prompts each:")
    for name, share in figures.items():
        say(f"  {name:<42}{share:>6.1%}")
    say(f"demo done in {time.monotonic() - began:.0f} s")
    click.echo(path)


def train(dataset: Path, output_dir: Path, device: str | None) -> list[Path]:
    """Run ``lora-train`` as a user would; returns its networks, first epoch first."""
    options = {**recipe.TRAIN_OPTIONS, "max_train_epochs": str(recipe.EPOCHS)}
    options |= {"device": device} if device else {}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    places = ("--train_data_dir", str(dataset), "--output_dir", str(output_dir), "--output_name", NAME)
    output = run(("lora-train", "--base", "demo", *places, "--overwrite", *words))
    return [Path(line) for line in output.splitlines()]


def look(
    networks: Sequence[Path], small: Path, merged: Path, device: str | None
) -> tuple[dict[str, float], Image]:
    """The figures, and the grid: the base and every epoch as columns, prompts as rows.

    Raises ProblemFound where the merged base draws other pictures than base and network.
    """
    from lorapipe_demo.grid import draw_grid
    from lorapipe_demo.judge import Judge
    from lorapipe_demo.sampling import Painter

    say("drawing with every epoch ...")
    painter = Painter(demo_base(), device)
    judge = Judge.load()
    scenes = recipe.exam_scenes()
    calls = [recipe.with_trigger(scene) for scene in scenes]
    silent = [recipe.without_trigger(scene) for scene in scenes]

    def share(prompts: list[str], network: Path | None) -> float:
        answers = judge.look(painter.draw(prompts, network))
        return sum(answer["character"] == TRIGGER for answer in answers) / len(answers)

    figures = {
        "base model, with the trigger": share(calls, None),
        "LoRA, with the trigger": share(calls, networks[-1]),
        "LoRA, same prompts without the trigger": share(silent, networks[-1]),
        "LoRA, other people": share(other_prompts(), networks[-1]),
        f"LoRA at rank {recipe.SMALL_RANK}, with the trigger": share(calls, small),
    }
    step = weights.largest_difference(painter, networks[-1], Painter(merged, device), calls[:8])
    say(f"base + LoRA and merged base: pictures at most {step} of 255 apart")
    return figures, draw_grid(*grid_parts(painter, networks, scenes, figures))


def other_prompts() -> list[str]:
    """Whole prompts of other people."""
    draw = random.Random(5)
    return [", ".join(recipe.ordinary_scene(draw).tags()) for _ in range(recipe.EXAM_SIZE)]


def grid_parts(
    painter: Painter, networks: Sequence[Path], scenes: Sequence[Scene], figures: dict[str, float]
) -> tuple[list[list[Image]], list[str], list[str], list[str]]:
    """Rows of pictures, names of columns, names of rows, notes."""
    prompts = [recipe.with_trigger(scene) for scene in scenes[:4]]
    prompts += [recipe.without_trigger(scenes[0]), *other_prompts()[:2]]
    columns = [painter.draw(prompts, network, seed=1) for network in (None, *networks)]
    rows = [[column[row] for column in columns] for row in range(len(prompts))]
    names = ["base", *(f"epoch {index}" for index in range(1, len(networks) + 1))]
    notes = ["   ".join(f"{name}: {share:.0%}" for name, share in figures.items())]
    return rows, names, prompts, notes


if __name__ == "__main__":
    demo.main()
