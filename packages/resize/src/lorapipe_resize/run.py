"""What ``lora-resize`` does once its options are read: find inputs, check outputs, resize file by file."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.records import Record, expand_folders, write_json, write_path
from lorapipe_engine.command.text import counted
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError, naming
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.sizes import parse_size
from lorapipe_engine.files.tensorfile import (
    WeightFile,
    build_header,
    check_weights_output,
    quote,
    write_tensors,
)
from lorapipe_engine.networks.describe import ModuleKeys, Network, describe_network
from lorapipe_engine.networks.kohya_names import first_text_encoder, names_in_kohya, text_encoder_alone
from lorapipe_engine.networks.metadata import with_base_facts, with_hashes
from lorapipe_engine.networks.ranks import RankRule
from lorapipe_engine.networks.read import require_understood, scale_of
from lorapipe_resize.device import dense_on
from lorapipe_resize.metadata import resized_metadata
from lorapipe_resize.report import FileReport, loss_advice, summary, table
from lorapipe_resize.settings import RankSettings, ResultSettings
from lorapipe_resize.shrink import Settings, Shrunk, shrink

STREAM = "-"
NO_BOUND = 1 << 30
# Room for what the metadata may grow by: a comment, two hashes, network arguments.
METADATA_ROOM = 1024
NEW_SUFFIXES = ("lora_down.weight", "lora_up.weight", "alpha")

SHOWN = 5


@dataclass(frozen=True)
class Options:
    """The command line. Raises ConfigError for options that do not go together."""

    inputs: Sequence[str]
    ranks: RankSettings
    result: ResultSettings
    recursive: bool = False

    def __post_init__(self) -> None:
        number = next((word for word in self.inputs if word.isdecimal() and not Path(word).exists()), None)
        if self.recursive and number is not None:
            raise ConfigError(
                f"-r looks into folders' folders, as in all tools: the rank is --new-rank {number}"
            )
        if self.ranks.target_size is not None and self.ranks.method is not None:
            raise ConfigError("--target-size chooses the ranks itself: leave out --dynamic-method")
        if self.result.output is None and not self.result.dry_run:
            raise ConfigError("no output: give -o FILE, -o FOLDER/, -o - or --dry-run")

    def settings(self) -> Settings:
        ranks, result = self.ranks, self.result
        rank, size = ranks.bound or NO_BOUND, ranks.target_size
        return Settings(
            rule=RankRule(
                rank=rank,
                conv_rank=ranks.conv_rank or rank,
                method=ranks.method,
                param=ranks.param,
                one_more=ranks.one_more,
            ),
            precision=result.precision,
            balance=result.balance,
            target_bytes=None if size is None else parse_size(size, "--target-size"),
            drop_zero=result.drop_zero,
            allow_nonfinite=result.allow_nonfinite,
            decompose=dense_on(result.device, say),
        )


@dataclass(frozen=True)
class Task:
    """One network. ``source`` None is standard input, ``target`` None standard output or nowhere."""

    source: Path | None
    target: Path | None = None

    @property
    def name(self) -> str:
        return STREAM if self.source is None else str(self.source)


def run(options: Options) -> int:
    """Resize everything the options name; the exit status. Raises LoraError where nothing could be done."""
    settings = options.settings()
    tasks = plan(options)
    failures = 0
    for task in tasks:
        try:
            report = resize_file(task, options, settings)
        except LoraError as error:
            if len(tasks) == 1:
                raise
            complain(str(error))
            failures += 1
            continue
        tell(report, options)
    return 1 if failures else 0


# -------------------------------------------------------------------------------- inputs and outputs


def plan(options: Options) -> list[Task]:
    """Inputs with their outputs, checked before any work: a name that cannot be written to is found now.

    Raises InputError where there is nothing to resize, ConfigError where inputs would get the same output,
    and OutputError for outputs that exist (without ``--force``) or cannot be written.
    """
    sources = list(find_sources(options.inputs, sys.stdin.buffer, recursive=options.recursive))
    if options.recursive:
        sources = _without_results(sources, options.result.output)
    if not sources:
        raise InputError("no networks to resize: name files or folders, or pipe paths in")
    if options.result.dry_run:
        return [Task(source) for source, _ in sources]
    output = options.result.output or ""
    if output == STREAM:
        if len(sources) > 1:
            raise ConfigError(f"-o - takes one network, not {len(sources)}: give -o FOLDER/")
        if sys.stdout.isatty():
            raise ConfigError("-o - would write binary data to the terminal: pipe it, or give -o FILE")
        return [Task(sources[0][0])]
    folder = output.endswith(("/", "\\")) or Path(output).is_dir()
    if not folder and Path(output).suffix.lower() == ".safetensors":
        if len(sources) > 1:
            raise ConfigError(
                f"-o {output}: is one file, and here are {len(sources)} networks: give -o FOLDER/"
            )
    else:
        folder = folder or len(sources) > 1 or any(Path(word).is_dir() for word in options.inputs)
    tasks = [Task(source, Path(output) / place if folder else Path(output)) for source, place in sources]
    _check_targets(tasks, Path(output), folder, options.result.force)
    return tasks


def _without_results(
    sources: Sequence[tuple[Path | None, Path]], output: str | None
) -> list[tuple[Path | None, Path]]:
    """The sources but for those that lie in the folder of the results, as an earlier run left them there."""
    if output is None or not Path(output).is_dir():
        return list(sources)
    inside = Path(output).resolve()
    kept = [(path, place) for path, place in sources if path is None or inside not in path.resolve().parents]
    if 0 < len(kept) < len(sources):
        say(f"note: {len(sources) - len(kept)} networks in {output} are results, and not resized again")
        return kept
    return list(sources)


def _check_targets(tasks: Sequence[Task], output: Path, folder: bool, force: bool) -> None:
    seen: dict[Path, Task] = {}
    for task in tasks:
        target = task.target or output
        if target in seen:
            raise ConfigError(f"{seen[target].name} and {task.name} would both become {target}")
        seen[target] = task
        if task.source and target.exists() and target.samefile(task.source) and not force:
            raise ConfigError(f"{target}: is the input itself; give --force to replace it, or another -o")
    for target in seen:
        if folder:
            target.parent.mkdir(parents=True, exist_ok=True)
        check_weights_output(target, force=force)
        if not os.access(target.parent, os.W_OK):
            raise OutputError(f"{target}: its folder {target.parent} may not be written to")


def find_sources(
    words: Sequence[str], stdin: BinaryIO, *, recursive: bool = False
) -> Iterator[tuple[Path | None, Path]]:
    """Files to resize, each with its place in a folder of results; None stands for a network on ``stdin``.

    A folder gives its safetensors files, with ``recursive`` those of its folders too. Without words, or for "-",
    ``stdin`` is a network if it looks like one, else a list of paths and JSON records, one a line.
    """
    for word in words or (STREAM,):
        if word != STREAM:
            yield from _expand(Path(word), recursive)
        elif stdin.isatty():
            raise InputError("no networks to resize: name files or folders, or pipe paths in")
        elif _is_network(stdin):
            yield None, Path("stdin.safetensors")
        else:
            for path in listed_paths(stdin):
                yield from _expand(path, recursive)


def _is_network(stdin: BinaryIO) -> bool:
    """A safetensors stream begins with the length of its header: eight bytes, the upper ones zero. Text has
    none.
    """
    peek = getattr(stdin, "peek", None)
    return peek is not None and b"\0" in peek(8)[:8]


def _expand(path: Path, recursive: bool) -> Iterator[tuple[Path, Path]]:
    for record in expand_folders([Record(path)], (".safetensors",), recursive=recursive):
        inner = record.path.relative_to(path).parent if record.path != path else Path()
        yield record.path, inner / f"{record.path.stem}.safetensors"


# -------------------------------------------------------------------------------- one file


def resize_file(task: Task, options: Options, settings: Settings) -> FileReport:
    """Resize one network and write it, unless it is a dry run. Raises LoraErrors that name the file."""
    with open_weights(task.source or sys.stdin.buffer) as file, naming(task.name):
        return _resize_open(task, file, options, settings)


def _resize_open(task: Task, file: WeightFile, options: Options, settings: Settings) -> FileReport:
    network = describe_network(file)
    require_understood(network)
    strangers = _strangers(network)
    if not options.result.keep_alphas:
        settings = replace(settings, alpha=_one_alpha(network, settings.rule))
    kohya = names_in_kohya(network) if options.result.names == "kohya" else None
    settings = replace(settings, kohya=kohya, family=_family_of_shapes(network, renamed=kohya is not None))
    modules, others = list(network.modules.values()), network.others
    if settings.target_bytes is not None:
        room = settings.target_bytes - _largest_header(file, modules, settings)
        settings = replace(settings, target_bytes=room)
    shrunk = shrink(file, modules, others, settings)
    metadata = _metadata(file, shrunk, options, settings, task.target, network.family)
    header, places = build_header({key: (t.dtype, t.shape) for key, t in shrunk.tensors.items()}, metadata)
    if not options.result.dry_run:
        target = task.target or sys.stdout.buffer
        write_tensors(target, shrunk.tensors, metadata, force=options.result.force)
        if task.target is None:
            sys.stdout.buffer.flush()
    return FileReport(
        source=task.name,
        output=None if options.result.dry_run else str(task.target or STREAM),
        precision=shrunk.precision,
        bytes_before=file_bytes(file),
        bytes_after=len(header) + sum(place.size for place in places.values()),
        modules=shrunk.modules,
        notes=[
            *shrunk.notes,
            *strangers,
            *first_text_encoder(network),
            *_names(shrunk, network, settings),
            *loss_advice(shrunk.modules),
        ],
    )


def _one_alpha(network: Network, rule: RankRule) -> float:
    """The alpha for all modules: what a module of the commonest strength has at the rank that was asked for."""
    ranked = [module for module in network.modules.values() if module.rank]
    strengths = Counter(map(scale_of, ranked))
    rank = rule.rank
    if rank == NO_BOUND:
        rank = network.ranks.most_common(1)[0][0] if ranked else 1
    return (strengths.most_common(1)[0][0] if strengths else 1.0) * rank or float(rank)


def _strangers(network: Network) -> list[str]:
    """A note on tensors that belong to no module, which are copied as they are."""
    names = [quote(name)[1:-1] for name in network.others]
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    verb = "belongs" if len(names) == 1 else "belong"
    return [
        f"copied {counted(len(names), 'tensor')} that {verb} to no module: {', '.join(names[:SHOWN])}{more}"
    ]


def _family_of_shapes(network: Network, *, renamed: bool) -> str | None:
    """The family whose layers around attention tell the shapes of their factors; None where these stay as they are.

    SD 1.x has convolutions there, as all readers of kohya's names know. Of dotted names other programs know better.
    """
    flat = renamed or not any("." in name for name in network.modules)
    return network.family if flat or network.family != "sd1" else None


def _names(shrunk: Shrunk, network: Network, settings: Settings) -> list[str]:
    """A note where the names are not those that the web UIs look for."""
    if settings.kohya is not None:
        notes = text_encoder_alone(network)
        if any(module.magnitude_per_output for module in network.modules.values()):
            notes.append(
                "DoRA by outputs: A1111 takes it by inputs, ComfyUI and Forge divide by another norm"
            )
        return notes
    dotted = sum("." in module.name for module in shrunk.modules)
    if not dotted:
        return []
    if any(module.path.startswith("base_model.model.") for module in network.modules.values()):
        return [
            "strengths are in alphas now, not in a configuration beside the file: lora-convert --to peft writes PEFT's "
            "folder of it, --to kohya here what the web UIs read"
        ]
    return [
        f"{counted(dotted, 'module', 'keep')} dotted names, which A1111 does not read, nor ComfyUI most of; "
        "--to kohya writes those that they read"
    ]


def _metadata(
    file: WeightFile,
    shrunk: Shrunk,
    options: Options,
    settings: Settings,
    target: Path | None,
    family: str | None,
) -> dict[str, str]:
    size, name = options.ranks.target_size, target.stem if target else None
    metadata = resized_metadata(file.metadata, shrunk.modules, settings.rule, size, name)
    if settings.kohya is not None and family is not None:
        metadata = with_base_facts(metadata, family)
    metadata = with_hashes(metadata, shrunk.tensors)
    if "modelspec.hash_sha256" in metadata:
        metadata["modelspec.hash_sha256"] = f"0x{metadata['sshs_model_hash']}"
    return metadata


def _largest_header(file: WeightFile, modules: Sequence[ModuleKeys], settings: Settings) -> int:
    """Bytes that the new file's header can at most take, whatever the ranks."""
    digits = (NO_BOUND, NO_BOUND)
    kohya, renamed = settings.kohya, {key for module in modules for key in module.keys.values()}
    names = {key for key in file.tensors if kohya is None or key not in renamed}
    for module in modules:
        name = module.name if kohya is None else kohya[module.name]
        names |= {f"{name}.{suffix}" for suffix in (*NEW_SUFFIXES, *(module.keys if kohya else ()))}
    shapes = dict.fromkeys(names, ("U8", digits))
    return len(build_header(shapes, file.metadata)[0]) + METADATA_ROOM


