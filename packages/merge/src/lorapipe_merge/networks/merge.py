"""Networks into one network, from top to bottom: open, match, add up, write, tell."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.text import counted
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.sizes import parse_size
from lorapipe_engine.files.tensorfile import (
    WeightFile,
    build_header,
    check_weights_output,
    lay_out,
    write_tensors,
)
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.dates import date_of_inputs
from lorapipe_engine.networks.algorithms import is_plain
from lorapipe_engine.networks.metadata import with_hashes
from lorapipe_engine.networks.ranks import RankRule, ranks_for_size
from lorapipe_engine.networks.underflow import rounding_notes
from lorapipe_merge.blocks import parse_blocks
from lorapipe_merge.finite import check_networks
from lorapipe_merge.inputs import open_networks
from lorapipe_merge.matching import Applied
from lorapipe_merge.networks.average import Average, averaged, parse_average
from lorapipe_merge.networks.layers import (
    Layer,
    collect_layers,
    common_family,
    notes_on,
    rank_of_first,
    unknown_layers,
    weigh_blocks,
)
from lorapipe_merge.networks.metadata import summed_metadata
from lorapipe_merge.networks.report import Checked, LayerReport, NetworksReport
from lorapipe_merge.networks.sum import Settings, Summed, measure_layer, sum_layer
from lorapipe_merge.networks.verify import verify_networks
from lorapipe_merge.recipe import Source, recipe
from lorapipe_merge.settings import DEFAULT_RANK, STREAM, NetworksSettings, OutputSettings, SharedSettings

DTYPES: Mapping[str, str] = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
# From the narrowest; what is not here is narrower than all of them.
_WIDTHS = ("BF16", "F16", "F32", "F64")
NO_BOUND = 1 << 30
# Room in the header for hashes and ranks, which are not known before the work.
METADATA_ROOM = 512


@dataclass(frozen=True)
class Wishes:
    """The options of the command line, by the classes that hold them."""

    networks: NetworksSettings
    output: OutputSettings
    shared: SharedSettings
    verify: bool = False
    blocks: str | None = None
    first_rank: int | None = None

    def __post_init__(self) -> None:
        settings = self.networks
        if settings.way == "concat" and (settings.rank or settings.conv_rank or settings.target_size):
            raise ConfigError("--mode concat is exact and has no largest rank: leave it out, or the rank")
        if settings.way == "concat" and settings.dynamic_method is not None:
            raise ConfigError("--mode concat is exact: leave it out, or --dynamic-method")
        if settings.target_size is not None and settings.dynamic_method is not None:
            raise ConfigError("--target-size chooses the ranks itself: leave out --dynamic-method")
        if self.verify and (self.output.dry_run or self.target is None):
            raise ConfigError("--verify reads the written file again: give -o FILE, without --dry-run")

    @property
    def rank(self) -> int | None:
        """The largest rank of ``svd``: that asked for, else the usual one; None where a size decides, or for averages
        the first network.
        """
        settings = self.networks
        if settings.way == "concat" or settings.target_size is not None or settings.average is not None:
            return settings.rank or self.first_rank
        return settings.rank or DEFAULT_RANK

    @property
    def average(self) -> Average | None:
        """The average asked for; None for a sum. Raises ConfigError."""
        return None if self.networks.average is None else parse_average(self.networks.average)

    @property
    def as_first(self) -> bool:
        """Whether each module gets the rank that it has in the first network."""
        settings = self.networks
        asked = (settings.rank, settings.conv_rank, settings.target_size, settings.dynamic_method)
        return settings.way == "svd" and settings.average is not None and not any(asked)

    def rule(self) -> RankRule:
        settings, rank = self.networks, self.rank or NO_BOUND
        return RankRule(
            rank=rank,
            conv_rank=settings.conv_rank or rank,
            method=settings.dynamic_method,
            param=settings.dynamic_param,
            one_more=settings.one_more,
        )

    @property
    def target(self) -> Path | None:
        """The file to write; None for standard output."""
        if self.output.output is None:
            raise ConfigError("give the file to write: -o merged.safetensors")
        return None if self.output.output == STREAM else Path(self.output.output)

    @property
    def target_bytes(self) -> int | None:
        size = self.networks.target_size
        return None if size is None else parse_size(size, "--target-size")

    @property
    def fixed_rank(self) -> int | None:
        """The rank asked for, where it is the rule itself and not only a bound."""
        settings = self.networks
        return self.rank if settings.dynamic_method is None and settings.target_size is None else None


def merge_networks(inputs: Sequence[tuple[str, float]], wishes: Wishes) -> int:
    """Write Σ ratio · change of networks, each a path (or "-", standard input) with its ratio, as one network.

    A ratio of 0 leaves a network out. The path goes to stdout, or with ``as_json`` the report; the rest to stderr.
    Returns the exit status.

    Raises LoraErrors: ConfigError for options, InputError for networks that cannot be added up, OutputError for a
    file that cannot be written, ProblemFound where --verify finds a difference. Nothing is written then.
    """
    report = _merge([(name, ratio) for name, ratio in inputs if ratio], wishes)
    _tell(report, wishes)
    return 0


def _merge(chosen: Sequence[tuple[str, float]], wishes: Wishes) -> NetworksReport:
    if not chosen:
        raise ConfigError("no network has a ratio other than 0: there is nothing to add up")
    if [name for name, _ in chosen].count(STREAM) > 1:
        raise ConfigError("standard input can be one network only")
    _check_target([name for name, _ in chosen], wishes)
    average = wishes.average
    with open_networks(chosen) as networks:
        if average is None:
            return _merge_open(networks, wishes, [])
        ordered, how = averaged(networks, average)
        names = ", ".join(Path(network.name).name for network in ordered)
        return _merge_open(ordered, wishes, [f"averaged {how}: {names}"])


def _check_target(names: Sequence[str], wishes: Wishes) -> None:
    """Everything about the output that can be known before the work."""
    target = wishes.target
    if wishes.output.dry_run:
        return
    if target is None:
        if sys.stdout.isatty():
            raise ConfigError("-o - would write binary data to the terminal: pipe it, or give -o FILE")
        return
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name the file, as in -o {target / 'merged.safetensors'}")
    same = [name for name in names if target.exists() and Path(name).exists() and target.samefile(name)]
    if same and not wishes.output.force:
        raise ConfigError(f"{target}: is an input; give --force to replace it, or another -o")
    check_weights_output(target, force=wishes.output.force)
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: its folder {target.parent} may not be written to")


def _with_first_rank(first: Applied, wishes: Wishes) -> Wishes:
    """The wishes with the largest rank of the first network, where an average has no other bound.

    Raises ConfigError for a network that has no ranks.
    """
    settings = wishes.networks
    if settings.way == "concat" or settings.rank is not None or settings.target_size is not None:
        return wishes
    ranks = [module.rank for module in first.network.modules.values() if is_plain(module.algorithm)]
    largest = max((rank for rank in ranks if rank), default=None)
    if largest is None:
        raise ConfigError(
            f"{first.name}: is no plain LoRA, whose rank an average could have; give --new-rank N, or --mode concat, "
            "which is exact"
        )
    return replace(wishes, first_rank=largest)


def _merge_open(networks: Sequence[Applied], wishes: Wishes, notes: Sequence[str]) -> NetworksReport:
    family = common_family(networks)
    layers = collect_layers(networks, family)
    if wishes.average is not None:
        # Only once it is known that they can be added up: no rank helps those that cannot.
        wishes = _with_first_rank(networks[0], wishes)
    if wishes.blocks is not None:
        layers, gone = weigh_blocks(layers, parse_blocks(wishes.blocks, family), family)
        notes = [
            *notes,
            *([f"left out, in blocks that weigh 0: {counted(gone, 'module')}"] if gone else []),
        ]
    notes = [*notes, *unknown_layers(layers, family)]
    check_networks(networks, allow=wishes.output.allow_nonfinite)
    dtype = DTYPES.get(wishes.output.precision) or widest_dtype(networks)
    settings = Settings(
        mode=wishes.networks.way,
        rule=wishes.rule(),
        dtype=dtype,
        shuffle=wishes.networks.shuffle,
        family=family,
        allow_nonfinite=wishes.output.allow_nonfinite,
        alpha=_one_alpha(networks, wishes),
    )
    describe = _Description(networks, family, wishes, notes)
    ranks: list[int | None] = [None] * len(layers)
    if wishes.as_first:
        ranks = [rank_of_first(layer) for layer in layers]
    if wishes.target_bytes is not None:
        ranks = _ranks_within(layers, settings, wishes.target_bytes, describe.metadata([]))
    jobs = list(zip(layers, ranks, strict=True))
    done = map_in_threads(lambda job: sum_layer(job[0], job[1], settings), jobs, "adding up")
    tensors = {key: tensor for summed in done for key, tensor in summed.tensors.items()}
    metadata = {}
    if not wishes.shared.no_metadata:
        metadata = with_hashes(describe.metadata([summed.report for summed in done]), tensors)
    size = _size(tensors, metadata)
    checked = None
    if not wishes.output.dry_run:
        reports = [summed.report for summed in done]

        def check(written: Path) -> Checked:
            return verify_networks(written, layers, reports)

        checked = _write(tensors, metadata, wishes, check if wishes.verify else None)
    return describe.report(done, dtype, size, checked)


def _write(
    tensors: Mapping[str, Encoded],
    metadata: Mapping[str, str],
    wishes: Wishes,
    check: Callable[[Path], Checked] | None,
) -> Checked | None:
    """Write the file; with ``check`` it gets its name only when that has found nothing wrong."""
    if wishes.target is None or check is None:
        write_tensors(wishes.target or sys.stdout.buffer, tensors, metadata, force=wishes.output.force)
        return None
    header, blocks = lay_out(tensors, metadata)
    size = len(header) + sum(map(len, blocks))
    with atomic_write(wishes.target, force=wishes.output.force, size=size) as file:
        file.writelines([header, *blocks])
        file.flush()
        return check(Path(str(file.name)))


def widest_dtype(networks: Sequence[Applied]) -> str:
    """The number type that holds all networks best: the widest of those that most of a file's bytes have."""
    dtypes = [_main_dtype(network.weights) for network in networks]
    return max((dtype for dtype in dtypes if dtype in _WIDTHS), key=_WIDTHS.index, default="F16")


