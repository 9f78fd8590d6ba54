"""A training session: check everything that is cheap, load the base, train, say what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lorapipe_engine.advice.advice import Planned, advice
from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.datasets.pairs import check_slider
from lorapipe_engine.errors import ConfigError, InputError, OutputError
from lorapipe_engine.files.writing.atomic import probe_folder
from lorapipe_engine.models.families import FAMILIES, get_family, is_text
from lorapipe_engine.models.predictions import EPSILON, PREDICTIONS, asked_prediction
from lorapipe_engine.networks.metadata import thumbnail_url
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.pictures.buckets import FINEST_STEP
from lorapipe_engine.pictures.captions import prompt_caption
from lorapipe_engine.settings import (
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
    with_base_defaults,
)
from lorapipe_engine.settings.preserve import read_preserve
from lorapipe_engine.settings.unused import unused_notes
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.base.shelf import Shelf, base_key
from lorapipe_engine.train.base.sources import read_base, resolve
from lorapipe_engine.train.base.vae_form import VaeForm
from lorapipe_engine.train.choose import (
    Choosing,
    check_held_out,
    missing_programs,
    model_words,
    plan_choosing,
)
from lorapipe_engine.train.data.examples import Dataset, scan
from lorapipe_engine.train.data.preserved import Preserved, preserved_in
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.judging import Judging, check_judging, plan_judging
from lorapipe_engine.train.memory.errors import memory_explained
from lorapipe_engine.train.network.arguments import NetworkArgs, network_plan, read_network_args
from lorapipe_engine.train.network.files.start_from import check_start
from lorapipe_engine.train.network.make import quantized_form, with_file_ranks
from lorapipe_engine.train.objective.objective import Objective, objective_class
from lorapipe_engine.train.optimizers import check_group_rates, optimizer_kind, rate_notes
from lorapipe_engine.train.plan import ModelPlan, plan_model, plan_run, trainable
from lorapipe_engine.train.processes import Processes, join_processes
from lorapipe_engine.train.results.best import check_early_stop
from lorapipe_engine.train.results.boards import check_boards
from lorapipe_engine.train.results.claim import claimed
from lorapipe_engine.train.results.ended import forget_record
from lorapipe_engine.train.results.outputs import check_outputs, remove_leftovers
from lorapipe_engine.train.sample.prompts import Prompt, is_prompt_text, read_prompts
from lorapipe_engine.train.schedules import length_notes, schedule_notes
from lorapipe_engine.train.schedules.updates import plan_updates
from lorapipe_engine.train.step.slide import check_places

Say = Callable[[str], None]


@dataclass(frozen=True)
class Queued:
    """What a run has of the queue that it is part of: the ``shelf``, what is done when its output is claimed and when
    its last file is there, and the ``process`` that trains it by itself."""

    shelf: Shelf = field(default_factory=Shelf)
    on_begin: Callable[[], None] | None = None
    on_end: Callable[[list[Path]], None] | None = None
    process: Processes | None = None


@dataclass(frozen=True)
class Trained:
    """What a run left: its networks in the order saved, and what ``--choose`` is to do with them."""

    files: list[Path]
    choosing: Choosing | None = None


def run_training(
    settings: TrainSettings, configuration: str, say: Say, queued: Queued | None = None
) -> Trained:
    """Train as ``settings`` say. ``configuration`` is kept beside the curves."""
    queued = queued or Queued()
    processes = queued.process or join_processes(settings.model, settings.run)
    model = plan_model(settings.model, processes.device)
    args, notes = check_cheaply(settings)
    say_notes(notes, say)
    if not processes.is_main:
        return train_checked(settings, configuration, say, model, args, processes, notes, queued)
    check_writable(settings.run)
    with claimed(settings.run):
        check_outputs(settings.run)
        remove_leftovers(settings.run)
        if queued.on_begin is None:
            forget_record(settings.run)
        else:
            queued.on_begin()
        return train_checked(settings, configuration, say, model, args, processes, notes, queued)


def train_checked(
    settings: TrainSettings,
    configuration: str,
    say: Say,
    model: ModelPlan,
    args: NetworkArgs,
    processes: Processes,
    notes: Sequence[str],
    queued: Queued,
) -> Trained:
    """Load the base and train, with an output that no other run has. ``args``: the network's, read.
    ``notes``: what was said already."""
    began = time.monotonic()
    dataset = scan(settings.data, settings.run.seed, finest_step(settings, model), processes.count)
    settings = with_first_resolution(settings, dataset)
    looked = look_at(settings, dataset)
    say_notes(looked.notes, say)
    settings = with_file_ranks(settings)
    check_memory(settings, args, dataset, model, say)

    opened = open_base(settings, dataset, model, queued.shelf, say)
    settings, family = opened.settings, opened.family
    plan = plan_run(settings, model, args, dataset, family.train_parts, processes.count)
    settings = replace(settings, run=settings.run.with_rhythm(plan.length.epochs))
    say_notes(length_notes(plan.updates.schedule), say)
    planned = Planned(settings=settings, dataset=dataset, steps=plan.length.steps, processes=processes.count)
    say_notes(advice(planned), say)

    objective = family.objective(settings.loss, opened.prediction)
    check_objective(objective, settings, looked.prompts, processes)
    objective_notes = objective.check(settings.loss, opened.prediction)
    say_notes([note for note in objective_notes if note not in notes], say)
    say_notes(notes_of_timesteps(settings.loss, plan.updates.rates.trained), say)
    choosing = None
    if settings.run.choose and processes.is_main:
        choosing = plan_choosing(settings, dataset, plan.length, looked.prompts, say)
    say_notes(notes_of_text(dataset, family), say)

    from lorapipe_engine.train.loop import train

    try:
        with memory_explained(settings), processes.losses_told():
            files = train(
                settings,
                plan,
                dataset,
                looked.prompts,
                family,
                objective,
                configuration,
                say,
                processes,
                queued.shelf,
                queued.on_end,
                looked.preserved,
                looked.judging,
            )
    finally:
        detach(family.parts.values())
    say(f"trained in {time.monotonic() - began:.0f} s; curves: tensorboard --logdir {settings.run.logs}")
    return Trained(files, choosing)


def say_notes(notes: Iterable[str], say: Say) -> None:
    """Say what the user should know, a line each."""
    for note in notes:
        say(f"note: {note}")


def check_cheaply(settings: TrainSettings) -> tuple[NetworkArgs, list[str]]:
    """Find every mistake that can be found before gigabytes are read; returns the network's arguments, read here once,
    and what the user should know."""
    if settings.data.slider is not None:
        check_slider(settings.data, settings.loss)
        if settings.run.choose:
            raise ConfigError("choose: draws what captions say, and a slider has none; leave choose out")
        if settings.run.early_stop is not None:
            raise ConfigError(
                "early_stop: goes by pictures and captions, and a slider has none; leave early_stop out"
            )
    check_caches(settings)
    args = read_network_args(settings.network)
    notes = check_updates(settings, args)
    read_preserve(settings.loss.preserve)
    notes += check_loss(settings.loss)
    objective = objective_class(asked_prediction(settings.loss) or EPSILON.name)
    quantized_form(settings.model)
    network_plan(settings.network, args)
    notes += check_start(settings.network, args)
    if settings.run.resume is not None and not settings.run.resume.exists():
        raise InputError(f"resume: {settings.run.resume}: no such file")
    objective.check_sampler(settings.run.sample_sampler)
    check_boards(settings.run)
    if settings.run.metadata_thumbnail is not None:
        thumbnail_url(settings.run.metadata_thumbnail)
    if settings.run.sample_prompts is not None and is_prompt_text(settings.run.sample_prompts):
        notes.append("sample_prompts is no file: its text is taken as the prompts")
    if settings.run.choose:
        notes += missing_programs()
        model_words(settings.run)
    check_judging(settings)
    return args, [*notes, *unused_notes(settings.data, settings.optimizer, settings.loss, settings.run)]


def check_loss(loss: LossSettings) -> list[str]:
    """What the user should know of the objective's options. What the base predicts may show only when it is read:
    raises ConfigError for what fits no prediction."""
    asked = asked_prediction(loss)
    notes = objective_class(asked or EPSILON.name).check(loss, asked)
    refused: list[ConfigError] = []
    for prediction in PREDICTIONS if asked is None else ():
        try:
            objective_class(prediction).check(loss, prediction)
        except ConfigError as error:
            refused.append(error)
    if refused and len(refused) == len(PREDICTIONS):
        raise refused[0]
    return notes


@dataclass(frozen=True)
class Looked:
    """What is known with the pictures, before the base is read: what is held to the base, the prompts of the samples,
    written as captions are, notes, and what the epochs are judged by."""

    preserved: Preserved | None
    prompts: list[Prompt]
    notes: list[str]
    judging: Judging | None = None


def look_at(settings: TrainSettings, dataset: Dataset) -> Looked:
    """Hold the options against the pictures and captions. Raises ConfigError for what these do not have."""
    if settings.run.choose:
        check_held_out(settings.run, dataset)
    if settings.run.by_figures is None:
        check_early_stop(settings.run.early_stop, dataset)
    if dataset.pairs is not None:
        asked = asked_prediction(settings.loss)
        check_places([asked] if asked else [*PREDICTIONS], settings.loss, dataset.pairs)
    preserved, notes = preserved_in(settings.loss.preserve, dataset, settings.run.seed)
    prompts = sample_prompts(settings)
    check_samplers(settings, prompts)
    prompts, note = as_captions(prompts, dataset)
    judging, told = plan_judging(settings, dataset, prompts)
    notes = [*notes, *([note] if note else []), *dataset_notes(settings.data, dataset), *told]
    return Looked(preserved, prompts, notes, judging)


def check_objective(
    objective: Objective, settings: TrainSettings, prompts: Sequence[Prompt], processes: Processes
) -> None:
    """Raise ConfigError for a sampler that the objective lacks, and for one that several cards cannot share."""
    for name in (settings.run.sample_sampler, *(prompt.sampler for prompt in prompts)):
        objective.check_sampler(name)
    if processes.count > 1 and objective.why_not_shared is not None:
        raise ConfigError(f"{objective.why_not_shared}; train on one card, or leave it out")


def notes_of_timesteps(loss: LossSettings, trained: Sequence[str]) -> list[str]:
    """That the timesteps of the text encoders count for nothing where none is trained."""
    narrowed = (loss.text_encoder_min_timestep, loss.text_encoder_max_timestep) != (0, 1000)
    if not narrowed or any(is_text(part) for part in trained):
        return []
    return ["text_encoder_min_timestep and text_encoder_max_timestep do nothing: no text encoder is trained"]


def notes_of_text(dataset: Dataset, family: Family) -> list[str]:
    """Prompts of a slider and captions that are longer than the text encoders read."""
    from lorapipe_engine.train.data.prepare import long_captions

    pairs = () if dataset.pairs is None else dataset.pairs.rows
    texts = [text for pair in pairs for text in (pair.target, pair.positive, pair.negative, pair.neutral)]
    limit = family.text.limit
    notes = [
        f"slider: the prompt '{text[:40]}...' is cut at {limit} tokens"
        for text in texts
        if family.text.count(text) > limit
    ]
    warning = long_captions(dataset, family)
    return [*notes, warning] if warning else notes


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


def check_average(optimizer: OptimizerSettings) -> None:
    """Raise ConfigError for two averages, or one of an optimizer that averages by itself."""
    if optimizer.ema_decay is None and optimizer.ema_width is None:
        return
    if optimizer.ema_decay is not None and optimizer.ema_width is not None:
        raise ConfigError("ema_decay and ema_width are two kinds of average; leave one of them out")
    if optimizer_kind(optimizer.optimizer_type).averaged:
        name = "ema_width" if optimizer.ema_decay is None else "ema_decay"
        raise ConfigError(f"{name}: {optimizer.optimizer_type} averages by itself; leave one of both out")


def check_updates(settings: TrainSettings, args: NetworkArgs) -> list[str]:
    """Check optimizer, rates and curve, for whichever family the base will be; returns what the user should know."""
    optimizer = settings.optimizer
    check_average(optimizer)
    # As many encoders as there are rates: which base it is shows only when it is read.
    encoders = ("te1", "te2")[: len(optimizer.text_encoder_lr) or 1]
    plan = plan_updates(optimizer, trainable(settings, (*encoders, "unet")), planned_steps(settings))
    plan.rates_at([1.0])
    check_group_rates(optimizer, args.has_rates)
    notes = [*rate_notes(optimizer, plan.arguments, plan.rates), *schedule_notes(optimizer)]
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


def finest_step(settings: TrainSettings, plan: ModelPlan) -> int:
    """What the sides of buckets are multiples of at least. The base is asked only where something finer than any
    family's may be wanted."""
    data = settings.data
    coarsest = max(family.bucket_step for family in FAMILIES.values())
    if data.dataset_config is None and data.bucket_reso_steps >= coarsest:
        return FINEST_STEP
    with ExitStack() as stack:
        return get_family(read_base(resolve(plan.source, plan.dtype), stack).family).bucket_step


