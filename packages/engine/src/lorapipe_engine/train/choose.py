"""``--choose``: after training, lora-sample draws the saved epochs and lora-grid names the one to take.

Both are run as programs. All that they are asked for is worked out before the training begins, and what is missing is
said then.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import join
from typing import Any

import torch

from lorapipe_engine.command.process.programs import PACKAGES, find_program, run_program
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError, InputError, MissingExtra, OutputError, ProblemFound
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.models.onnxfile import check_network
from lorapipe_engine.pictures.layout import find_images
from lorapipe_engine.sampling.choosing import Prompts, Trigger, find_trigger, make_prompts
from lorapipe_engine.sampling.noise.samplers import find_sampler
from lorapipe_engine.settings import RunSettings, TrainSettings
from lorapipe_engine.train.judging import own_captions
from lorapipe_engine.train.plan import Length
from lorapipe_engine.train.results.numbering import planned_networks
from lorapipe_engine.train.sample.prompts import Prompt

MOST_NETWORKS = 10  # that are drawn; of more, some are left out evenly
SHEET_SIDE = 384  # pixels of a cell on sheet and page, at most
# What choose_encoder may begin with, and the option of lora-grid that takes the rest.
MODELS = {"dino": "--dino", "clip": "--clip", "ccip": "--ccip"}
CCIP_FILES = ("model_feat.onnx", "model_metrics.onnx")
DEMO = "demo"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outputs:
    """Where the choice is kept, beside the networks."""

    folder: Path
    sheet: Path
    page: Path

    @classmethod
    def of(cls, run: RunSettings) -> Outputs:
        stem = run.output_dir / f"{run.output_name}-choose"
        return cls(stem, Path(f"{stem}.png"), Path(f"{stem}.html"))

    @property
    def plan(self) -> Path:
        return self.folder / "plan.toml"

    @property
    def cells(self) -> Path:
        return self.folder / "cells.jsonl"

    def check(self, run: RunSettings) -> None:
        """Raise OutputError where an earlier choice is there that is not to be replaced."""
        for path in (self.folder, self.sheet, self.page):
            if path.exists() and not run.overwrite:
                raise OutputError(
                    f"choose: {path} exists already; give --overwrite to replace it, or another output_name"
                )


@dataclass(frozen=True)
class Choosing:
    """What is done when the training has ended: ``networks`` are drawn as ``plan`` says, a plan file of lora-sample,
    and laid out by the words ``layout``."""

    programs: Mapping[str, Path]
    networks: tuple[Path, ...]
    plan: str
    layout: tuple[str, ...]
    outputs: Outputs


def missing_programs() -> list[str]:
    """A line for each program that is not installed."""
    return [
        f"choose: {name} is not installed beside this Python (pip install '{package}' in the repository), so no epoch "
        "will be named"
        for name, package in PACKAGES.items()
        if find_program(name) is None
    ]


def model_words(run: RunSettings) -> list[str]:
    """What lora-grid is told of the model to compare by; nothing where none is named. Raises ConfigError without
    pictures to compare with, InputError for files that are not there or no model, MissingExtra."""
    if run.choose_encoder is None:
        return []
    if run.choose_held_out is None:
        raise ConfigError(
            "choose_encoder: compares with pictures of the concept that are not trained on: choose_held_out FOLDER "
            "names them"
        )
    if not find_images(run.choose_held_out.expanduser(), recursive=True):
        raise InputError(f"choose_held_out: {run.choose_held_out} has no pictures in it")
    kind, mark, rest = run.choose_encoder.partition("=")
    option, name = (MODELS[kind], rest) if mark and kind in MODELS else ("--encoder", run.choose_encoder)
    path = Path(name).expanduser()
    if option == "--encoder" and name == DEMO and not path.exists():
        if find_spec("lorapipe_demo") is None:
            raise MissingExtra(
                "choose_encoder: demo lies in a package that is not installed: pip install ./packages/demo in the "
                "repository"
            )
        path = Path(DEMO)
    else:
        for file in [path / part for part in CCIP_FILES] if option == "--ccip" else [path]:
            _check_model(file)
    if find_spec("onnxruntime") is None:
        raise MissingExtra(
            "choose_encoder: needs onnxruntime, which is not installed: pip install onnxruntime"
        )
    return [option, str(path), "--held-out", str(run.choose_held_out.expanduser())]


def _check_model(file: Path) -> None:
    if not file.is_file():
        what = "is a folder, not an ONNX file" if file.is_dir() else "no such file"
        raise InputError(f"choose_encoder: {file}: {what}")
    try:
        check_network(file)
    except InputError as error:
        raise InputError(f"choose_encoder: {error}") from error


def check_held_out(run: RunSettings, dataset: Dataset) -> None:
    """Raise ConfigError where pictures to compare with are trained on: what is learnt by heart would be called best."""
    if run.choose_encoder is None or run.choose_held_out is None:
        return
    trained = {row.path.resolve() for row in dataset.pictures}
    for path in find_images(run.choose_held_out.expanduser(), recursive=True):
        if path.resolve() in trained:
            raise ConfigError(
                f"choose_held_out: {path} is trained on; name a folder of pictures that are not"
            )


def plan_choosing(
    settings: TrainSettings, dataset: Dataset, length: Length, prompts: Sequence[Prompt], say: Say
) -> Choosing | None:
    """What ``--choose`` will do, told through ``say``, with what is missing for it; None where a program is.

    ``settings`` are whole. Raises OutputError where results of an earlier choice would be replaced unasked.
    """
    programs = {name: path for name in PACKAGES if (path := find_program(name)) is not None}
    if len(programs) < len(PACKAGES):
        return None
    outputs = Outputs.of(settings.run)
    outputs.check(settings.run)
    captions = own_captions(dataset)
    trigger = find_trigger(captions, settings.run.metadata_trigger_phrase)
    networks = planned_networks(settings.run, length.epochs, length.steps_per_epoch, length.steps)
    _say_plan(trigger, len(networks), say)
    asked = make_prompts(captions, trigger.word if trigger else "", [prompt.text for prompt in prompts])
    first = next((prompt for prompt in prompts if prompt.text in asked.asking), None)
    plan = _plan_file(settings, asked, first, outputs, say)
    words = ["-o", str(outputs.sheet), "--html", str(outputs.page), "--x", "file", "--y", "prompt"]
    words += ["--title", settings.run.output_name, "--size", str(SHEET_SIDE)]
    words += ["--best", "--trigger", trigger.word] if trigger and len(networks) > 1 else []
    words += model_words(settings.run)
    words += ["--force"] if settings.run.overwrite else []
    return Choosing(programs, networks, plan, tuple(words), outputs)


def _say_plan(trigger: Trigger | None, networks: int, say: Say) -> None:
    if trigger is None:
        say(
            "note: choose: no word is common enough in the captions to be the trigger, so no epoch will be named, only "
            "drawn; metadata_trigger_phrase names it"
        )
    else:
        say(
            f"choose: the trigger is '{trigger.word}', in {trigger.seen} of {trigger.total} captions an epoch"
        )
    if networks == 1:
        say(
            "note: choose: one network will be saved, so there is nothing to choose from; save_every_n_epochs saves "
            "more"
        )
    if networks > MOST_NETWORKS:
        say(f"note: choose: {MOST_NETWORKS} of {networks} saved networks will be drawn, at equal distances")


# -------------------------------------------------------------------------------- what lora-sample is told


def _plan_file(
    settings: TrainSettings, asked: Prompts, first: Prompt | None, outputs: Outputs, say: Say
) -> str:
    """The plan as TOML. ``first``: the user's own prompt, whose size, steps and guidance count."""
    model, width, height = settings.model, *settings.data.size
    values: dict[str, Any] = {
        "base": model.pretrained_model_name_or_path,
        "vae": model.vae,
        "flow_model": settings.loss.flow_model or None,
        "flow_shift": settings.loss.flow_sample_shift if settings.loss.flow_model else None,
        "vae_scale": model.vae_custom_scale,
        "vae_shift": model.vae_custom_shift,
        "vae_reflection": model.vae_reflection_padding or None,
        "clip_skip": model.clip_skip,
        "device": model.device,
        "tokenizer_dir": None if model.tokenizer_dir is None else str(model.tokenizer_dir),
        "network": _merged(settings) or None,
        "y": f"prompt:{asked.axis()}",
        "sheet": [f"seed:-1--1 [{asked.seeds}]"],
        "size": f"{width // 8 * 8}x{height // 8 * 8}",
        "sampler": _sampler(
            dict.fromkeys([first.sampler if first else None, settings.run.sample_sampler]), say
        ),
        "output_dir": str(outputs.folder),
        "overwrite": settings.run.overwrite or None,
    }
    if first is not None:
        values |= {"size": f"{first.width}x{first.height}", "steps": first.steps, "cfg": first.scale}
        values["negative"] = first.negative or None
    # A JSON value of these kinds is a TOML value.
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def _merged(settings: TrainSettings) -> list[str]:
    """Networks that were merged into the base before, which belong to every picture."""
    files, strengths = settings.network.base_weights, settings.network.base_weights_multiplier
    return [
        f"{path}:{strengths[place] if place < len(strengths) else 1:g}" for place, path in enumerate(files)
    ]