def _main_dtype(weights: WeightFile) -> str:
    sizes: Counter[str] = Counter()
    for info in weights.tensors.values():
        sizes[info.dtype] += info.size
    return max(sizes, key=sizes.__getitem__, default="F16")


# -------------------------------------------------------------------------------- a given size


def _one_alpha(networks: Sequence[Applied], wishes: Wishes) -> float:
    """The alpha of all modules: the rank that most of them have or are to have, so that most strengths are 1."""
    added = sum(
        max(network.network.ranks, key=network.network.ranks.__getitem__, default=1) for network in networks
    )
    return float(added if wishes.rank is None else min(wishes.rank, added))


def _ranks_within(
    layers: Sequence[Layer], settings: Settings, target: int, metadata: Mapping[str, str]
) -> list[int | None]:
    """The ranks that lose least in a file of ``target`` bytes. Raises ConfigError if even rank 1 is too much."""
    measures = map_in_threads(lambda layer: measure_layer(layer, settings), layers, "measuring")
    # At the largest ranks, names, shapes and places take the most room in the header.
    largest = {key: kind for measured in measures for key, kind in measured.largest.items()}
    fixed = len(build_header(largest, metadata)[0]) + METADATA_ROOM
    fixed += sum(measured.fixed for measured in measures)
    candidates = [measured.candidate for measured in measures if measured.candidate is not None]
    ranks = ranks_for_size(candidates, target - fixed)
    if ranks is None:
        least = fixed + sum(candidate.bytes_per_rank for candidate in candidates)
        raise ConfigError(f"--target-size: even at rank 1 the file takes {least:,} bytes")
    chosen = iter(ranks)
    return [None if measured.candidate is None else next(chosen) for measured in measures]