def with_first_resolution(settings: TrainSettings, dataset: Dataset) -> TrainSettings:
    """The settings with the resolution and batch size of the first dataset, which may come from a dataset file."""
    first = dataset.specs[0]
    data = replace(settings.data, resolution=first.buckets.resolution, train_batch_size=first.batch_size)
    return replace(settings, data=data)


def sample_prompts(settings: TrainSettings) -> list[Prompt]:
    """The prompts of the prompt file, at the training size unless they say otherwise."""
    if settings.run.sample_prompts is None:
        return []
    width, height = settings.data.size
    return read_prompts(settings.run.sample_prompts, Prompt(text="", width=width, height=height))


def as_captions(prompts: Sequence[Prompt], dataset: Dataset) -> tuple[list[Prompt], str | None]:
    """The prompts by the captions' rule: a caption that was copied is drawn as it is trained. Notes a change."""
    rules = [row.subset.captions for row in dataset.folders]
    shown = [
        replace(one, text=prompt_caption(one.text, rules), negative=prompt_caption(one.negative, rules))
        for one in prompts
    ]
    changed = [new.text or new.negative for old, new in zip(prompts, shown, strict=True) if old != new]
    if not changed:
        return shown, None
    marks = "marks and wildcards of captions are read in sample prompts too"
    return shown, f"{marks}: {len(changed)} of {len(prompts)} change, the first to '{changed[0]}'"


