"""Train a LoRA: the story from settings to files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.command.progress import progress
from lorapipe_engine.datasets.described import folder_lines
from lorapipe_engine.errors import ConfigError, ProblemFound
from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.nn.fused.kernels import are_compiled
from lorapipe_engine.pictures.batches import Batch, epoch_batches
from lorapipe_engine.pictures.captions import When
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.data.examples import Dataset, TrainingData
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.data.prepare import check_cached_text, prepare_data
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.make import make_network
from lorapipe_engine.train.network.part_norms import PartNorms
from lorapipe_engine.train.network.weight_norms import TAGS, NormLimit
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.optimizers import (
    alpha_note,
    build_optimizer,
    check_arguments,
    optimizer_kind,
    rates_of,
    sets_own_rate,
    write_rates,
)
from lorapipe_engine.train.plan import RunPlan, network_dtype, plan_run
from lorapipe_engine.train.processes import ALONE, Processes
from lorapipe_engine.train.results.endings import nothing_lost
from lorapipe_engine.train.results.loss_watch import follow, is_calm
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
from lorapipe_engine.train.sample.prompts import Prompt
from lorapipe_engine.train.schedules import ScheduleSettings, rate_plan, schedule_of
from lorapipe_engine.train.step.forward import seed_step
from lorapipe_engine.train.step.speed import speed_up
from lorapipe_engine.train.step.step import Stepper
from lorapipe_engine.train.step.trace import Trace, trace_path
from lorapipe_engine.train.validation import Validation, validation_part

Say = Callable[[str], None]


def train(
    settings: TrainSettings,
    dataset: Dataset,
    prompts: Sequence[Prompt],
    family: Family,
    objective: Objective,
    configuration: str,
    say: Say,
    processes: Processes = ALONE,
) -> list[Path]:
    """Train on a scanned dataset with a loaded base; returns the network files in the order saved.

    ``settings`` are whole (see :func:`lorapipe_engine.settings.with_base_defaults`). Raises ProblemFound when the loss
    is no longer a number or has exploded; on Ctrl-C what was learned is saved and told through ``say``, then
    KeyboardInterrupt goes on. Of several processes only the first leaves files.
    """
    arguments = check_arguments(settings.optimizer.optimizer_type, settings.optimizer.optimizer_args)
    rates = rates_of(settings.optimizer, trainable_parts(settings, family))
    check_cached_text(settings.data, dataset, rates.trained)
    batches = batches_of(dataset, settings, 0, processes)
    plan = plan_run(len(batches), settings.run, settings.optimizer.gradient_accumulation_steps)
    data, kept = prepare_data(settings, [dataset, validation_part(dataset)], family, plan, say, processes)
    network = make_network(settings, family, rates.by_part, say)
    processes.as_main(group.parameter.detach() for group in network.groups.values())
    optimizer = build_optimizer(settings.optimizer.optimizer_type, arguments, network.groups, rates)
    schedule = schedule_of(settings.optimizer, plan.steps, max(rates.by_part.values()))
    rates_at = rate_plan(schedule, [row["base_rate"] for row in optimizer.param_groups])
    stepper = Stepper(
        family,
        network,
        optimizer,
        objective,
        max_grad_norm=settings.optimizer.max_grad_norm,
        train_text=any(is_text(part) for part in rates.trained),
        half_precision=family.dtype == torch.float16,
        norm_limit=norm_limit(settings, network),
        processes=processes,
        network_dtype=network_dtype(settings.model),
    )
    speed_up(stepper, capture=settings.model.step_capture == "auto", say=say)
    if stepper.packs is not None and not are_compiled():
        say("note: the first step compiles kernels for this card, which takes half a minute or longer, once")
    for line in [
        *summary(settings, dataset, network, plan, processes),
        *updates(settings, arguments, rates.by_part, schedule),
    ]:
        say(line)
    validation = Validation(kept if dataset.validation else None, stepper, settings.run, settings.run.seed)
    state, keeper = begin_or_go_on(settings, dataset, stepper, plan, say)
    kind = Results if processes.is_main else Onlooker
    with kind(
        settings,
        dataset,
        network,
        family,
        objective,
        plan,
        rates.by_part,
        prompts,
        optimizer,
        state,
        keeper.save,
    ) as results:
        results.log.text("configuration", configuration)
        with processes.leaving(), nothing_lost(results, keeper, state, plan, say):
            with processes.interrupted_together():
                run_steps(settings, data, stepper, rates_at, plan, state, results, keeper, validation)
            results.save_final(state.step, state.epoch)
        if processes.is_main:
            keeper.done()
    return results.files


def begin_or_go_on(
    settings: TrainSettings, dataset: Dataset, stepper: Stepper, plan: RunPlan, say: Say
) -> tuple[State, StateKeeper]:
    """Where to start: at the beginning, or where a run with the same options and pictures was stopped.

    Raises ConfigError for a state of a run that was asked for something else, unless that is to be replaced.
    """
    path = state_file(settings.run)
    asked = purpose(settings, dataset, stepper.processes.count)
    is_main = stepper.processes.is_main
    given = settings.run.resume
    state = State(began=time.time())
    if settings.run.overwrite and given is None:
        if is_main:
            path.unlink(missing_ok=True)  # a link itself, not what it leads to
        stepper.processes.wait()
    # A run that was begun with --resume and stopped goes on from its own state.
    own = path.exists() and (given is None or is_of(path, asked))
    if own or given is not None:
        source = path if own or given is None else given
        kept = Kept(stepper.network, stepper.optimizer, stepper.scaler)
        state, changed = take_up(source, asked, kept, another_length=not own)
        if not own and state.step >= plan.steps:
            raise ConfigError(
                f"resume: {source} was written after step {state.step}, and this run ends at {plan.steps}; give more "
                "--max_train_epochs or --max_train_steps"
            )
        told = f"; changed: {', '.join(changed)}" if changed else ""
        say(f"going on after step {state.step} of {plan.steps}, from {source}{told}")

    def save(target: Path) -> None:
        if is_main:
            save_state(target, state, Kept(stepper.network, stepper.optimizer, stepper.scaler), asked)

    return state, StateKeeper(path, settings.run.state_interval, save)


def run_steps(
    settings: TrainSettings,
    data: TrainingData,
    stepper: Stepper,
    rates_at: Callable[[int], list[float]],
    plan: RunPlan,
    state: State,
    results: Results,
    keeper: StateKeeper,
    validation: Validation,
) -> None:
    """The optimizer steps that are left, with records, samples and saved files between them."""
    parts, processes = PartNorms(stepper.network), stepper.processes
    if not state.step:
        results.sample_at_first()
    with progress(total=plan.steps, label="train", unit="step") as bar:
        bar.update(state.step)
        # From the steps: a run that max_train_steps ended inside an epoch has counted that one as finished.
        for epoch in range(state.step // plan.steps_per_epoch, plan.epochs):
            state.epoch = epoch
            groups = groups_of(batches_of(data.dataset, settings, epoch, processes), settings)
            for group in islice(groups, state.step - epoch * plan.steps_per_epoch, None):
                if state.step == plan.steps:
                    break
                write_rates(stepper.optimizer, rates_at(state.step))
                when = When(epoch, state.step, plan.steps)
                inputs = [
                    data.micro_batch(batch, when, 1 / len(group), rows)
                    for batch in group
                    if (rows := processes.rows(len(batch.pictures)))
                ]
                stepper.trace = Trace() if state.step in settings.run.trace_steps else None
                parts.before(state.step)
                loss, norm = take_step(stepper, inputs, settings.run.seed, state.step)
                if stepper.trace is not None:
                    write_trace(
                        settings, data, stepper.trace, loss, state, epoch, group, replaces=results.replaces
                    )
                state.step += 1
                figures = norm_figures(stepper)
                try:
                    follow(state, loss, plan.steps_per_epoch)
                finally:
                    results.record(state.step, loss, state.loss, norm, {**figures, **parts.after()})
                bar.update(1, loss=f"{state.loss:.4f}", **shown_norms(figures))
                results.after_step(state.step, state.epoch, last=state.step == plan.steps)
                validation.after_step(state, results)
                keeper.after_step(is_calm(state))
                processes.stop_if_asked()
            state.epoch = epoch + 1
            results.after_epoch(state.step, state.epoch, state.loss, last=state.step == plan.steps)
            validation.after_epoch(state, results)


def write_trace(
    settings: TrainSettings,
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
    run = settings.run
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
    share, norm = (value.item() for value in update(stepper, inputs))
    loss = stepper.processes.whole_loss(share)
    if not torch.isfinite(torch.tensor(loss)):
        raise ProblemFound(
            f"step {step + 1}: the loss is {loss}; lower the learning rate, or train in bf16 or float32"
        )
    return loss, norm


# -------------------------------------------------------------------------------- the update


def update(stepper: Stepper, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
    """One update from an accumulation group: the loss and the gradient's norm before clipping, both tensors."""
    passes, finish = partial(accumulate, stepper), partial(clip_and_step, stepper)
    if stepper.graphs is None or stepper.trace is not None or not batches:
        return passes(batches), finish()
    return stepper.graphs.run(batches, passes, finish, finish_inside=stepper.steps_inside_graph)


