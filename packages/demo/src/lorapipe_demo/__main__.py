"""The demo: pictures of a character that the base model does not know, tagged, cleaned and made a dataset; a LoRA of
her; and what it learned.

python -m lorapipe_demo [--output_dir demo-run] [--full]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import click

from lorapipe_demo import recipe, weights
from lorapipe_demo.dataset import build_dataset
from lorapipe_demo.grid import show_grid, show_seeds
from lorapipe_demo.programs import require_tools, run
from lorapipe_demo.scene import TRIGGER
from lorapipe_demo.weights import Made
from lorapipe_engine.cli import require_training_extra
from lorapipe_engine.command.process.processors import share_processors
from lorapipe_engine.command.tool import say, tool_command

NAME = TRIGGER


EXAMPLES = """
python -m lorapipe_demo --output_dir demo-run
python -m lorapipe_demo --full
"""


@tool_command("lorapipe-demo", examples=EXAMPLES)
@click.option(
    "--output_dir", type=click.Path(path_type=Path), default=Path("demo-run"), help="Folder for everything."
)
@click.option("--device", default=None, help="cuda or cpu. [default: the GPU if there is one]")
@click.option(
    "--full",
    is_flag=True,
    help="Draw every epoch, in twice as many steps, with eight seeds and backgrounds, and the extracted network.",
)
def demo(output_dir: Path, device: str | None, full: bool) -> None:
    """Make a dataset of bare pictures, train a LoRA of a drawn character with it, draw its epochs and name one.

    The network is then looked into, made smaller, and merged into its base, and both results are drawn with. It is
    extracted from the merged base again and compared with what was trained. The path of the grid of epochs and weights
    goes to stdout. What an earlier demo left in the folder is replaced.
    """
    require_training_extra()
    require_tools()
    chosen = recipe.FULL if full else recipe.SHORT
    times = {"start": time.monotonic()}
    dataset = build_dataset(output_dir)
    times["dataset"] = time.monotonic()
    networks = train(dataset, output_dir / "networks", chosen, device)
    times["training"] = time.monotonic()
    weights.inspect(networks)
    small = weights.resize(networks[-1], output_dir / "small.safetensors")
    merged = weights.merge(networks[-1], output_dir / "merged.safetensors")
    extracted = weights.extract(merged, networks[-1], output_dir / "extracted.safetensors")
    times["tools on networks"] = time.monotonic()
    made = Made(small, merged, extracted if chosen.draws_extracted else None)
    path = look(networks, made, output_dir, chosen, device)
    if full:
        show_seeds(networks, chosen.steps, device, output_dir)
    times["drawing"] = time.monotonic()
    say(f"demo done in {durations(times)}")
    click.echo(path)


def train(dataset: Path, output_dir: Path, chosen: recipe.Recipe, device: str | None) -> list[Path]:
    """Run ``lora-train`` as a user would; returns its networks, first epoch first."""
    options = {**chosen.options, "max_train_epochs": str(chosen.epochs)}
    options |= {"device": device} if device else {}
    words = [word for name, value in options.items() for word in (f"--{name}", *value.split())]
    places = ("--train_data_dir", str(dataset), "--output_dir", str(output_dir), "--output_name", NAME)
    output = run(("lora-train", "--base", "demo", *places, "--overwrite", *words))
    return [Path(line) for line in output.splitlines()]


def look(
    networks: Sequence[Path],
    made: Made,
    output_dir: Path,
    chosen: recipe.Recipe,
    device: str | None,
) -> Path:
    """Draw, say what the judge sees, write the grid and ``figures.json``, and name an epoch; the grid's path.

    Raises ProblemFound where the merged base draws other pictures than base and network.
    """
    from lorapipe_demo.figures import MERGED, draw_series, plan_series, shares
    from lorapipe_demo.judge import Judge

    say("")
    say("drawing ...")
    series = plan_series(networks, made, chosen.shown)
    drawn = draw_series(series, device, chosen.steps)
    step = weights.largest_difference(drawn["calls"][:MERGED], drawn["merged"])
    say(f"base + LoRA and merged base: pictures at most {step} of 255 apart")
    figures = shares(drawn, Judge.load())
    rows = {name: {"share": share.value, "interval": share.interval} for name, share in figures.items()}
    (output_dir / "figures.json").write_text(json.dumps(rows, indent=1) + "\n")
    say(f"{NAME} in the picture, of {recipe.EXAM_SIZE} prompts each:")
    for name, share in figures.items():
        say(f"  {name:<40} {share}")
    return show_grid(series, drawn, chosen.steps, output_dir)


def durations(times: Mapping[str, float]) -> str:
    """Seconds in all and of every stage, from the moments at which the start and each stage ended."""
    moments = list(times.items())
    parts = [f"{name} {end - begin:.0f}" for (_, begin), (name, end) in pairwise(moments)]
    return f"{moments[-1][1] - moments[0][1]:.0f} s: {', '.join(parts)}"


if __name__ == "__main__":
    share_processors()
    demo.main()