def check_samplers(settings: TrainSettings, prompts: list[Prompt]) -> None:
    """Raise ConfigError for a sampler that what is surely trained lacks; the base may ask for another objective."""
    objective = objective_class(asked_prediction(settings.loss) or EPSILON.name)
    for prompt in prompts:
        objective.check_sampler(prompt.sampler)


def check_memory(
    settings: TrainSettings, args: NetworkArgs, dataset: Dataset, plan: ModelPlan, say: Say
) -> None:
    """Report what a run on a CUDA card will take. Raises ConfigError where it cannot fit.

    On other devices, and with ``--ignore_memory``, nothing is counted.
    """
    model = settings.model
    if plan.device.type != "cuda" or model.ignore_memory:
        return
    # What is counted are the fused blocks, which quantized weights go without.
    if model.quantize_base or model.fp8_base or model.fp8_base_unet:
        return
    from lorapipe_engine.train.memory.fit import memory_line

    free = torch.cuda.mem_get_info(plan.device)[0]
    say(memory_line(settings, args, dataset, plan.source, plan.dtype, free))


@dataclass(frozen=True)
class Opened:
    """A base on its device, what it predicts, and the settings with all that they take from the base."""

    family: Family
    prediction: str
    settings: TrainSettings


def open_base(settings: TrainSettings, dataset: Dataset, plan: ModelPlan, shelf: Shelf, say: Say) -> Opened:
    """Take the base from the shelf, read it where it is not there, and say which it is."""
    with memory_explained(settings):
        base = shelf.base(
            base_key(settings.model, plan.source, plan.dtype),
            partial(read_model, settings.model, plan),
            copies_weights=plan.device.type == "cpu" or bool(settings.network.base_weights),
        )
        prediction = prediction_of(base, settings.loss, say)
        settings = replace(settings, model=replace(settings.model, mixed_precision=plan.precision))
        if dataset.pairs is not None:  # its losses are not weighed
            settings = replace(settings, loss=replace(settings.loss, min_snr_gamma=0.0))
        settings = with_base_defaults(settings, get_family(base.family), prediction, base.encoder_layer)
        family = open_model(base, settings.model, plan)
    settings = replace(settings, model=replace(settings.model, max_token_length=family.text.limit))
    where = f"{plan.device}, {'float32' if plan.precision == 'no' else plan.precision}"
    say(f"base: {plan.source} ({family.name}, {PREDICTIONS[prediction].word}) on {where}")
    return Opened(family, prediction, settings)


