"""The whole extraction: every module decomposed at the rank of its rule, or at ranks that fit a size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.dtypes import DTYPE_BITS, Encoded
from lorapipe_engine.files.tensorfile import build_header
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.networks.ranks import Candidate, ranks_for_size
from lorapipe_resize.extract.modules import DTYPES, ModuleReport, Piece, make_piece
from lorapipe_resize.extract.rules import Rule
from lorapipe_resize.extract.sources import UNCHANGED, Job, Source

MOST_THREADS = 4  # each has a layer of both checkpoints in memory
ALPHA_BYTES = 4
# Room for what is not known yet when ranks are chosen for a size: metadata, hashes.
METADATA_ROOM = 4096
# With --target-size, ranks up to so many times the mean one are looked at.
SPREAD = 4
LEAST_SPREAD = 16


@dataclass(frozen=True)
class Wanted:
    """How modules become a LoRA. ``alpha`` is that of every module, ``target_bytes`` the size of the whole file."""

    rule: Rule
    alpha: float
    precision: str
    target_bytes: int | None = None


@dataclass
class Extracted:
    """Tensors of the LoRA, reports of its modules, and how many were left out, by reason. ``capped``: modules that
    got the largest rank that was looked at for a target size.
    """

    tensors: dict[str, Encoded]
    modules: list[ModuleReport]
    left_out: Counter[str]
    numbers: list[int]
    capped: int = 0


def extract(source: Source, wanted: Wanted) -> Extracted:
    """Decompose every module of the source. Raises InputError naming what cannot be, ConfigError for a size that
    cannot be reached.
    """
    ranks, capped = None, 0
    if wanted.target_bytes is not None:
        ranks, capped = _ranks_within(source, wanted, wanted.target_bytes)

    def work(number: int) -> Piece | str:
        rule = wanted.rule
        if ranks is not None:
            if not ranks[number]:
                return UNCHANGED
            rule = Rule(rank=ranks[number], conv_rank=ranks[number])
        change = source.find(number, rule)
        if isinstance(change, str):
            return change
        job = source.jobs[number]
        return make_piece(
            change.spectral,
            change.rank,
            name=job.name,
            block=job.block,
            kernel=job.kernel,
            alpha=wanted.alpha,
            precision=wanted.precision,
            base_norm=change.base_norm,
            floor=change.floor,
            proved=change.proved,
        )

    results = map_in_threads(work, range(len(source.jobs)), "extracting", most=MOST_THREADS)
    done = Extracted({}, [], Counter(), [], capped)
    for number, result in enumerate(results):
        if isinstance(result, str):
            done.left_out[result] += 1
        else:
            done.tensors |= result.tensors
            done.modules.append(result.report)
            done.numbers.append(number)
    return done


# -------------------------------------------------------------------------------- a given size


def _ranks_within(source: Source, wanted: Wanted, target: int) -> tuple[list[int], int]:
    """The ranks that lose least within ``target`` bytes of file, 0 for modules without change; how many of them are
    at the largest rank that was looked at.
    """
    item = DTYPE_BITS[DTYPES[wanted.precision]] // 8
    budget = target - _header_bytes(source.jobs) - ALPHA_BYTES * len(source.jobs)
    per_rank = [item * sum(job.size) for job in source.jobs]
    most = max(LEAST_SPREAD, SPREAD * max(0, budget) // max(1, sum(per_rank)))
    bounds = [min(most, wanted.rule.bound(conv=job.conv)) for job in source.jobs]

    def look(number: int) -> Candidate | None:
        change = source.find(number, Rule(rank=bounds[number], conv_rank=bounds[number]))
        if isinstance(change, str):
            return None
        energy = np.square(change.spectral.singular)
        return Candidate(energy, per_rank[number], min(bounds[number], change.limit))

    candidates = map_in_threads(look, range(len(source.jobs)), "measuring", most=MOST_THREADS)
    present = [c for c in candidates if c is not None]
    ranks = ranks_for_size(present, budget)
    if ranks is None:
        least = target - budget + sum(c.bytes_per_rank for c in present)
        raise ConfigError(f"--target-size: even at rank 1 the file takes {least:,} bytes")
    chosen = iter(ranks)
    result = [0 if c is None else next(chosen) for c in candidates]
    capped = sum(
        rank == most for rank, c in zip(result, candidates, strict=True) if c is not None and c.bound == most
    )
    return result, capped


def _header_bytes(jobs: Sequence[Job]) -> int:
    """Bytes that the file's header can at most take, whatever the ranks."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for job in jobs:
        rows, columns = job.size
        shapes[f"{job.name}.lora_down.weight"] = ("F32", (min(job.size), columns, *job.kernel))
        shapes[f"{job.name}.lora_up.weight"] = ("F32", (rows, min(job.size), *job.kernel))
        shapes[f"{job.name}.alpha"] = ("F32", ())
    return len(build_header(shapes)[0]) + METADATA_ROOM


def whole_error(modules: Sequence[ModuleReport], kind: str = "error") -> float:
    """√(Σ‖lost‖² / Σ‖change‖²) over modules: "error", or only "truncation" or "cast"."""
    total = math.fsum(m.norm**2 for m in modules)
    lost = math.fsum((m.norm * getattr(m, kind)) ** 2 for m in modules)
    return math.sqrt(lost / total) if total else 0.0