def file_bytes(file: WeightFile) -> int:
    """Size of the file, or of what came through a pipe."""
    if file.path.is_file():
        return file.path.stat().st_size
    header, places = build_header({key: (t.dtype, t.shape) for key, t in file.tensors.items()}, file.metadata)
    return len(header) + sum(place.size for place in places.values())


# -------------------------------------------------------------------------------- telling


def tell(report: FileReport, options: Options) -> None:
    """The summary and notes on stderr; the path, the report or its JSON on stdout, unless the network goes
    there.
    """
    say(summary(report))
    for note in report.notes:
        say(f"note: {note}")
    if report.bytes_after > report.bytes_before:
        say("note: the result is larger than the input; a smaller --new-rank may be what you want")
    streamed = options.result.output == STREAM and not options.result.dry_run
    if options.result.as_json:
        write_json(report.as_record(), err=streamed)
    elif options.result.report:
        for line in table(report):
            show(line, err=streamed)
    elif not options.result.dry_run and not streamed:
        write_path(Path(report.output or ""))


def listed_paths(lines: BinaryIO) -> Iterator[Path]:
    """Paths from lines of text; of JSON records their "path", or "file" as lora-inspect has it."""
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8", "surrogateescape").strip("\r\n")
        if not text.strip():
            continue
        if not text.startswith("{"):
            yield Path(text)
            continue
        try:
            record = parse_json(text)
        except NoJson as error:
            raise InputError(f"line {number} of the list is not a JSON record ({error})") from None
        path = record.get("path") or record.get("file")
        if not isinstance(path, str):
            raise InputError(f"line {number} of the list has no path")
        yield Path(path)
