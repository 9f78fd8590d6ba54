"""Checkpoints into one: match, plan, stream, tell."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorapipe_engine.checkpoints.opened import said_prediction
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES
from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, build_header, check_weights_output
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.dates import date_of_inputs
from lorapipe_engine.models.families import FAMILIES
from lorapipe_merge.blocks import BlockWeights, parse_blocks
from lorapipe_merge.checkpoint.report import Moved
from lorapipe_merge.checkpoint.result import PRECISIONS
from lorapipe_merge.checkpoint.stream import SIZES, cast_tensor, check_values, copy_tensor
from lorapipe_merge.models.methods import METHODS, Array, Method, weighted_average
from lorapipe_merge.models.plan import (
    Entry,
    Plan,
    check_method,
    is_first_layer,
    open_model,
    plan_models,
    vae_table,
)
from lorapipe_merge.output import PIECE, Buffers, Target, encode_numbers, read_numbers, run_jobs, thread_count
from lorapipe_merge.recipe import Source as Named
from lorapipe_merge.recipe import merged_metadata, recipe
from lorapipe_merge.settings import ModelsSettings, OutputSettings, SharedSettings


@dataclass(frozen=True)
class Task:
    """What is done with every tensor."""

    name: str
    method: Method
    ratio: float
    params: Mapping[str, float]
    blocks: BlockWeights | None
    seed: int
    allow: bool
    shares: tuple[float, ...] = ()

    def ratio_of(self, block: str) -> float:
        return self.blocks.of(block, self.ratio) if self.blocks else self.ratio


def merge_models(
    inputs: Sequence[tuple[str, float | None]],
    target: Path,
    settings: ModelsSettings,
    output: OutputSettings,
    shared: SharedSettings,
    blocks: str | None,
) -> int:
    """Merge checkpoints, each with the ratio of its own if it has one, into one file; the exit status.

    Raises LoraErrors; nothing that stood there before is changed unless all went well.
    """
    row = METHODS[settings.method]
    check_method(settings.method, row.least, row.most, len(inputs))
    shares = shares_of(settings.method, inputs, shared.ratio)
    if shares:
        row = replace(row, prepare=weighted_average(shares))
        ratio = row.ratio
    else:
        ratio = ratio_of(settings.method, row, inputs, shared.ratio, blocks)
    with ExitStack() as stack:
        models = [open_model(name) for name, _ in inputs]
        for _, file, _ in models:
            stack.enter_context(file)
        family = one_family(models)
        table = vae_table(stack.enter_context(open_weights(settings.vae))) if settings.vae else None
        files = [file for _, file, _ in models]
        plan = plan_models(files, family, ema=settings.ema, prune=settings.prune, vae=table)
        task = Task(
            name=settings.method,
            method=row,
            ratio=ratio,
            params=known_params(settings.method, row, dict(map(_pair, settings.params))),
            blocks=parse_blocks(blocks, family) if blocks is not None else None,
            seed=settings.seed,
            allow=output.allow_nonfinite,
            shares=shares,
        )
        if shares and not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-6):
            plan.notes.append(
                f"the ratios' sum is {math.fsum(shares):g}, so all weights are that much larger"
            )
        paths = [path for path, _, _ in models]
        merged = _check_result(plan, paths, target, force=output.force)
        kinds = {key: (kind_of(entry, output.precision), entry.shape) for key, entry in plan.entries.items()}
        header, places = build_header(kinds)
        size = len(header) + max((info.end for info in places.values()), default=0)
        check_weights_output(target, force=output.force, size=size)
        if not output.dry_run:
            metadata = dict(files[0].metadata)
            if not shared.no_metadata:
                metadata = _metadata(
                    files[0], paths, target, family, _recipe(paths, task, settings, output.precision, blocks)
                )
            write_models(plan, places, metadata, target, task, force=output.force)
    tell(plan, merged, task, [str(path) for path in paths], target, output)
    return 0


def shares_of(
    name: str, inputs: Sequence[tuple[str, float | None]], ratio: float | None
) -> tuple[float, ...]:
    """The share of each model in an average, where they have ratios of their own; else ().

    Raises ConfigError where only some have one.
    """
    given = [number for _, number in inputs if number is not None]
    if name != "average" or not given:
        return ()
    if len(given) < len(inputs) or ratio is not None:
        raise ConfigError("--method average: give every model a ratio of its own, or none: A:0.3 B:0.3 C:0.4")
    return tuple(given)


def ratio_of(
    name: str,
    method: Method,
    inputs: Sequence[tuple[str, float | None]],
    ratio: float | None,
    blocks: str | None,
) -> float:
    """The share of the second model: its own ratio, else that of all, else what fits the method.

    Raises ConfigError for ratios and block values of which the method would take no notice.
    """
    own = [f"{path}:{number:g}" for path, number in inputs if number is not None]
    names = " ".join(path for path, _ in inputs)
    if own and (len(own) > 1 or inputs[1:2] == [] or inputs[1][1] is None):
        raise ConfigError(
            f"{own[0]}: --models takes one ratio, the share of the second model; say it with --ratio: lora-merge "
            f"--models {names} --ratio 0.3 -o OUT is 0.7 of the first and 0.3 of the second"
        )
    if own and ratio is not None:
        raise ConfigError(f"{own[0]} and --ratio {ratio:g}: give the ratio once")
    given = inputs[1][1] if len(inputs) > 1 and inputs[1][1] is not None else ratio
    if not method.weighted and (given is not None or blocks):
        raise ConfigError(
            f"--method {name} gives all models the same share: leave out {'--blocks' if blocks else 'the ratio'}"
        )
    return method.ratio if given is None else given


def _pair(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ConfigError(f"--param {text}: write NAME=NUMBER") from None


def _check_result(plan: Plan, paths: Sequence[Path], target: Path, *, force: bool) -> int:
    """How many tensors are merged. Raises ConfigError for a model as output, InputError where nothing is merged."""
    for path in paths:
        if target.exists() and target.samefile(path) and not force:
            raise ConfigError(f"{target}: is one of the models; give --force to replace it, or another -o")
    merged = sum(len(entry.sources) > 1 for entry in plan.entries.values())
    if not merged:
        raise InputError(f"{paths[0]} and {paths[1]} have no tensor in common; nothing was written")
    return merged


def _recipe(
    paths: Sequence[Path], task: Task, settings: ModelsSettings, precision: str, blocks: str | None
) -> str:
    vae = settings.vae and Named(settings.vae, known_sha256(settings.vae)).as_record()
    return recipe(
        "models",
        {
            "models": [
                Named(path, known_sha256(path), share)
                for path, share in zip(paths, task.shares or [None] * len(paths), strict=True)
            ]
        },
        method=task.name,
        ratio=None if task.shares else task.ratio,
        params=dict(task.params) or None,
        blocks=blocks,
        vae=vae,
        ema=settings.ema,
        seed=task.seed if task.name == "dare" else None,
        precision=precision,
    )


def _metadata(
    first: WeightFile, paths: Sequence[Path], target: Path, family: str, text: str
) -> dict[str, str]:
    return merged_metadata(
        dict(first.metadata),
        text,
        family=family,
        title=target.stem,
        merged_from=[path.name for path in paths],
        date=date_of_inputs(paths),
        prediction=said_prediction(first.path, [first]),
    )


def one_family(models: Sequence[tuple[Path, WeightFile, str]]) -> str:
    """The family of all models. Raises InputError where they differ."""
    (first, _, family), *rest = models
    for path, _, other in rest:
        if other != family:
            raise InputError(
                f"{path} is {FAMILIES[other].title}, {first} is {FAMILIES[family].title}; they cannot be merged"
            )
    return family


def known_params(name: str, method: Method, given: Mapping[str, float]) -> dict[str, float]:
    """The method's numbers. Raises ConfigError for one that it does not have, or out of 0 to 1."""
    for key, value in given.items():
        if key not in method.params:
            known = ", ".join(method.params) or "none"
            raise ConfigError(f"--param {key}: {name} has no such number; it has {known}")
        if not 0 <= value <= 1 or (key == "drop" and value == 1):
            raise ConfigError(
                f"--param {key}={value:g}: must be from 0 to 1{' (less than 1)' if key == 'drop' else ''}"
            )
    return {**method.params, **given}


