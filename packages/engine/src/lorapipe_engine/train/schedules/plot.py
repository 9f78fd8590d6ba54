"""``lora-train --plot-lr``: the curve of the learning rates of a run, drawn without loading a model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lorapipe_engine.errors import ConfigError, LoraError
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.families import get_family, recognise
from lorapipe_engine.models.family import Family
from lorapipe_engine.pictures.charts import Line, text_chart, write_chart
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.schedules import rate_plan, schedule_notes
from lorapipe_engine.train.schedules.updates import UpdatePlan, plan_updates

TERMINAL = "-"


def plot_rates(settings: TrainSettings, target: str, say: Callable[[str], None]) -> str:
    """Draw the rates of the run: into a .png or .svg file, or for ``-`` as letters. Returns the path or the letters.

    The length is max_train_steps; with max_train_epochs the pictures are counted. Raises ConfigError where the
    options do not fit together, as the run would.
    """
    total = run_length(settings)
    plan = plan_updates(settings.optimizer, _parts(settings), total, try_out=False)
    lines = rate_lines(plan, total)
    for note in schedule_notes(settings.optimizer):
        say(f"note: {note}")
    warmup = f", warm-up {plan.schedule.warmup}" if plan.schedule.warmup else ""
    title = f"{plan.kind.name}, {plan.schedule.name}{warmup}, {total} steps"
    if target == TERMINAL:
        encoding = (sys.stdout.encoding or "ascii").lower()
        columns = shutil.get_terminal_size((80, 24)).columns
        chart = text_chart(lines, columns=min(columns, 120) - 2, braille=encoding.startswith("utf"))
        return f"{title}\n{chart}"
    write_chart(Path(target), lines, title, force=settings.run.overwrite)
    return target


def rate_lines(plan: UpdatePlan, total: int) -> list[Line]:
    """A line for each part that is trained; parts of one rate share one."""
    trained = plan.rates.trained
    rates_at = plan.rates_at([plan.rates.by_part[part] for part in trained], trained)
    rows = [rates_at(step) for step in range(total)]
    if plan.sets_own_rate:
        factor = rate_plan(replace(plan.schedule, base=1.0), [1.0])
        return [Line("all parts, times the size of each tensor", [factor(step)[0] for step in range(total)])]
    together: dict[tuple[float, ...], list[str]] = {}
    for index, part in enumerate(trained):
        together.setdefault(tuple(row[index] for row in rows), []).append(part)
    return [Line(_name(parts, values), values) for values, parts in together.items()]


def _name(parts: list[str], values: tuple[float, ...]) -> str:
    return f"{', '.join(parts)}: up to {max(values):.3g}"


def run_length(settings: TrainSettings) -> int:
    """Optimizer steps of the run. Raises ConfigError where only the dataset can tell and none is given."""
    if settings.run.max_train_epochs is None:
        return settings.run.max_train_steps
    data = settings.data
    if data.train_data_dir is None and data.dataset_config is None and data.slider is None:
        raise ConfigError(
            "plot_lr: max_train_epochs needs the pictures: give --train_data_dir, or --max_train_steps"
        )
    from lorapipe_engine.pictures.batches import batches_per_epoch
    from lorapipe_engine.train.data.examples import scan

    dataset = scan(settings.data, settings.run.seed)
    batches = batches_per_epoch(dataset.buckets, dataset.repeats, dataset.batch_sizes)
    steps = -(-batches // settings.optimizer.gradient_accumulation_steps)
    return steps * settings.run.max_train_epochs


def _parts(settings: TrainSettings) -> tuple[str, ...]:
    """The parts that can be trained, as far as the base's file tells without being loaded."""
    family = _family(settings.model.pretrained_model_name_or_path)
    denoiser = "unet" if family is None else family.denoiser
    if settings.network.network_train_unet_only:
        return (denoiser,)
    if family is not None:
        return (*family.text_parts, denoiser)
    return (*(("te1", "te2") if len(settings.optimizer.text_encoder_lr) > 1 else ("te1",)), denoiser)


def _family(base: str | None) -> Family | None:
    if base is None:
        return None
    try:
        path = resolve_base(base)
        if not isinstance(path, Path) or path.suffix != ".safetensors":
            return None
        with open_tensors(path) as file:
            name = recognise({name: info.shape for name, info in file.tensors.items()}).family
            return None if name is None else get_family(name)
    except LoraError:
        return None  # the run itself will say what is wrong with the base