def accumulate(stepper: Stepper, batches: Sequence[MicroBatch]) -> Tensor:
    """The gradients of a group of batches, from zero; their loss."""
    stepper.begin()
    total = torch.zeros((), device=stepper.family.device)
    for batch in batches:
        loss = stepper.loss_of(batch)
        stepper.backward(loss)
        total += loss.detach()
    return total


def clip_and_step(stepper: Stepper) -> Tensor:
    """Clip the gradients and move the network by them; their norm before clipping."""
    norm = stepper.clip()
    stepper.step()
    return norm


# -------------------------------------------------------------------------------- records


def norm_limit(settings: TrainSettings, network: Network) -> NormLimit | None:
    """The limit that scale_weight_norms asks for."""
    limit = settings.network.scale_weight_norms
    return NormLimit(network.adapters, limit) if limit else None


def norm_figures(stepper: Stepper) -> dict[str, float]:
    """What scale_weight_norms did in the last step, by TensorBoard tag; nothing where it is off."""
    return {} if stepper.norms is None else dict(zip(TAGS, stepper.norms.tolist(), strict=True))


def shown_norms(figures: Mapping[str, float]) -> dict[str, str]:
    """The two figures behind the progress bar that tell a burning network: how many modules are held back, and the
    mean norm."""
    if not figures:
        return {}
    scaled, mean, _ = (figures[tag] for tag in TAGS)
    return {"keys scaled": f"{scaled:.0f}", "average key norm": f"{mean:.3f}"}


