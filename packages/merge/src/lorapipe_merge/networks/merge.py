"""Networks into one network, from top to bottom: open, match, add up, write, tell."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.tensorfile import WeightFile, build_header, check_output, write_tensors
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.networks.metadata import with_hashes
from lorapipe_engine.networks.ranks import METHODS, RankRule, ranks_for_size
from lorapipe_merge.checkpoint.merge import STREAM, open_networks
from lorapipe_merge.finite import check_networks
from lorapipe_merge.matching import Applied
from lorapipe_merge.networks.layers import Layer, collect_layers, common_family, notes_on
from lorapipe_merge.networks.metadata import summed_metadata
from lorapipe_merge.networks.report import LayerReport, NetworksReport
from lorapipe_merge.networks.sum import Mode, Settings, Summed, measure_layer, sum_layer
from lorapipe_merge.recipe import Source, merge_date, recipe

Precision = Literal["keep", "fp16", "bf16", "fp32"]
DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
# From the narrowest; what is not here is narrower than all of them.
_WIDTHS = ("BF16", "F16", "F32", "F64")
NO_BOUND = 1 << 30
# Room in the header for hashes and ranks, which are not known before the work.
METADATA_ROOM = 512


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. Raises ConfigError for options that do not go together."""

    output: str
    mode: Mode
    rank: int | None
    conv_rank: int | None
    method: str | None
    param: float | None
    exact_count: bool
    target_bytes: int | None
    precision: Precision
    shuffle: int | None
    metadata: bool
    force: bool
    dry_run: bool
    allow_nonfinite: bool

    def __post_init__(self) -> None:
        chosen = (self.rank, self.conv_rank, self.method, self.param, self.target_bytes)
        if self.mode == "concat" and any(value is not None for value in chosen):
            raise ConfigError("ranks can be chosen with --mode svd only; concat adds them up")
        if self.mode == "svd" and self.rank is None and self.method is None and self.target_bytes is None:
            raise ConfigError("--mode svd needs a rank: --new-rank, --dynamic-method or --target-size")
        if self.target_bytes is not None and self.method is not None:
            raise ConfigError("--target-size chooses the ranks itself: leave out --dynamic-method")

    def rule(self) -> RankRule:
        rank = self.rank or NO_BOUND
        return RankRule(
            rank=rank,
            conv_rank=self.conv_rank or rank,
            method=next((name for name in METHODS if name == self.method), None),
            param=self.param,
            exact_count=self.exact_count,
        )

    @property
    def target(self) -> Path | None:
        """The file to write; None for standard output."""
        return None if self.output == STREAM else Path(self.output)

    @property
    def fixed_rank(self) -> int | None:
        """The rank asked for, where it is the rule itself and not only a bound."""
        return self.rank if self.method is None and self.target_bytes is None else None


def merge_networks(
    inputs: Sequence[tuple[str, float]],
    output: str,
    *,
    mode: Mode,
    rank: int | None,
    conv_rank: int | None,
    method: str | None,
    param: float | None,
    exact_count: bool,
    target_bytes: int | None,
    precision: Precision,
    shuffle: int | None,
    no_metadata: bool,
    force: bool,
    dry_run: bool,
    allow_nonfinite: bool,
    as_json: bool,
) -> int:
    """Write Σ ratio · change of networks, each a path (or "-", standard input) with its ratio, as one network.

    ``mode`` "concat" is exact and adds up the ranks; "svd" is the best of ``rank`` (``conv_rank`` for kernels larger
    than 1x1), of a rule of :class:`RankRule`, or within ``target_bytes``. ``output`` "-" is standard output. A ratio
    of 0 leaves a network out. ``shuffle`` seeds an order of the ranks. The path goes to stdout, or with ``as_json``
    the report; the rest to stderr. Returns the exit status.

    Raises LoraErrors: ConfigError for options, InputError for networks that cannot be added up, OutputError for a
    file that cannot be written. Nothing is written then.
    """
    options = Options(
        output=output,
        mode=mode,
        rank=rank,
        conv_rank=conv_rank,
        method=method,
        param=param,
        exact_count=exact_count,
        target_bytes=target_bytes,
        precision=precision,
        shuffle=shuffle,
        metadata=not no_metadata,
        force=force,
        dry_run=dry_run,
        allow_nonfinite=allow_nonfinite,
    )
    report = _merge([(name, ratio) for name, ratio in inputs if ratio], options)
    _tell(report, options, as_json)
    return 0


def _merge(chosen: Sequence[tuple[str, float]], options: Options) -> NetworksReport:
    if not chosen:
        raise ConfigError("no network has a ratio other than 0: there is nothing to add up")
    if [name for name, _ in chosen].count(STREAM) > 1:
        raise ConfigError("standard input can be one network only")
    _check_target([name for name, _ in chosen], options)
    with open_networks(chosen) as networks:
        return _merge_open(networks, options)


def _check_target(names: Sequence[str], options: Options) -> None:
    """Everything about the output that can be known before the work."""
    target = options.target
    if options.dry_run:
        return
    if target is None:
        if sys.stdout.isatty():
            raise ConfigError("-o - would write binary data to the terminal: pipe it, or give -o FILE")
        return
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name the file, as in -o {target / 'merged.safetensors'}")
    same = [name for name in names if target.exists() and Path(name).exists() and target.samefile(name)]
    if same and not options.force:
        raise ConfigError(f"{target}: is an input; give --force to replace it, or another -o")
    check_output(target, force=options.force)
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: its folder {target.parent} may not be written to")


