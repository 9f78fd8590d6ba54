"""``lora-train``: options in, network files out. Nothing heavy is imported before the options are sound."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.foreign import ForeignOptions, foreign_options, given_options, whole_names
from lorapipe_engine.command.libraries import OWN_PROCESS, library_imports
from lorapipe_engine.command.options import build_settings, print_config, settings_options
from lorapipe_engine.command.processors import share_processors
from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.records import write_path
from lorapipe_engine.command.tool import ToolCommand, say, tool_command
from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.settings import PARTS, TrainSettings
from lorapipe_engine.settings.programs import Programs
from lorapipe_engine.settings.refused import FOREIGN

EXAMPLES = """
lora-train --base animefull.safetensors --train_data_dir dataset --output_dir out --output_name mayuri
lora-train --config_file mayuri.toml --network_dim 32
lora-train --config_file mayuri.toml --plot-lr
lora-train --config_file mayuri.toml --vram 8
lora-train --base sdxl.safetensors --dataset_config dataset.toml --output_dir out
lora-train --base demo --train_data_dir dataset --resolution 64 --max_train_epochs 4 --output_dir out
torchrun --no_python --nproc_per_node 2 lora-train --config_file mayuri.toml
"""


MAIN_TELLS = 10.0  # seconds in which the first process tells what is wrong, and its launcher ends the others


class TrainCommand(ToolCommand):
    """A command that may run in several processes at once: what goes wrong in all of them is told once. Names of
    options may be cut short, as in sd-scripts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words, with the names of options written out."""
        args, notes = whole_names(args, self)
        rest = super().parse_args(ctx, args)
        for note in notes:
            say(f"note: {note}")
        return rest

    def _tell(self, text: str, *, before: str = "") -> None:
        number = os.environ.get("RANK", "0")
        if number != "0":
            time.sleep(MAIN_TELLS)  # without an end by then, it went wrong here alone
            text = f"process {number}: {text}"
        super()._tell(text, before=before)


@tool_command("lora-train", examples=EXAMPLES, cls=TrainCommand)
@click.option(
    "--plot_lr",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Draw the curve of the rates and stop: as FILE (.png, .svg), without one in the terminal.",
)
@settings_options(*PARTS)
@foreign_options(FOREIGN)
def lora_train(config_file: Path | None, print_only: bool, plot_lr: str | None, **flags: Any) -> None:
    """Train a LoRA for SD 1.x, SD 2.x or SDXL on a folder of N_concept folders.

    Options are sd-scripts', with dashes or underscores, on the command line or in a TOML file. Paths of the
    networks go to stdout, everything else to stderr.
    """
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes of a launcher
    if not is_first:
        QUIET.set(True)
    if print_only and plot_lr is not None:
        raise ConfigError("--print_config and --plot_lr both stop after what they show; give one of them")
    foreign = ForeignOptions(FOREIGN)
    programs = Programs()
    flags = given_options(foreign, flags)
    try:
        parts, origin = build_settings(PARTS, flags, config_file, foreign, programs)
    finally:
        # An error may be one of what an option of another program was taken for.
        for note in (*programs.notes, *foreign.notes):
            say(f"note: {note}")
    parts, origin = fitted(parts, origin)
    if print_only:
        if is_first:
            click.echo(print_config(parts, origin))
        return
    model, data, network, optimizer, loss, run = parts
    settings = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    if plot_lr is not None:
        from lorapipe_engine.train.schedules.plot import plot_rates

        click.echo(plot_rates(settings, plot_lr, say))
        return
    if settings.model.pretrained_model_name_or_path is None:
        raise ConfigError("no base model: give --base FILE, a diffusers folder, a hub id, or --base demo")
    if settings.data.train_data_dir is None and settings.data.dataset_config is None:
        raise ConfigError(
            "no dataset: give --train_data_dir FOLDER with folders N_concept in it, or --dataset_config FILE"
        )
    require_training_extra()
    with library_imports():
        from lorapipe_engine.train.session import run_training

    for path in run_training(settings, print_config(parts, origin), say):
        write_path(path)


def fitted(parts: list[Any], origin: dict[str, str]) -> tuple[list[Any], dict[str, str]]:
    """The options with those that ``--vram`` stands for, where it is given and base and pictures are known."""
    model, data = parts[0], parts[1]
    has_data = data.train_data_dir is not None or data.dataset_config is not None
    if model.vram is None or model.pretrained_model_name_or_path is None or not has_data:
        return parts, origin
    require_training_extra()
    from lorapipe_engine.train.memory.preset import fit_to_card

    parts, origin, line = fit_to_card(parts, origin)
    say(line)
    return parts, origin


def require_training_extra() -> None:
    """Raise MissingExtra, naming the pip command, unless the training packages are installed."""
    missing = [
        name
        for name in ("torch", "diffusers", "transformers", "tensorboard", "PIL")
        if find_spec(name) is None
    ]
    if missing:
        raise MissingExtra(f"training needs {', '.join(missing)}: pip install 'lorapipe-engine[train]'")


def train_main() -> None:
    """Entry point of ``lora-train``."""
    OWN_PROCESS.set(True)
    share_processors()
    lora_train.main()