def kind_of(entry: Entry, precision: str) -> str:
    """The number type of a tensor of the result: the first model's, or what was asked for."""
    first = entry.sources[0]
    dtype = first.file.tensors[first.key].dtype
    if dtype in FLOAT_DTYPES and precision != "keep" and entry.layer:
        return PRECISIONS[precision]
    if len(entry.sources) > 1 and dtype not in SIZES:
        raise ConfigError(
            f"{first.file.path}: {entry.key} is of type {dtype}, which is not written; give --save-precision fp16"
        )
    return dtype


# -------------------------------------------------------------------------------- writing


def write_models(
    plan: Plan,
    places: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    path: Path,
    task: Task,
    *,
    force: bool,
) -> None:
    """Write the result, whole or not at all."""
    header, _ = build_header({key: (info.dtype, info.shape) for key, info in places.items()}, metadata)
    size = max((info.end for info in places.values()), default=0)
    buffers = Buffers()
    with (
        atomic_write(path, force=force, size=len(header) + size, wait=False) as file,
        Target(file, len(header) + size, replaces=os.path.lexists(path)) as target,
    ):
        target.write_at(header, 0)

        def job(entry: Entry, place: TensorInfo) -> Callable[[], int]:
            return lambda: write_entry(entry, place, target, len(header) + place.start, buffers, task)

        with progress(size, "merging", "B") as bar:
            jobs = (job(plan.entries[key], place) for key, place in places.items())
            run_jobs(jobs, thread_count(), bar.update)


