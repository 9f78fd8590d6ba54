"""Train a LoRA: the story from settings to files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import ConfigError, ProblemFound
from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.nn.kernels import are_compiled
from lorapipe_engine.pictures.batches import Batch, epoch_batches
from lorapipe_engine.pictures.captions import When
from lorapipe_engine.settings import OptimizerSettings, RunSettings, TrainSettings
from lorapipe_engine.train.base.shelf import Shelf
from lorapipe_engine.train.data.examples import Dataset, TrainingData
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.data.pairs import pair_data
from lorapipe_engine.train.data.prepare import check_cached_text, prepare_data
from lorapipe_engine.train.data.preserved import Preserved
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.judging import Judge, Judging
from lorapipe_engine.train.network.average import NetworkAverage
from lorapipe_engine.train.network.files.start_from import merge_into_base
from lorapipe_engine.train.network.make import make_network
from lorapipe_engine.train.network.part_norms import PartNorms
from lorapipe_engine.train.network.weight_norms import TAGS, NormLimit
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.optimizers import build_optimizer, write_rates
from lorapipe_engine.train.plan import Length, RunPlan
from lorapipe_engine.train.processes import ALONE, Processes
from lorapipe_engine.train.results.endings import nothing_lost
from lorapipe_engine.train.results.loss_watch import follow, is_calm
from lorapipe_engine.train.results.numbering import best_file
from lorapipe_engine.train.results.results import Onlooker, Results
from lorapipe_engine.train.results.state import (
    Kept,
    State,
    StateKeeper,
    is_of,
    purpose,
    save_state,
    state_file,
    take_up,
)
from lorapipe_engine.train.results.summary import summary
from lorapipe_engine.train.sample.prompts import Prompt
from lorapipe_engine.train.step.forward import seed_step
from lorapipe_engine.train.step.preserving import Preserving, check_parts
from lorapipe_engine.train.step.slide import Slide
from lorapipe_engine.train.step.speed import speed_up
from lorapipe_engine.train.step.step import Stepper
from lorapipe_engine.train.step.time_bins import EVERY
from lorapipe_engine.train.step.trace import Trace, trace_path
from lorapipe_engine.train.validation import Validation, validation_part

Say = Callable[[str], None]
HELD_TAG = "loss/preservation"


def train(
    settings: TrainSettings,
    plan: RunPlan,
    dataset: Dataset,
    prompts: Sequence[Prompt],
    family: Family,
    objective: Objective,
    configuration: str,
    say: Say,
    processes: Processes = ALONE,
    shelf: Shelf | None = None,
    on_end: Callable[[list[Path]], None] | None = None,
    preserved: Preserved | None = None,
    judging: Judging | None = None,
) -> list[Path]:
    """Train on a scanned dataset with a loaded base; returns the network files in the order saved.

    ``settings`` are whole (see :func:`lorapipe_engine.settings.with_base_defaults`), and ``plan`` is theirs. Raises
    ProblemFound when the loss is no longer a number or has exploded; on Ctrl-C what was learned is saved and reported
    through ``say``, then KeyboardInterrupt goes on. Of several processes only the first leaves files. ``shelf``: see
    :func:`prepare_data`; ``on_end`` gets the files when all are there, before the state is removed.
    """
    length, rates = plan.length, plan.updates.rates
    check_cached_text(settings.data, dataset, rates.trained)
    if preserved is not None:
        check_parts(preserved.asked, rates.trained)
    # Before captions are encoded, for the text encoders may get their share.
    for note in merge_into_base(settings.network, family):
        say(note)
    kept: TrainingData | None = None
    if dataset.pairs is not None:
        weighted = settings.data.weighted_captions
        data: TrainingData = pair_data(
            dataset, dataset.pairs, family, seed=settings.run.seed, weighted=weighted
        )
    else:
        parts = [dataset, validation_part(dataset)]
        data, kept = prepare_data(settings, parts, family, length.epochs, say, processes, shelf, preserved)
    network = make_network(settings, plan.network, family, rates.by_part, say)
    processes.as_main(group.parameter.detach() for group in network.groups.values())
    stepper = make_stepper(settings, plan, network, family, objective, processes)
    if dataset.pairs is not None:
        stepper.slide = Slide(family, objective, network, dataset.pairs)
    if preserved is not None:
        stepper.preserving = Preserving(
            preserved.asked,
            family,
            network,
            objective,
            apart=settings.loss.preserve_apart,
            train_text=stepper.train_text,
        )
    speed_up(stepper, capture=settings.model.step_capture == "auto", say=say)
    if stepper.packs is not None and not are_compiled():
        say("note: the first step compiles kernels for this card, which takes half a minute or longer, once")
    for line in summary(settings, plan, dataset, network, processes.count):
        say(line)
    judge = None if judging is None else Judge(judging, settings.run, network, family, objective, processes)
    measured = kept if dataset.validation else None
    validation = Validation(measured, stepper, settings.run, settings.run.seed, judge)
    average = make_average(settings.optimizer, network)
    state, keeper = begin_or_go_on(settings, dataset, stepper, length, say, average)
    kind = Results if processes.is_main else Onlooker
    with kind(
        *(
            settings,
            dataset,
            network,
            family,
            objective,
            plan,
            prompts,
            stepper.optimizer,
            state,
            keeper.save,
        ),
        average,
    ) as results:
        results.log.text("configuration", configuration)
        # The loss of a process is known inside, where what was learned is still kept.
        with processes.leaving(), nothing_lost(results, keeper, state, length, say), processes.losses_told():
            with processes.interrupted_together():
                run_steps(settings, plan, data, stepper, state, results, keeper, validation)
            results.save_final(state.step, state.epoch)
            for line in validation.told(state, results):
                say(line)
        if processes.is_main:
            if on_end is not None:
                on_end(results.files)
            keeper.done()
    return results.files


def make_stepper(
    settings: TrainSettings,
    plan: RunPlan,
    network: Network,
    family: Family,
    objective: Objective,
    processes: Processes,
) -> Stepper:
    """The pieces of an update, with a new optimizer."""
    updates, limit = plan.updates, settings.network.scale_weight_norms
    kind = settings.optimizer.optimizer_type
    return Stepper(
        family,
        network,
        build_optimizer(kind, updates.arguments, network.groups, updates.rates),
        objective,
        max_grad_norm=settings.optimizer.max_grad_norm,
        train_text=any(is_text(part) for part in updates.rates.trained),
        half_precision=family.dtype == torch.float16,
        norm_limit=NormLimit(network.adapters, limit) if limit else None,
        processes=processes,
        network_dtype=plan.model.network_dtype,
    )


def make_average(optimizer: OptimizerSettings, network: Network) -> NetworkAverage | None:
    """The average that is kept beside the network, if one is asked for."""
    if optimizer.ema_decay is None and optimizer.ema_width is None:
        return None
    return NetworkAverage(network, decay=optimizer.ema_decay, width=optimizer.ema_width)


def begin_or_go_on(
    settings: TrainSettings,
    dataset: Dataset,
    stepper: Stepper,
    length: Length,
    say: Say,
    average: NetworkAverage | None = None,
) -> tuple[State, StateKeeper]:
    """Where to start: at the beginning, or where a run with the same options and pictures was stopped.

    Raises ConfigError for a state of a run that was asked for something else, unless that is to be replaced.
    """
    path = state_file(settings.run)
    asked = purpose(settings, dataset, stepper.processes.count)
    is_main = stepper.processes.is_main
    given = settings.run.resume
    state = State(began=time.time())
    kept = Kept(stepper.network, stepper.optimizer, stepper.scaler, average)
    if settings.run.overwrite and given is None:
        if is_main:
            path.unlink(missing_ok=True)  # a link itself, not what it leads to
        stepper.processes.wait()
    # A run that was begun with --resume and stopped goes on from its own state.
    own = path.exists() and (given is None or is_of(path, asked))
    if own or given is not None:
        source = path if own or given is None else given
        state, changed = take_up(source, asked, kept, another_length=not own)
        stepper.bins.restore(state.times)
        look_for_best(settings.run, state, say)
        if not own and state.step >= length.steps:
            raise ConfigError(
                f"resume: {source} was written after step {state.step}, and this run ends at {length.steps}; give more "
                "--max_train_epochs or --max_train_steps"
            )
        told = f"; changed: {', '.join(changed)}" if changed else ""
        say(f"going on after step {state.step} of {length.steps}, from {source}{told}")

    def save(target: Path) -> None:
        if is_main:
            state.times = stepper.bins.sums.tolist()
            save_state(target, state, kept, asked)

    return state, StateKeeper(path, settings.run.state_interval, save)


def look_for_best(run: RunSettings, state: State, say: Say) -> None:
    """Forget the best network of a state where it is not there, as in another output: it is looked for anew."""
    path = best_file(run.output_dir, run.output_name, f".{run.save_model_as}")
    if run.early_stop is not None and state.best and not path.exists():
        state.best, state.worse, state.measured = [], 0, -1
        say(f"note: early_stop: {path} is not there, so the best network is looked for from here on")


def run_steps(
    settings: TrainSettings,
    plan: RunPlan,
    data: TrainingData,
    stepper: Stepper,
    state: State,
    results: Results,
    keeper: StateKeeper,
    validation: Validation,
) -> None:
    """The optimizer steps that are left, with records, samples and saved files between them."""
    run, length = settings.run, plan.length
    parts, processes = PartNorms(stepper.network), stepper.processes
    groups_of_rates = stepper.optimizer.param_groups
    rates_at = plan.updates.rates_at(
        [row["base_rate"] for row in groups_of_rates], [row["part"] for row in groups_of_rates]
    )
    if not state.step:
        results.sample_at_first()
    with progress(total=length.steps, label="train", unit="step") as bar:
        bar.update(state.step)
        # A run that max_train_steps ended inside an epoch has counted that one as finished.
        for epoch in range(min(state.epoch, state.step // length.steps_per_epoch), length.epochs):
            if validation.is_over(state):
                break
            state.epoch = epoch
            groups = groups_of(
                batches_of(data.dataset, run.seed, epoch, processes.count),
                settings.optimizer.gradient_accumulation_steps,
            )
            for group in islice(groups, state.step - epoch * length.steps_per_epoch, None):
                if state.step == length.steps or validation.is_over(state):
                    break
                write_rates(stepper.optimizer, rates_at(state.step))
                when = When(epoch, state.step, length.steps)
                inputs = [
                    data.micro_batch(batch, when, 1 / len(group), rows)
                    for batch in group
                    if (rows := processes.rows(len(batch.pictures)))
                ]
                stepper.trace = Trace() if state.step in run.trace_steps else None
                parts.before(state.step)
                loss, norm = take_step(stepper, inputs, run.seed, state.step)
                if stepper.trace is not None:
                    write_trace(
                        run, data, stepper.trace, loss, state, epoch, group, replaces=results.replaces
                    )
                state.step += 1
                if results.average is not None:
                    results.average.after_step(state.step)
                figures = {**norm_figures(stepper), **held_figures(stepper)}
                by_time = {}
                if state.step % EVERY == 0 or state.step == length.steps:
                    by_time = stepper.bins.take(processes)
                try:
                    follow(state, loss, length.steps_per_epoch)
                finally:
                    more = {**figures, **parts.after(), **by_time}
                    results.record(state.step, loss, state.loss, norm, more)
                bar.update(1, loss=f"{state.loss:.4f}", **shown_norms(figures))
                results.after_step(state.step, state.epoch, last=state.step == length.steps)
                validation.after_step(state, results)
                keeper.after_step(is_calm(state))
                processes.stop_if_asked()
            last = state.step == length.steps or validation.is_over(state)
            results.after_epoch(state.step, epoch + 1, state.loss, last=last)
            validation.after_epoch(state, epoch + 1, results, last=last)
            # Finished when all of this is done: an epoch that is interrupted here ends once more.
            state.epoch = epoch + 1


def write_trace(
    run: RunSettings,
    data: TrainingData,
    trace: Trace,
    loss: float,
    state: State,
    epoch: int,
    group: Sequence[Batch],
    *,
    replaces: bool,
) -> None:
    """Write the trace of the step that was just taken, with the names of its pictures."""
    pictures = data.dataset.pictures
    batches = [{"files": [str(pictures[index].path) for index in batch.pictures]} for batch in group]
    path = trace_path(run.traces, state.step)
    inside = run.trace_dir or run.output_dir
    trace.write(path, loss, state.step, epoch, batches, force=replaces, inside=inside)


def take_step(stepper: Stepper, inputs: Sequence[MicroBatch], seed: int, step: int) -> tuple[float, float]:
    """One update with random streams of its own; the loss and the gradient norm as numbers.

    Raises ProblemFound for a loss that is not finite.
    """
    seed_step(seed, step)
    losses, norm = update(stepper, inputs)
    loss, *held = losses.reshape(-1).tolist()
    stepper.held_loss = None
    if stepper.preserving is not None and stepper.preserving.is_at(step):
        stepper.held_loss = held[0]
    if not math.isfinite(loss) or not math.isfinite(stepper.held_loss or 0.0):
        raise ProblemFound(
            f"step {step + 1}: the loss is {loss}; lower the learning rate, or train in bf16 or float32"
        )
    return loss, norm.item()


# -------------------------------------------------------------------------------- the update


def update(stepper: Stepper, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
    """One update from an accumulation group: the loss and the gradient's norm before clipping, both tensors."""
    passes, settle = partial(accumulate, stepper), partial(clip_and_step, stepper)
    batches = stepper.prepared(batches)
    if stepper.graphs is None or stepper.trace is not None or not batches:
        loss = stepper.add_up(passes(batches))
        return loss, settle()
    made = stepper.graphs.run(
        batches, passes, stepper.add_up, settle, records_settle=stepper.settles_in_graph
    )
    # A graph that is replayed runs none of it: what was computed together for the step would be there for samples.
    stepper.network.end()
    return made


