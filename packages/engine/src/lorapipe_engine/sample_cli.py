"""``lora-sample``: a plan of pictures in, pictures and their records out. Nothing heavy is imported for the plan."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.process.launched import is_first
from lorapipe_engine.command.process.libraries import OWN_PROCESS, library_imports
from lorapipe_engine.command.process.processors import share_processors
from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.tool import LaunchedCommand, say, tool_command
from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.sampling.settings import MODES, ModelSettings, ResultSettings

EXAMPLES = """
lora-sample mina-*.safetensors --base nai.safetensors --prompt "mina, 1girl" --y "weight:0.7-1.5 [5]"
lora-sample --base nai.safetensors --x "file:run/*.safetensors" --y "seed:-1--1 [8]" --prompt "mina, {beach|forest}"
lora-sample --base nai.safetensors --prompt "a <lora:mina:0.8> cat" --lora-dir run --x "sampler:Euler a,DPM++ 2M"
lora-sample --probe seeds run/*.safetensors --base nai.safetensors --prompt "mina, 1girl" --dry-run --json
lora-sample --plan grid.toml --seed 7
torchrun --no_python --nproc_per_node 2 lora-sample --plan grid.toml
"""
DRAWING = "lorapipe_engine.train.sample.cells"  # its function draw_plan(plan, chosen, say)


@tool_command("lora-sample", examples=EXAMPLES, cls=LaunchedCommand)
@click.argument("networks", nargs=-1, metavar="[NETWORK]...")
@mode_options(*MODES)
def lora_sample(networks: tuple[str, ...], **flags: Any) -> int:
    """Draw the cells of a plan: networks, weights, seeds, prompts and more on the axes of a grid.

    NETWORK are files, folders or patterns, an axis of their own in the first free place. Records of the cells go to
    stdout, for lora-grid or lora-tag; their parameters are in the pictures as A1111 writes them.
    """
    first = is_first()
    if not first:
        QUIET.set(True)
    chosen = read_mode(MODES, flags, config="plan")
    from lorapipe_engine.sampling.command import plan_of
    from lorapipe_engine.sampling.report import plan_lines, write_plan

    plan = plan_of(chosen, networks)
    for line in plan_lines(plan):
        say(line)
    result = chosen[ResultSettings]
    if result.dry_run:
        if first:
            write_plan(plan, as_json=result.as_json)
        return 0
    if chosen[ModelSettings].base is None and any(row.cell.base is None for row in plan.cells):
        raise ConfigError("no base model: give --base FILE, a diffusers folder, a hub id, or --base demo")
    return _draw(plan, chosen)


def _draw(plan: Any, chosen: Any) -> int:
    if find_spec("torch") is None or find_spec("diffusers") is None:
        raise MissingExtra("drawing needs torch and diffusers: pip install torch diffusers transformers")
    with library_imports():
        drawing = import_module(DRAWING)
    return int(drawing.draw_plan(plan, chosen, say))


def sample_main() -> None:
    """Entry point of ``lora-sample``."""
    OWN_PROCESS.set(True)
    share_processors()
    lora_sample.main()