def write_entry(
    entry: Entry, place: TensorInfo, target: Target, offset: int, buffers: Buffers, task: Task
) -> int:
    """Write one tensor; its bytes."""
    first = entry.sources[0]
    if len(entry.sources) == 1:
        if place.dtype == first.file.tensors[first.key].dtype:
            copy_tensor(first.file, first.key, target, offset, buffers)
        else:
            cast_tensor(first.file, first.key, place.dtype, target, offset, buffers, allow=task.allow)
        return place.size
    if is_first_layer(entry.key):
        _write_first_layer(entry, place, target, offset, buffers, task)
        return place.size
    count = math.prod(entry.shape)
    seed = zlib.crc32(entry.key.encode()) ^ task.seed << 32

    def pieces() -> Iterator[list[Array]]:
        for start in range(0, count, PIECE):
            yield _read(entry, start, min(count, start + PIECE), buffers)

    combine = task.method.prepare(pieces, task.ratio_of(entry.block), task.params, seed)
    for start in range(0, count, PIECE):
        values = combine(_read(entry, start, min(count, start + PIECE), buffers), start)
        out = encode_numbers(np.ascontiguousarray(values, np.float32), place.dtype, buffers)
        check_values(out, place.dtype, entry.key, Moved(0), task.allow, _places_of(entry))
        target.write_at(out, offset + start * SIZES[place.dtype])
    return place.size


def _places_of(entry: Entry) -> list[tuple[WeightFile, str]]:
    return [(source.file, source.key) for source in entry.sources]


def _read(entry: Entry, start: int, stop: int, buffers: Buffers) -> list[Array]:
    """The numbers of all sources, each in memory of its own."""
    return [read_numbers(s.file, s.key, start, stop, buffers).copy() for s in entry.sources]


def _write_first_layer(
    entry: Entry, place: TensorInfo, target: Target, offset: int, buffers: Buffers, task: Task
) -> None:
    """The convolution on the latents: models for inpainting have more inputs, of which the first are the same."""
    tensors = [source.file.read(source.key) for source in entry.sources]
    shared = min(tensor.shape[1] for tensor in tensors)
    rows = [np.ascontiguousarray(tensor[:, :shared]).reshape(-1).astype(np.float32) for tensor in tensors]

    def pieces() -> Iterable[list[Array]]:
        return [rows]

    combine = task.method.prepare(pieces, task.ratio_of(entry.block), task.params, task.seed)
    result = np.array(tensors[0], np.float32)
    result[:, :shared] = combine(rows, 0).reshape(result[:, :shared].shape)
    out = encode_numbers(result.reshape(-1), place.dtype, buffers)
    check_values(out, place.dtype, entry.key, Moved(0), task.allow, _places_of(entry))
    target.write_at(out, offset)


# -------------------------------------------------------------------------------- telling


def tell(
    plan: Plan, merged: int, task: Task, names: Sequence[str], target: Path, output: OutputSettings
) -> None:
    """The report on stderr, the path or the report as JSON on stdout."""
    verb = "would merge" if output.dry_run else "merged"
    ratio = "block values" if task.blocks else f"ratio {task.ratio:g}"
    if not task.method.weighted:
        ratio = f"ratios {' '.join(f'{share:g}' for share in task.shares)}" if task.shares else "equal shares"
    say(f"{verb} {merged} of {len(plan.entries)} tensors of {', '.join(names)} by {task.name}, {ratio}")
    for note in plan.notes:
        say(f"note: {note}")
    if output.as_json:
        record: dict[str, Any] = {
            "path": None if output.dry_run else str(target),
            "output": str(target),
            "models": list(names),
            "method": task.name,
            "ratio": task.ratio,
            **({"ratios": list(task.shares)} if task.shares else {}),
            "params": dict(task.params),
            "merged": merged,
            "tensors": len(plan.entries),
            "notes": plan.notes,
        }
        write_json(record)
    elif not output.dry_run:
        write_path(Path(target))
