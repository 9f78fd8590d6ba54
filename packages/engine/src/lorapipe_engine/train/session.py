"""A training session: check everything that is cheap, load the base, train, say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.files.atomic import probe_folder
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.networks.metadata import thumbnail_url
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.settings import RunSettings, TrainSettings, with_base_defaults
from lorapipe_engine.train.data.examples import Dataset, scan
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.memory.errors import memory_explained
from lorapipe_engine.train.network.arguments import network_plan, read_network_args
from lorapipe_engine.train.network.make import quantized_form, with_file_ranks
from lorapipe_engine.train.network.start_from import check_start
from lorapipe_engine.train.objective.check import check_objective
from lorapipe_engine.train.optimizers import check_arguments, check_group_rates, rate_notes, rates_of
from lorapipe_engine.train.plan import (
    DTYPES,
    choose_device,
    choose_precision,
    network_dtype,
)
from lorapipe_engine.train.processes import ALONE, Processes, join_processes
from lorapipe_engine.train.results.boards import check_boards
from lorapipe_engine.train.results.outputs import check_outputs, remove_leftovers
from lorapipe_engine.train.sample.draw import make_scheduler
from lorapipe_engine.train.sample.prompts import Prompt, read_prompts
from lorapipe_engine.train.schedules import rate_plan, schedule_notes, schedule_of

Say = Callable[[str], None]


def run_training(settings: TrainSettings, configuration: str, say: Say) -> list[Path]:
    """Train as ``settings`` say; returns the networks' paths. ``configuration`` is kept beside the curves."""
    began = time.monotonic()
    processes = join_processes(settings)
    notes = check_cheaply(settings)
    for note in notes:
        say(f"note: {note}")
    if processes.is_main:
        check_writable(settings.run)
        remove_leftovers(settings.run)
    dataset = scan(settings.data, settings.run.seed)
    settings = with_first_resolution(settings, dataset)
    prompts = sample_prompts(settings)
    for note in dataset_notes(settings.data, dataset):
        say(f"note: {note}")
    settings = with_file_ranks(settings)
    check_memory(settings, dataset, say, processes)
    family, settings = load_family(settings, say, processes)
    for note in check_objective(settings.loss):
        if note not in notes:
            say(f"note: {note}")
    from lorapipe_engine.train.data.prepare import long_captions
    from lorapipe_engine.train.loop import train

    if warning := long_captions(dataset, family):
        say(f"note: {warning}")

    try:
        with memory_explained(settings), processes.losses_told():
            files = train(settings, dataset, prompts, family, configuration, say, processes)
    finally:
        detach(family.parts.values())
    say(f"trained in {time.monotonic() - began:.0f} s; curves: tensorboard --logdir {settings.run.logs}")
    return files


def check_cheaply(settings: TrainSettings) -> list[str]:
    """Find every mistake that can be found before gigabytes are read; returns what the user should know."""
    resolve_base(settings.model.pretrained_model_name_or_path or "")
    check_caches(settings)
    notes = check_updates(settings)
    notes += check_objective(settings.loss)
    quantized_form(settings.model)
    network_dtype(settings.model)
    network_plan(settings.network)
    check_start(settings.network)
    make_scheduler(settings.run.sample_sampler, v_prediction=False)
    check_boards(settings.run)
    if settings.run.metadata_thumbnail is not None:
        thumbnail_url(settings.run.metadata_thumbnail)
    check_outputs(settings.run)
    return notes


def check_caches(settings: TrainSettings) -> None:
    """Raise ConfigError for a cache that cannot be where it should, or that training would make stale."""
    data, optimizer = settings.data, settings.optimizer
    if data.cache_dir is not None and data.cache_dir.exists() and not data.cache_dir.is_dir():
        raise ConfigError(f"cache_dir: {data.cache_dir} is a file, not a folder")
    if not (data.cache_text_encoder_outputs or data.cache_text_encoder_outputs_to_disk):
        return
    # Without any rate the family decides, which is not known yet.
    asked = any(optimizer.text_encoder_lr) or (optimizer.learning_rate and not optimizer.text_encoder_lr)
    if asked and not settings.network.network_train_unet_only:
        name = "text_encoder_lr" if optimizer.text_encoder_lr else "learning_rate"
        raise ConfigError(
            f"{name}: trains the text encoders, whose outputs are cached; give --network_train_unet_only, or leave "
            "cache_text_encoder_outputs out"
        )


