"""What ``lora-extract`` does once its options are read: open, compare, decompose, write, verify, report."""

from __future__ import annotations

import io
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.checkpoints.opened import ALL_PARTS, Base, open_base, said_prediction, unread_files
from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.text import counted
from lorapipe_engine.command.tool import say, show
from lorapipe_engine.errors import ConfigError, InputError, OutputError, ProblemFound, naming
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import (
    build_header,
    check_weights_output,
    lay_out,
    open_tensors,
    write_tensors,
)
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.families import FAMILIES, recognise
from lorapipe_engine.models.predictions import EPSILON, FLOW, V
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.kohya_names import first_text_encoder, text_encoder_alone
from lorapipe_engine.networks.read import network_path, require_understood
from lorapipe_resize.extract.extraction import Extracted, Wanted, extract
from lorapipe_resize.extract.metadata import Origin, metadata_of
from lorapipe_resize.extract.network import NetworkSource
from lorapipe_resize.extract.pair import LeftOut, compare_rest, left_out_lines, pair_up
from lorapipe_resize.extract.report import (
    Report,
    block_table,
    loss_advice,
    module_table,
    summary,
    verified_line,
)
from lorapipe_resize.extract.rules import NO_BOUND, Method, Rule
from lorapipe_resize.extract.sources import NOISE, SMALL, UNCHANGED, CheckpointSource, Source
from lorapipe_resize.extract.verify import Verified, verify

STREAM = "-"
DEFAULT_RANK = 32
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. ``rank`` and ``conv_rank``: None for no bound; ``conv``: whether convolutions are taken."""

    tuned: str
    base: str | None
    output: str | None
    rank: int | None
    conv_rank: int | None
    conv: bool
    method: Method | None
    param: float | None
    target_size: str | None
    target_bytes: int | None
    min_diff: float
    precision: str
    family: str | None
    v_prediction: bool
    verify: bool
    report: bool
    as_json: bool
    dry_run: bool
    force: bool
    no_metadata: bool

    @property
    def streamed(self) -> bool:
        return self.output == STREAM and not self.dry_run

    def rule(self) -> Rule:
        """Convolutions take the linear layers' bound where they have none of their own."""
        rank = self.rank or NO_BOUND
        return Rule(rank=rank, conv_rank=self.conv_rank or rank, method=self.method, param=self.param)


@dataclass(frozen=True)
class Opened:
    """What is extracted from, and what is to be said of it."""

    source: Source
    origin: Origin
    notes: list[str]
    rest: list[LeftOut]


def run(options: Options) -> int:
    """Extract, write and report. Raises LoraErrors; nothing is written unless all went well."""
    rule = options.rule()
    target = plan_output(options)
    with ExitStack() as stack:
        network = is_network(options.tuned)
        opened = _open_network(options, rule, stack) if network else _open_pair(options, stack)
        _check_not_input(target, options)
        alpha = float(DEFAULT_RANK if options.rank is None else options.rank)
        with naming(options.tuned):
            done = extract(opened.source, Wanted(rule, alpha, options.precision, options.target_bytes))
        for line in left_out_lines(opened.rest, conv=options.conv):
            opened.notes.append(line)
        opened.notes.extend([*_reasons(done, options), *loss_advice(done.modules)])
        if not done.modules:
            raise _nothing(done, opened, options)
        return _finish(opened, done, alpha, target, options)


def _finish(opened: Opened, done: Extracted, alpha: float, target: Path | None, options: Options) -> int:
    fixed = options.method is None and options.target_bytes is None and options.rank is not None
    metadata = metadata_of(
        opened.origin,
        done.tensors,
        done.modules,
        ranks=(options.rank or 0, options.conv_rank or options.rank or 0) if fixed else None,
        alpha=alpha,
        title=target.stem if target else opened.origin.source.stem,
        minimum=options.no_metadata,
    )
    header, places = build_header({key: (t.dtype, t.shape) for key, t in done.tensors.items()}, metadata)
    verified = None
    if not options.dry_run:
        write_tensors(target or sys.stdout.buffer, done.tensors, metadata, force=options.force)
        if target is None:
            sys.stdout.buffer.flush()
    if options.verify:
        verified = _verify(opened.source, done, metadata, target)
    report = Report(
        tuned=options.tuned,
        base=options.base,
        output=None if options.dry_run else str(target or STREAM),
        precision=options.precision,
        alpha=alpha,
        size=len(header) + sum(place.size for place in places.values()),
        modules=done.modules,
        unchanged=done.left_out[UNCHANGED],
        rest=opened.rest,
        notes=opened.notes,
        verified=verified,
    )
    tell(report, options)
    return 0