def _merge_open(networks: Sequence[Applied], options: Options) -> NetworksReport:
    family = common_family(networks)
    layers = collect_layers(networks, family)
    check_networks(networks, allow=options.allow_nonfinite)
    dtype = DTYPES.get(options.precision) or widest_dtype(networks)
    settings = Settings(
        mode=options.mode,
        rule=options.rule(),
        dtype=dtype,
        shuffle=options.shuffle,
        convolved=family == "sd1",
        allow_nonfinite=options.allow_nonfinite,
        alpha=_one_alpha(networks, options),
    )
    describe = _Description(networks, family, options)
    ranks: list[int | None] = [None] * len(layers)
    if options.target_bytes is not None:
        ranks = _ranks_within(layers, settings, options.target_bytes, describe.metadata([]))
    jobs = list(zip(layers, ranks, strict=True))
    done = map_in_threads(lambda job: sum_layer(job[0], job[1], settings), jobs, "adding up")
    tensors = {key: tensor for summed in done for key, tensor in summed.tensors.items()}
    metadata = {}
    if options.metadata:
        metadata = with_hashes(describe.metadata([summed.report for summed in done]), tensors)
    size = _size(tensors, metadata)
    if not options.dry_run:
        write_tensors(options.target or sys.stdout.buffer, tensors, metadata, force=options.force)
    return describe.report(done, dtype, size)


def widest_dtype(networks: Sequence[Applied]) -> str:
    """The number type that holds all networks best: the widest of those that most of a file's bytes have."""
    found = [_main_dtype(network.weights) for network in networks]
    return max((dtype for dtype in found if dtype in _WIDTHS), key=_WIDTHS.index, default="F16")


def _main_dtype(weights: WeightFile) -> str:
    sizes: Counter[str] = Counter()
    for info in weights.tensors.values():
        sizes[info.dtype] += info.size
    return max(sizes, key=sizes.__getitem__, default="F16")


# -------------------------------------------------------------------------------- a given size


def _one_alpha(networks: Sequence[Applied], options: Options) -> float:
    """The alpha of all modules: the rank that most of them have or are to have, so that most strengths are 1."""
    added = sum(
        max(network.network.ranks, key=network.network.ranks.__getitem__, default=1) for network in networks
    )
    return float(added if options.rank is None else min(options.rank, added))


def _ranks_within(
    layers: Sequence[Layer], settings: Settings, target: int, metadata: Mapping[str, str]
) -> list[int | None]:
    """The ranks that lose least in a file of ``target`` bytes. Raises ConfigError if even rank 1 is too much."""
    found = map_in_threads(lambda layer: measure_layer(layer, settings), layers, "measuring")
    # At the largest ranks, names, shapes and places take the most room in the header.
    largest = {key: kind for measured in found for key, kind in measured.largest.items()}
    fixed = len(build_header(largest, metadata)[0]) + METADATA_ROOM
    fixed += sum(measured.fixed for measured in found)
    candidates = [measured.candidate for measured in found if measured.candidate is not None]
    ranks = ranks_for_size(candidates, target - fixed)
    if ranks is None:
        least = fixed + sum(candidate.bytes_per_rank for candidate in candidates)
        raise ConfigError(f"--target-size: even at rank 1 the file takes {least:,} bytes")
    chosen = iter(ranks)
    return [None if measured.candidate is None else next(chosen) for measured in found]


def _size(tensors: Mapping[str, Encoded], metadata: Mapping[str, str]) -> int:
    header, places = build_header({key: (t.dtype, t.shape) for key, t in tensors.items()}, metadata)
    return len(header) + sum(place.size for place in places.values())


# -------------------------------------------------------------------------------- telling


@dataclass(frozen=True)
class _Description:
    """What the result says of itself."""

    networks: Sequence[Applied]
    family: str | None
    options: Options

    def metadata(self, layers: Sequence[LayerReport]) -> dict[str, str]:
        options = self.options
        sources = [Source(Path(network.name), network.sha256, network.ratio) for network in self.networks]
        text = recipe(
            "networks",
            {"networks": sources},
            method=options.mode,
            rank=options.rank,
            conv_rank=options.conv_rank,
            dynamic_method=options.method,
            dynamic_param=options.param,
            exact_count=options.exact_count or None,
            target_bytes=options.target_bytes,
            precision=options.precision,
            shuffle=options.shuffle,
        )
        told = " + ".join(f"{network.ratio:g} x {Path(network.name).stem}" for network in self.networks)
        return summed_metadata(
            self.networks,
            layers,
            family=self.family,
            recipe=text,
            comment=f"merged ({options.mode}): {told}",
            title=options.target.stem if options.target else "merged",
            date=merge_date([network.weights.path for network in self.networks]),
            rank=options.fixed_rank,
            alpha=_one_alpha(self.networks, self.options),
        )

    def report(self, done: Sequence[Summed], dtype: str, size: int) -> NetworksReport:
        return NetworksReport(
            output=None if self.options.dry_run else self.options.output,
            mode=self.options.mode,
            family=self.family,
            networks=[(n.name, n.ratio, n.sha256, len(n.network.modules)) for n in self.networks],
            precision=next((name for name, kind in DTYPES.items() if kind == dtype), dtype.lower()),
            bytes=size,
            layers=[summed.report for summed in done],
            notes=notes_on(self.networks),
        )


def _tell(report: NetworksReport, options: Options, as_json: bool) -> None:
    """The summary and notes on stderr; the path or the JSON report on stdout, unless the network goes there."""
    say(report.summary())
    for note in report.notes:
        say(f"note: {note}")
    streamed = options.target is None and not options.dry_run
    if as_json:
        write_json(report.as_record(), err=streamed)
    elif not options.dry_run and not streamed:
        write_path(Path(report.output or ""))