def _size(tensors: Mapping[str, Encoded], metadata: Mapping[str, str]) -> int:
    header, places = build_header({key: (t.dtype, t.shape) for key, t in tensors.items()}, metadata)
    return len(header) + sum(place.size for place in places.values())


# -------------------------------------------------------------------------------- telling


@dataclass(frozen=True)
class _Description:
    """What the result says of itself."""

    networks: Sequence[Applied]
    family: str | None
    wishes: Wishes
    notes: Sequence[str]

    def metadata(self, layers: Sequence[LayerReport]) -> dict[str, str]:
        wishes = self.wishes
        sources = [Source(Path(network.name), network.sha256, network.ratio) for network in self.networks]
        text = recipe(
            "networks",
            {"networks": sources},
            method=wishes.networks.way,
            average=wishes.networks.average,
            blocks=wishes.blocks,
            rank=wishes.rank,
            conv_rank=wishes.networks.conv_rank,
            dynamic_method=wishes.networks.dynamic_method,
            dynamic_param=wishes.networks.dynamic_param,
            one_more=wishes.networks.one_more or None,
            target_bytes=wishes.target_bytes,
            precision=wishes.output.precision,
            shuffle=wishes.networks.shuffle,
        )
        told = " + ".join(f"{network.ratio:.4g} x {Path(network.name).stem}" for network in self.networks)
        how = wishes.networks.average or wishes.networks.way
        return summed_metadata(
            self.networks,
            layers,
            family=self.family,
            recipe=text,
            comment=f"{'averaged' if wishes.networks.average else 'merged'} ({how}): {told}",
            title=wishes.target.stem if wishes.target else "merged",
            date=date_of_inputs([network.weights.path for network in self.networks]),
            rank=wishes.fixed_rank,
            alpha=_one_alpha(self.networks, self.wishes),
        )

    def report(
        self, done: Sequence[Summed], dtype: str, size: int, checked: Checked | None
    ) -> NetworksReport:
        return NetworksReport(
            output=None if self.wishes.output.dry_run else self.wishes.output.output,
            mode=self.wishes.networks.way,
            family=self.family,
            networks=[(n.name, n.ratio, n.sha256, len(n.network.modules)) for n in self.networks],
            precision=next((name for name, kind in DTYPES.items() if kind == dtype), dtype.lower()),
            bytes=size,
            layers=[summed.report for summed in done],
            notes=[
                *self.notes,
                *notes_on(self.networks),
                *rounding_notes(summed.report.loss for summed in done),
            ],
            checked=checked,
        )


def _tell(report: NetworksReport, wishes: Wishes) -> None:
    """The summary and notes on stderr; the path or the JSON report on stdout, unless the network goes there."""
    say(report.summary())
    if report.checked:
        say(report.checked.line())
    for note in report.notes:
        say(f"note: {note}")
    streamed = wishes.target is None and not wishes.output.dry_run
    if wishes.output.as_json:
        write_json(report.as_record(), err=streamed)
    elif not wishes.output.dry_run and not streamed:
        write_path(Path(report.output or ""))