def _sampler(names: Iterable[str | None], say: Say) -> str | None:
    """The first of the samplers that were asked for which lora-sample has; None for its own."""
    unknown = []
    for name in names:
        if name is None:
            continue
        try:
            find_sampler(name)
        except ConfigError:
            unknown.append(name)
            continue
        break
    else:
        name = None
    for other in unknown:
        say(f"note: choose: lora-sample has no sampler '{other}', so it draws with {name or 'its own'}")
    return name


# -------------------------------------------------------------------------------- after training


def choose(choosing: Choosing, say: Say) -> None:
    """Draw, lay out, and name the epoch through ``say``. Raises ProblemFound where a program fails."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the programs need the card
    networks = _thinned([path for path in choosing.networks if path.exists()])
    outputs = choosing.outputs
    try:
        outputs.folder.mkdir(exist_ok=True)
        with atomic_write(outputs.plan, force=True) as file:
            file.write(choosing.plan.encode())
    except OSError as error:
        raise OutputError(f"choose: {outputs.folder}: cannot be written ({error.strerror})") from error
    words = [*map(str, networks), "--plan", str(outputs.plan), "--json"]
    cells = _run(choosing, "lora-sample", words, say, allowed=1)
    with atomic_write(outputs.cells, force=True) as file:
        file.write(cells.encode())
    for line in _run(
        choosing, "lora-grid", [str(outputs.cells), *choosing.layout], say, allowed=1
    ).splitlines():
        say(line)


def _run(choosing: Choosing, name: str, words: Sequence[str], say: Say, *, allowed: int) -> str:
    """What a program wrote to stdout. ``allowed``: the status of one that did its work with something to tell."""
    say(f"$ {join([name, *words])}")
    ran = run_program(choosing.programs[name], words)
    if ran.status not in (0, allowed) or not (ran.output or ran.status == 0):
        raise ProblemFound(
            f"choose: {name} ended with status {ran.status}, so no epoch is named; the networks are there, and the "
            "command can be given again"
        )
    return ran.output


def _thinned(networks: Sequence[Path]) -> list[Path]:
    """As many as are drawn, at equal distances, the last among them."""
    count = min(len(networks), MOST_NETWORKS)
    return [networks[(place + 1) * len(networks) // count - 1] for place in range(count)]