def _verify(source: Source, done: Extracted, metadata: dict[str, str], target: Path | None) -> Verified:
    """Read the file again, or where none was written what it would have been."""
    if target is not None and target.exists():
        with open_tensors(target) as file:
            return verify(file, source, done)
    header, data = lay_out(done.tensors, metadata)
    with open_tensors(io.BytesIO(b"".join([header, *data]))) as file:
        return verify(file, source, done)


# -------------------------------------------------------------------------------- inputs


def is_network(name: str) -> bool:
    """Whether ``name`` is a LoRA or another network rather than a checkpoint. Raises InputError for an unreadable
    file.
    """
    path = resolve_base(name)
    if not isinstance(path, Path):
        return False
    if path.is_dir():
        return (path / "adapter_config.json").is_file()
    with open_weights(path) as file:
        return recognise({key: info.shape for key, info in file.tensors.items()}).kind == "lora"


def _open_pair(options: Options, stack: ExitStack) -> Opened:
    if options.base is None:
        raise ConfigError(
            f"{options.tuned}: give the model that it was tuned from too: lora-extract TUNED BASE -o OUT"
        )
    if is_network(options.base):
        raise ConfigError(
            f"{options.base}: is a network, not a base model; give the network first, the base second"
        )
    notes: list[str] = []
    tuned, base = (_open_with_vae(name, stack, notes) for name in (options.tuned, options.base))
    _check_family(tuned, options)
    pair = pair_up(tuned, base, conv=options.conv)
    notes += [*_variants(tuned), *_variants(base), *pair.notes, *_swapped(tuned, base)]
    origin = Origin(
        source=tuned.path,
        base=base.path,
        family=pair.family,
        prediction=_prediction(options, tuned.prediction, base.prediction),
        how=_how(options),
    )
    return Opened(CheckpointSource(pair.layers, options.min_diff), origin, notes, compare_rest(pair))


def _open_with_vae(name: str, stack: ExitStack, notes: list[str]) -> Base:
    """The checkpoint, of a folder its VAE too, unless that cannot be read: no LoRA is about it."""
    try:
        return stack.enter_context(open_base(name, ALL_PARTS))
    except InputError as error:
        base = stack.enter_context(open_base(name))
        notes.append(f"the VAE is not compared: {error}")
        return base


def _open_network(options: Options, rule: Rule, stack: ExitStack) -> Opened:
    if rule.method == "signal":
        raise ConfigError(
            "ranks by signal need two checkpoints, whose types tell the noise; give --dim or a method"
        )
    if options.min_diff:
        raise ConfigError(
            "--min-diff is for two checkpoints; lora-resize --drop-zero leaves out modules of a network"
        )
    path = network_path(Path(options.tuned))
    file = stack.enter_context(open_weights(path))
    network = describe_network(file)
    require_understood(network)
    if network.foreign is not None:
        raise InputError(f"{path}: is for {network.title}, not for SD 1.x, SD 2.x or SDXL")
    base = None
    variants: list[str] = []
    if options.base is not None:
        if is_network(options.base):
            raise ConfigError(
                f"{options.base}: is a network too; the difference of two is "
                f"lora-merge --networks {options.tuned}:1 {options.base}:-1"
            )
        base = stack.enter_context(open_base(options.base))
        _check_family(base, options)
        variants = _variants(base)
    with naming(options.tuned):
        source = NetworkSource(file, network, base)
    source.notes += [*variants, *first_text_encoder(network)]
    if base is None:
        source.notes += text_encoder_alone(network)
    family = base.family if base is not None else network.family
    origin = Origin(
        source=path,
        base=base.path if base is not None else None,
        family=family,
        prediction=_prediction(options, said_prediction(path, [file]), base.prediction if base else None),
        how=_how(options),
    )
    return Opened(source, origin, source.notes, [])


def _check_family(base: Base, options: Options) -> None:
    """Raise ConfigError where ``--v2`` or ``--sdxl`` say something else than the file."""
    if options.family is not None and options.family != base.family:
        flag = {"sd2": "--v2", "sdxl": "--sdxl"}[options.family]
        raise ConfigError(
            f"{flag}: {base.path} is {FAMILIES[base.family].title}; leave the flag out, files tell their family"
        )


def _variants(model: Base) -> list[str]:
    """A note where a folder has its weights in several files, of which one counts."""
    left = unread_files(model)
    if not left:
        return []
    places = {name.partition("/")[0] for name in left}
    names = [
        file.weights.path.relative_to(model.path).as_posix()
        for file in model.files
        if file.weights.path.relative_to(model.path).parts[0] in places
    ]
    return [f"{model.path}: {', '.join(names)} counts, not {', '.join(left)} beside it"]


def _prediction(options: Options, *said: str | None) -> str:
    """What the model predicts that the LoRA is for, by the option or by what one of the files says."""
    if options.v_prediction or V.name in said:
        return V.name
    return FLOW.name if FLOW.name in said else EPSILON.name


