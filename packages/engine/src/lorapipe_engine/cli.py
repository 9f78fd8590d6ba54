"""``lora-train``: options in, network files out. Nothing heavy is imported before the options are sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.foreign import ForeignOptions, foreign_options, given_options
from lorapipe_engine.command.options import (
    INSTEAD,
    RUNS,
    build_settings,
    settings_options,
    taken_notes,
    under,
)
from lorapipe_engine.command.process.launched import is_first
from lorapipe_engine.command.process.libraries import OWN_PROCESS, library_imports
from lorapipe_engine.command.process.processors import share_processors
from lorapipe_engine.command.progress import QUIET, talking_together
from lorapipe_engine.command.records import write_file_text, write_json, write_path
from lorapipe_engine.command.tool import LaunchedCommand, say, show, tool_command
from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.settings import PARTS
from lorapipe_engine.settings.data import BaseSize
from lorapipe_engine.settings.programs import Programs
from lorapipe_engine.settings.programs.pasted import whole_names
from lorapipe_engine.settings.refused import FOREIGN
from lorapipe_engine.settings.several import Run, make_runs, read_varied, require_inputs, sort_words

EXAMPLES = """
lora-train --base animefull.safetensors --train_data_dir dataset --output_dir out --output_name mayuri
lora-train --config_file mayuri.toml --network_dim 32
lora-train --config_file mayuri.toml --plot-lr
lora-train --doctor --config_file mayuri.toml
lora-train --suggest dataset --kind character --vram 12 --base animefull.safetensors > mayuri.toml
lora-train mayuri.toml nekochan.toml maid.toml
lora-train mayuri.toml --vary unet_lr=1e-4,2e-4 --vary network_dim=16,32 --dry-run
lora-train --config_file mayuri.toml --vram 8
lora-train --config_file mayuri.toml --choose
lora-train --base sdxl.safetensors --dataset_config dataset.toml --output_dir out
lora-train --base demo --train_data_dir dataset --max_train_epochs 4 --output_dir out
torchrun --no_python --nproc_per_node 2 lora-train --config_file mayuri.toml
torchrun --no_python --nproc_per_node 2 lora-train mayuri.toml nekochan.toml maid.toml
"""


class TrainCommand(LaunchedCommand):
    """Names of options may be cut short, as in sd-scripts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words, with the names of options written out."""
        args, notes = whole_names(args, self)
        rest = super().parse_args(ctx, args)
        for note in notes:
            say(f"note: {note}")
        return rest


@tool_command("lora-train", examples=EXAMPLES, cls=TrainCommand)
@click.argument("words", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER] [RUN.toml ...]")
@under(
    RUNS,
    "--vary",
    multiple=True,
    metavar="NAME=A,B",
    help="Train a run for each value of an option, and for each combination where it is given again.",
)
@under(
    INSTEAD,
    "--dry_run",
    is_flag=True,
    help="Check everything that is cheap, show what would be done, and stop.",
)
@under(
    INSTEAD,
    "--plot_lr",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Draw the curve of the rates and stop: as FILE (.png, .svg), without one in the terminal.",
)
@under(
    INSTEAD,
    "--doctor",
    is_flag=True,
    help="Tell what on this machine will stop a run with these options, and the mend, and stop.",
)
@under(
    INSTEAD,
    "--suggest",
    is_flag=True,
    help="Print a configuration for the folder of pictures, with the reason of each value, and stop.",
)
@under(INSTEAD, "--json", "as_json", is_flag=True, help="Tell what --doctor finds as one JSON object.")
@settings_options(*PARTS, several=True)
@foreign_options(FOREIGN)
def lora_train(
    words: tuple[Path, ...],
    config_file: tuple[Path, ...],
    vary: tuple[str, ...],
    dry_run: bool,
    print_only: bool,
    plot_lr: str | None,
    doctor: bool,
    suggest: bool,
    as_json: bool,
    **flags: Any,
) -> int | None:
    """Train a LoRA for SD 1.x, SD 2.x or SDXL on a folder of N_concept folders.

    Options are sd-scripts', with dashes or underscores, on the command line or in a TOML file. A folder among the
    words is the train_data_dir, each TOML or JSON file a run: several are trained one after another. Paths of the
    networks go to stdout, everything else to stderr.
    """
    quiet, first = QUIET.get(), is_first()
    if not first:
        QUIET.set(True)
    if print_only and plot_lr is not None:
        raise ConfigError("--print_config and --plot_lr both stop after what they show; give one of them")
    folder, files = sort_words(words)
    if folder is not None and flags.get("train_data_dir") is not None:
        raise ConfigError(f"train_data_dir: given twice, as {flags['train_data_dir']} and {folder}")
    if folder is not None:
        flags["train_data_dir"] = str(folder)
    if as_json and not doctor:
        raise ConfigError("--json has a use only with --doctor")
    if doctor or suggest:
        mode = "--doctor" if doctor else "--suggest"
        if vary or dry_run or print_only or plot_lr is not None or (doctor and suggest):
            raise ConfigError(f"{mode} looks at one run and stops; leave the other thing out")
        one = one_file([*config_file, *files], mode)
        if not first:
            return None
        if doctor:
            return tell_of_machine(one, flags, as_json=as_json)
        print_suggestion(one, flags)
        return None
    said: set[str] = set()
    build = partial(settings_of, said=said)
    runs = make_runs([*config_file, *files], read_varied(vary, flags), flags, build)
    if len(runs) > 1 or dry_run:
        other = "--plot_lr" if plot_lr is not None else "--print_config" * print_only
        train_several(runs, dry_run=dry_run, other=other, quiet=quiet)
        return None
    (run,) = runs
    settings = run.settings
    if print_only:
        if first:
            write_file_text(run.print_config())
        return None
    if plot_lr is not None:
        if not first:
            return None
        from lorapipe_engine.train.schedules.plot import plot_rates

        click.echo(plot_rates(settings, plot_lr, say))
        return None
    require_inputs(settings)
    require_training_extra()
    with library_imports():
        from lorapipe_engine.train.session import run_training

    trained = run_training(settings, run.print_config(), say)
    for path in trained.files:
        write_path(path)
    if trained.choosing is not None:
        from lorapipe_engine.train.choose import choose

        choose(trained.choosing, say)
    return None


def one_file(files: Sequence[Path], mode: str) -> Path | None:
    """The file of options of a mode that looks at one run, if there is any. Raises ConfigError for several."""
    if len(files) > 1:
        raise ConfigError(f"{mode} looks at one run; here are {len(files)}")
    return files[0] if files else None


def print_suggestion(file: Path | None, flags: Mapping[str, Any]) -> None:
    """Print what ``--suggest`` makes of the pictures and the options."""
    from lorapipe_engine.advice.suggest import suggest

    parts, origin = read_settings(flags, file, said=set())
    write_file_text(suggest(parts, origin))


def tell_of_machine(file: Path | None, flags: Mapping[str, Any], *, as_json: bool) -> int:
    """Tell what ``--doctor`` finds, line by line as it is found, or as one object; returns the exit status."""
    from lorapipe_engine.doctor.examine import examine

    parts, _ = read_settings(flags, file, said=set())
    model, data, _, optimizer, _, run = parts
    findings = examine(
        model, data, optimizer, run, (lambda _: None) if as_json else (lambda one: show(one.line()))
    )
    stops = sum(one.state == "stop" for one in findings)
    if as_json:
        write_json({"sound": not stops, "findings": [one.record() for one in findings]})
    elif stops:
        show(f"{stops} will stop a run")
    else:
        show("nothing will stop a run")
    return 1 if stops else 0


def settings_of(
    flags: Mapping[str, Any], config_file: Path | None, *, said: set[str]
) -> tuple[list[Any], dict[str, str]]:
    """As :func:`read_settings`, with the base's own size where none is given, and what ``--vram`` stands for."""
    return fitted(*sized(*read_settings(flags, config_file, said=said)))