def read_model(model: ModelSettings, plan: ModelPlan) -> BaseModel:
    """The base on the CPU."""
    from lorapipe_engine.train.base.load import load_base

    return load_base(
        plan.source,
        vae=model.vae,
        v2=model.v2 or None,
        dtype=plan.dtype,
        tokenizer_dir=model.tokenizer_dir,
        vae_form=VaeForm(model.vae_custom_scale, model.vae_custom_shift, model.vae_reflection_padding),
    )


def prediction_of(base: BaseModel, options: LossSettings, say: Say) -> str:
    """What the base answers: a name of :mod:`lorapipe_engine.models.predictions`."""
    prediction = asked_prediction(options) or base.prediction_type
    if prediction is None:
        say(
            "note: this SD 2.x file does not tell what it predicts; taken as epsilon (--v_parameterization for v)"
        )
    return prediction or EPSILON.name


def open_model(base: BaseModel, model: ModelSettings, plan: ModelPlan) -> Family:
    """The base on its device, its denoiser and text encoders still waiting."""
    return open_family(
        base,
        device=plan.device,
        dtype=plan.dtype,
        vae_dtype=torch.float32 if model.no_half_vae else None,
        max_token_length=model.max_token_length,
        clip_skip=model.clip_skip,
        waiting=True,
    )