def accumulate(stepper: Stepper, batches: Sequence[MicroBatch]) -> Tensor:
    """The gradients of a group of batches, from zero; their loss. Where a term holds the network to the base, (2,): the
    loss without it, and the term's own, 0 in steps that leave it out."""
    stepper.begin()
    total = torch.zeros((), device=stepper.family.device)
    both = torch.zeros(2, device=stepper.family.device)
    for batch in batches:
        if batch.held is None:
            loss = stepper.loss_of(batch)
            stepper.backward(loss)
            total += loss.detach()
        else:
            both += stepper.hold(batch)
    if stepper.preserving is None:
        return total
    both[0] += total
    return both


def clip_and_step(stepper: Stepper) -> Tensor:
    """Clip the gradients and move the network by them; their norm before clipping."""
    norm = stepper.clip()
    stepper.step()
    return norm


# -------------------------------------------------------------------------------- records


def norm_figures(stepper: Stepper) -> dict[str, float]:
    """What scale_weight_norms did in the last step, by TensorBoard tag; nothing where it is off."""
    return {} if stepper.norms is None else dict(zip(TAGS, stepper.norms.tolist(), strict=True))


def held_figures(stepper: Stepper) -> dict[str, float]:
    """How far the network was from the base in the last step, by TensorBoard tag; nothing where that was not asked."""
    return {} if stepper.held_loss is None else {HELD_TAG: stepper.held_loss}


def shown_norms(figures: Mapping[str, float]) -> dict[str, str]:
    """The two figures behind the progress bar that tell a burning network: how many modules are held back, and the
    mean norm."""
    if TAGS[0] not in figures:
        return {}
    scaled, mean, _ = (figures[tag] for tag in TAGS)
    return {"keys scaled": f"{scaled:.0f}", "average key norm": f"{mean:.3f}"}


def batches_of(dataset: Dataset, seed: int, epoch: int, processes: int = 1) -> Sequence[Batch]:
    """The batches of an epoch, in order, each for all processes together."""
    sizes = [size * processes for size in dataset.batch_sizes]
    return epoch_batches(dataset.buckets, dataset.repeats, sizes, seed, epoch)


def groups_of(batches: Sequence[Batch], size: int) -> Iterator[Sequence[Batch]]:
    """Accumulation groups: what one optimizer step is made of. The last of an epoch may be short."""
    for start in range(0, len(batches), size):
        yield batches[start : start + size]