def read_settings(
    flags: Mapping[str, Any], config_file: Path | None, *, said: set[str]
) -> tuple[list[Any], dict[str, str]]:
    """The options of one run, and where each came from; what is of no use is noted, once for all runs (``said``)."""
    foreign = ForeignOptions(FOREIGN)
    programs = Programs()
    flags = given_options(foreign, flags)
    taken: list[str] = []
    try:
        parts, origin = build_settings(PARTS, flags, config_file, foreign, programs)
        taken = taken_notes(origin)
    finally:
        # An error may be one of what an option of another program was taken for.
        for note in (*programs.notes, *foreign.notes, *taken):
            if note not in said:
                say(f"note: {note}")
            said.add(note)
    return parts, origin


def train_several(runs: Sequence[Run], *, dry_run: bool, other: str, quiet: bool) -> None:
    """Check all runs, and train them in order unless that is all that was asked for; under a launcher each process
    trains some of them. ``other``: an option of one run that was given as well, or nothing. ``quiet``: as was asked."""
    if other:
        raise ConfigError(
            f"{other} shows one run; " + ("it excludes --dry_run" if dry_run else f"here are {len(runs)}")
        )
    for run in runs:
        require_inputs(run.settings)
    require_training_extra()
    with library_imports():
        from lorapipe_engine.train.queue import check_runs, run_queue, show_plan
        from lorapipe_engine.train.sharing import share_runs

    sharing = share_runs()
    checked = check_runs(runs, sharing)
    if sharing.is_main:
        show_plan(checked, dry=dry_run)
    sharing.wait("checked")  # a run that has begun would look to another as if it had been stopped
    if not dry_run:
        with talking_together(quiet=quiet) if sharing.count > 1 else nullcontext():
            run_queue(checked, write_path, sharing)


def sized(parts: list[Any], origin: dict[str, str]) -> tuple[list[Any], dict[str, str]]:
    """The options with the size that the base was trained on, where none is given."""
    base, data = parts[0].pretrained_model_name_or_path, parts[1]
    if base is None or data.resolution is not None:
        return parts, origin
    from lorapipe_engine.sampling.bases import trained_size

    size = BaseSize(map(int, trained_size(base).split("x")))
    parts = [parts[0], replace(data, resolution=size), *parts[2:]]
    return parts, {**origin, "resolution": "the base's own"}


def fitted(parts: list[Any], origin: dict[str, str]) -> tuple[list[Any], dict[str, str]]:
    """The options with those that ``--vram`` stands for, where it is given and base and pictures are known."""
    model, data = parts[0], parts[1]
    has_data = any((data.train_data_dir, data.dataset_config, data.slider))
    if model.vram is None or model.pretrained_model_name_or_path is None or not has_data:
        return parts, origin
    require_training_extra()
    from lorapipe_engine.train.memory.preset import fit_to_card

    parts, origin, line = fit_to_card(parts, origin)
    say(line)
    return parts, origin


def require_training_extra() -> None:
    """Raise MissingExtra, naming the pip command, unless the training packages are installed."""
    needed = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}
    needed |= {"tensorboard": "tensorboard", "PIL": "pillow"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise MissingExtra(f"training needs {', '.join(missing)}: pip install {' '.join(missing)}")


def train_main() -> None:
    """Entry point of ``lora-train``."""
    OWN_PROCESS.set(True)
    share_processors()
    lora_train.main()