def _swapped(tuned: Base, base: Base) -> list[str]:
    """A note where the base says that it was merged from others and the tuned model does not."""

    def merged(model: Base) -> bool:
        return any("modelspec.merged_from" in file.weights.metadata for file in model.files)

    if merged(base) and not merged(tuned):
        return [
            f"{base.path} is a merged model and {tuned.path} is none: are they swapped? TUNED comes first"
        ]
    return []


def _how(options: Options) -> str:
    if options.target_size is not None:
        return f"to {options.target_size}"
    if options.method == "signal":
        return "ranks by signal"
    if options.method is not None:
        return f"ranks by {options.method} {options.param:g}"
    return f"rank {options.rank}" + (f", convolutions {options.conv_rank}" if options.conv_rank else "")


# -------------------------------------------------------------------------------- output


def plan_output(options: Options) -> Path | None:
    """The file to write, None for stdout and dry runs; checked before any work.

    Raises ConfigError for names that would mislead, OutputError for files that exist or cannot be written.
    """
    if options.dry_run:
        return None
    if options.output is None:
        raise ConfigError("no output: give -o FILE, -o FOLDER/, -o - or --dry-run")
    if options.output == STREAM:
        if sys.stdout.isatty():
            raise ConfigError("-o - would write binary data to the terminal: pipe it, or give -o FILE")
        return None
    target = Path(options.output)
    if target.is_dir() or options.output.endswith(("/", "\\")):
        target = target / _name(options)
    if target.suffix.lower() in _PICKLES:
        raise ConfigError(
            f"{target}: only safetensors are written; name it {target.with_suffix('.safetensors')}"
        )
    check_weights_output(target, force=options.force)
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: its folder {target.parent} may not be written to")
    return target


def _name(options: Options) -> str:
    """The name of a file in a folder: TUNED-BASE-dimN.safetensors."""
    base = f"-{Path(options.base).stem}" if options.base is not None else ""
    rank = options.rank if options.method is None and options.target_bytes is None else None
    how = options.method or (options.target_size or "").replace(" ", "")
    return f"{Path(options.tuned).stem}{base}-{f'dim{rank}' if rank else how}.safetensors"


def _check_not_input(target: Path | None, options: Options) -> None:
    if target is None or not target.exists():
        return
    inputs = [Path(name) for name in (options.tuned, options.base) if name is not None]
    if any(path.exists() and target.samefile(path) for path in inputs):
        raise ConfigError(f"{target}: is an input; give another -o")


# -------------------------------------------------------------------------------- telling


def _reasons(done: Extracted, options: Options) -> list[str]:
    """Notes on the layers that are not in the LoRA because nothing speaks for them."""
    lines = []
    if count := done.left_out[UNCHANGED]:
        lines.append(
            f"{counted(count, 'layer')} did not change and {'is' if count == 1 else 'are'} not in the LoRA"
        )
    if count := done.left_out[SMALL]:
        lines.append(
            f"{counted(count, 'layer', 'differ')} by at most --min-diff {options.min_diff:g} and "
            f"{'is' if count == 1 else 'are'} not in the LoRA"
        )
    if count := done.left_out[NOISE]:
        lines.append(
            f"{counted(count, 'layer', 'differ')} by nothing but rounding and "
            f"{'is' if count == 1 else 'are'} not in the LoRA"
        )
    if done.capped:
        lines.append(f"{counted(done.capped, 'module', 'have')} the largest rank that --target-size looks at")
    bounds = {False: options.rank, True: options.conv_rank or options.rank}
    most = [m.rank == min(bounds[max(m.kernel, default=1) > 1] or NO_BOUND, *m.size) for m in done.modules]
    if options.method is not None and options.rank is not None and any(most):
        lines.append(
            f"{counted(sum(most), 'module', 'have')} the largest rank that is allowed; --dim sets it"
        )
    return lines


def _nothing(done: Extracted, opened: Opened, options: Options) -> ProblemFound:
    for note in opened.notes:
        say(f"note: {note}")
    total = sum(done.left_out.values())
    what = "no layer changed" if done.left_out[UNCHANGED] == total else "nothing is left of the change"
    against = f" against {options.base}" if options.base else ""
    return ProblemFound(
        f"{options.tuned}{against}: {what} in {total:,} layers that take a LoRA; nothing was written"
    )


def tell(report: Report, options: Options) -> None:
    """Summary, blocks and notes on stderr; the path, the table or its JSON on stdout, unless the LoRA goes there."""
    say(summary(report))
    for line in block_table(report):
        say(f"  {line}")
    for note in report.notes:
        say(f"note: {note}")
    if report.verified is not None:
        say(verified_line(report.verified, report.tuned, report.base))
    if options.as_json:
        write_json(report.as_record(), err=options.streamed)
    elif options.report:
        for line in module_table(report):
            show(line, err=options.streamed)
    elif not options.dry_run and not options.streamed:
        write_path(Path(report.output or ""))