def batches_of(
    dataset: Dataset, settings: TrainSettings, epoch: int, processes: Processes = ALONE
) -> Sequence[Batch]:
    """The batches of an epoch, in order, each for all processes together."""
    sizes = [size * processes.count for size in dataset.batch_sizes]
    return epoch_batches(dataset.buckets, dataset.repeats, sizes, settings.run.seed, epoch)


def groups_of(batches: Sequence[Batch], settings: TrainSettings) -> Iterator[Sequence[Batch]]:
    """Accumulation groups: what one optimizer step is made of. The last of an epoch may be short."""
    size = settings.optimizer.gradient_accumulation_steps
    for start in range(0, len(batches), size):
        yield batches[start : start + size]


def trainable_parts(settings: TrainSettings, family: Family) -> tuple[str, ...]:
    """The parts that the options allow to be trained."""
    return (family.facts.denoiser,) if settings.network.network_train_unet_only else family.train_parts


def summary(
    settings: TrainSettings, dataset: Dataset, network: Network, plan: RunPlan, processes: Processes = ALONE
) -> list[str]:
    """What is about to be done, in a few lines."""
    accumulation = settings.optimizer.gradient_accumulation_steps
    together = f" x {processes.count} processes" if processes.count > 1 else ""
    together += f" x {accumulation}" if accumulation > 1 else ""
    sizes = ", ".join(map(str, dict.fromkeys(dataset.batch_sizes)))
    return [
        *folder_lines(dataset),
        f"{sum(dataset.repeats)} pictures an epoch in {len(set(dataset.buckets))} buckets, batch {sizes}"
        f"{together}: {plan.steps_per_epoch} steps x {plan.epochs} epochs = {plan.steps} steps",
        f"network of rank {settings.network.network_dim}: {len(network.adapters)} modules, "
        f"{network.count():,} values",
    ]


def updates(
    settings: TrainSettings,
    arguments: Mapping[str, Any],
    rates: Mapping[str, float],
    schedule: ScheduleSettings,
) -> list[str]:
    """How the network is going to be updated, in a line, and what is odd about that."""
    kind = optimizer_kind(settings.optimizer.optimizer_type)
    shown = ", ".join(f"{part} {rate:g}" for part, rate in rates.items())
    if sets_own_rate(kind, arguments):
        shown = "its own"
    text = ", ".join(f"{name}={value}" for name, value in arguments.items())
    curve = f"{schedule.name} after {schedule.warmup} steps of warm-up" if schedule.warmup else schedule.name
    network = settings.network
    note = alpha_note(kind, network.network_alpha or 0.0, network.network_dim or 0)
    return [f"{kind.name}({text}); rates: {shown}; {curve}", *([f"note: {note}"] if note else [])]