def check_updates(settings: TrainSettings) -> list[str]:
    """Check optimizer, rates and curve, for whichever family the base will be; returns what the user should know."""
    optimizer = settings.optimizer
    arguments = check_arguments(optimizer.optimizer_type, optimizer.optimizer_args)
    # As many encoders as there are rates: which base it is shows only when it is read.
    encoders = (
        ()
        if settings.network.network_train_unet_only
        else ("te1", "te2")[: len(optimizer.text_encoder_lr) or 1]
    )
    rates = rates_of(optimizer, (*encoders, "unet"))
    schedule = schedule_of(optimizer, planned_steps(settings), max(rates.by_part.values()))
    rate_plan(schedule, [1.0])
    check_group_rates(optimizer, read_network_args(settings.network).has_rates)
    notes = [*rate_notes(optimizer, arguments, rates), *schedule_notes(optimizer)]
    if settings.network.network_train_unet_only and any(optimizer.text_encoder_lr):
        notes.append(
            "text_encoder_lr is not used: network_train_unet_only leaves the text encoders as they are"
        )
    return notes


def planned_steps(settings: TrainSettings) -> int:
    """Length of the run as far as it is known before the pictures are counted."""
    return 10_000 if settings.run.max_train_epochs else settings.run.max_train_steps


def check_writable(run: RunSettings) -> None:
    """Make the output folder. Raises OutputError if nothing can be written there."""
    try:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        probe_folder(run.output_dir)
    except OSError as error:
        raise OutputError(
            f"output_dir: {run.output_dir}: cannot write there ({error.strerror}); choose another folder"
        ) from error


def with_first_resolution(settings: TrainSettings, dataset: Dataset) -> TrainSettings:
    """The settings with the resolution and batch size of the first dataset, which may come from a dataset file."""
    first = dataset.specs[0]
    data = replace(settings.data, resolution=first.buckets.resolution, train_batch_size=first.batch_size)
    return replace(settings, data=data)


def sample_prompts(settings: TrainSettings) -> list[Prompt]:
    """The prompts of the prompt file, at the training size unless they say otherwise."""
    if settings.run.sample_prompts is None:
        return []
    width, height = settings.data.resolution
    return read_prompts(settings.run.sample_prompts, Prompt(text="", width=width, height=height))


def check_memory(settings: TrainSettings, dataset: Dataset, say: Say, processes: Processes) -> None:
    """Tell what a run on a CUDA card will take. Raises ConfigError where it cannot fit."""
    device = processes.device or choose_device(settings.model.device)
    model = settings.model
    # What is counted are the fused blocks, which narrow weights go without.
    narrow = model.quantize_base or model.fp8_base or model.fp8_base_unet
    if device.type != "cuda" or model.ignore_memory or narrow:
        return
    from lorapipe_engine.train.memory.fit import memory_line

    dtype = DTYPES[choose_precision(settings.model.mixed_precision, device)]
    source = resolve_base(settings.model.pretrained_model_name_or_path or "")
    say(memory_line(settings, dataset, source, dtype, torch.cuda.mem_get_info(device)[0]))


def load_family(
    settings: TrainSettings, say: Say, processes: Processes = ALONE
) -> tuple[Family, TrainSettings]:
    """Load the base onto the device, and fill in what depends on it."""
    from lorapipe_engine.train.base.load import load_base

    model = settings.model
    device = processes.device or choose_device(model.device)
    precision = choose_precision(model.mixed_precision, device)
    source = resolve_base(model.pretrained_model_name_or_path or "")
    with memory_explained(settings):
        base = load_base(
            source,
            vae=model.vae,
            v2=model.v2 or None,
            dtype=DTYPES[precision],
            tokenizer_dir=model.tokenizer_dir,
        )
    v_prediction = settings.loss.v_parameterization
    if v_prediction is None:
        v_prediction = base.prediction_type == "v_prediction"
        if base.prediction_type is None and base.family == "sd2":
            say(
                "note: this SD 2.x file does not tell what it predicts; taken as epsilon (--v_parameterization for v)"
            )
    with memory_explained(settings):
        family = open_family(
            base,
            device=device,
            dtype=DTYPES[precision],
            vae_dtype=torch.float32 if model.no_half_vae else None,
            chunks=model.max_token_length // 75,
            waiting=True,
        )
    settings = replace(settings, model=replace(model, mixed_precision=precision))
    say(
        f"base: {source} ({family.name}, {'v' if v_prediction else 'epsilon'}) on {device}, {precision_name(precision)}"
    )
    return family, with_base_defaults(settings, family.name, v_prediction, base.encoder_layer)


def precision_name(precision: str) -> str:
    """The precision in words."""
    return "float32" if precision == "no" else precision
