"""What ``lora-repeats`` does once its options are read: gather, choose, tell, build."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorapipe_dataset.bucketing import BucketSettings
from lorapipe_dataset.repeats.adding import add_to
from lorapipe_dataset.repeats.build import build_tree
from lorapipe_dataset.repeats.copies import copies_noted
from lorapipe_dataset.repeats.numbers import target_of
from lorapipe_dataset.repeats.plan import Plan, Row, as_record, plan_rows, table, warnings_of, weights_of
from lorapipe_dataset.repeats.settings import (
    DrySettings,
    FolderSettings,
    NumberSettings,
    OutputSettings,
    RenameSettings,
    UndoSettings,
)
from lorapipe_dataset.repeats.sources import Gathered, gather, named_numbers
from lorapipe_dataset.repeats.subsets import dataset_toml
from lorapipe_dataset.repeats.tree import TOOL, Layout, Mode, check_tree, lay_out, rename_folders, renames
from lorapipe_engine.changes.takeback import take_back
from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import read_records, write_json, write_path
from lorapipe_engine.command.text import counted, printable
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_engine.datasets.kinds import KINDS
from lorapipe_engine.datasets.spec import bucket_rule
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.pictures.batches import batches_per_epoch
from lorapipe_engine.pictures.buckets import place
from lorapipe_engine.pictures.caption_files import caption_suffix
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.layout import MOST_REPEATS, few_of
from lorapipe_engine.settings import DataSettings

_SHOWN = 5  # captions left out that are named; the others are counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. Without ``output`` and ``rename`` the numbers are only printed."""

    inputs: Sequence[str]
    output: str | None
    kind: str
    per_epoch: int | None
    by: str | None
    weight: Sequence[str]
    repeats: Sequence[str]
    concept: str | None
    recursive: bool
    caption_extension: str
    mode: Mode
    rename: bool
    gradient_accumulation_steps: int
    data: DataSettings
    as_json: bool
    dry_run: bool
    force: bool
    undo: bool
    run: str | None

    @classmethod
    def of(cls, inputs: Sequence[str], chosen: Chosen) -> Options:
        """The options that the command line means. Raises ConfigError for those that do not go together."""
        folder, output, buckets = chosen[FolderSettings], chosen[OutputSettings], chosen[BucketSettings]
        if folder.link and folder.move:
            raise ConfigError("--link and --move exclude each other; give one of them")
        caption_suffix(output.caption_extension, "--caption-extension")
        if output.output == "":
            raise ConfigError("-o: an empty name")
        unused = [name for name in chosen.given if name in asdict(buckets) and name != "train_batch_size"]
        if unused and buckets.train_batch_size == 1 and chosen.mode.name != "-o FILE.toml":
            raise ConfigError(
                f"{unused[0]}: has a use only with --train_batch_size above 1, or with -o FILE.toml"
            )
        return cls(
            inputs=inputs,
            mode="move" if folder.move else folder.link or "copy",
            data=buckets.data(),
            rename=chosen[RenameSettings].rename,
            **asdict(chosen[DrySettings]),
            **asdict(chosen[UndoSettings]),
            **asdict(output),
            **asdict(chosen[NumberSettings]),
        )

    def __post_init__(self) -> None:
        if self.concept is not None and not self.concept.strip():
            raise ConfigError("--concept: an empty name")
        if self.by not in (None, "weight") and self.weight:
            raise ConfigError(f"--weight goes with --by weight, not with --by {self.by}")

    @property
    def makes_toml(self) -> bool:
        return self.output is not None and self.output.lower().endswith(".toml")


def run(options: Options) -> int:
    """Do it all; returns the exit status. Raises LoraErrors."""
    if options.undo:
        return take_back(options.inputs, TOOL, run=options.run, dry_run=options.dry_run)
    gathered = gather(read_records(options.inputs), concept=options.concept, recursive=options.recursive)
    plan = make_plan(gathered, options)
    output = Path(options.output) if options.output else None
    done = not options.dry_run and (output is not None or options.rename)
    told = output is None and not options.rename
    if not options.as_json:
        for line in table(plan):
            show(line) if told else say(line)
    for note in [*gathered.notes, *copies_noted(gathered.concepts.values())]:
        say(f"warning: {note}")
    for warning in warnings_of(plan):
        say(f"warning: {warning}")
    result = _make(output, plan, options, gathered.failures) if output or options.rename else []
    if options.as_json:
        write_json(as_record(plan, str(output) if done and output else None))
    elif done:
        for path in result:
            write_path(path)
    for failure in gathered.failures:
        complain(failure)
    return 1 if gathered.failures else 0


def make_plan(gathered: Gathered, options: Options) -> Plan:
    """The numbers, from the pictures and the options."""
    concepts = list(gathered.concepts.values())
    names = [concept.name for concept in concepts]
    fixed = named_numbers(options.repeats, "--repeats", names)
    for name, number in fixed.items():
        if number != int(number):
            raise ConfigError(f"--repeats {name}={number:g}: repeats are whole numbers")
    given = named_numbers(options.weight, "--weight", names)
    by = options.by or ("weight" if given or any(concept.weight for concept in concepts) else "equal")
    kind = KINDS[options.kind]
    target = target_of(kind, options.per_epoch)
    rows = plan_rows(concepts, weights_of(concepts, by, given), target, fixed)
    for row in rows:
        if row.repeats > MOST_REPEATS:
            raise ConfigError(
                f"{row.concept.name}: {row.repeats:,} repeats, more than the {MOST_REPEATS:,} that lora-train takes; "
                "give a smaller --per-epoch, --repeats or --weight"
            )
    return Plan(rows, kind, target, _batches(rows, options.data), options.gradient_accumulation_steps)


def _batches(rows: Sequence[Row], data: DataSettings) -> int:
    """Forward passes of an epoch. A batch has one bucket, so with batches the sizes have to be read."""
    rule = bucket_rule(data)
    if data.train_batch_size == 1:
        return sum(row.shown for row in rows)
    buckets, repeats = [], []
    for row in rows:
        for picture in row.concept.pictures:
            try:
                buckets.append(place(image_size(picture.path), rule).bucket)
            except ConfigError as error:
                raise InputError(f"{picture.path}: {error}") from error
            repeats.append(row.repeats)
    return batches_per_epoch([(0, bucket) for bucket in buckets], repeats, [data.train_batch_size])


# -------------------------------------------------------------------------------- making it


def _make(output: Path | None, plan: Plan, options: Options, failures: list[str]) -> list[Path]:
    """Write what was asked for, or say what would be written; returns the paths for stdout. What could not be done goes
    to ``failures``."""
    if output is None:
        return _rename(plan, options)
    if options.makes_toml:
        text = dataset_toml(plan.rows, options.data, options.caption_extension)
        if options.dry_run:
            for line in text.splitlines():
                say(line)
            return []
        with atomic_write(output, force=options.force) as file:
            file.write(text.encode())
        return [output]
    layout = lay_out(plan.rows, options.caption_extension)
    if options.force and output.is_dir() and not output.is_symlink():
        layout = add_to(output, layout)
    check_tree(output, layout, options.mode, force=options.force)
    _tell_layout(layout, plan, output, options)
    if options.dry_run:
        return []
    with progress(len(layout.items), "building", "file") as bar:
        built = build_tree(output, layout, options.mode, force=options.force, tick=bar.update)
    for note in built.notes:
        say(f"warning: {note}")
    failures += built.stayed
    if built.moved:
        roots = dict.fromkeys(item.home for item in layout.items if item.home is not None)
        say(f"to have the files back there: lora-repeats --undo {printable(shlex.join(map(str, roots)))}")
    return [output]


def _tell_layout(layout: Layout, plan: Plan, output: Path, options: Options) -> None:
    for reason in layout.left_out[:_SHOWN]:
        say(f"warning: {reason}")
    if len(layout.left_out) > _SHOWN:
        say(f"warning: {len(layout.left_out)} captions in all are links out of the dataset and are left out")
    if layout.bare:
        say(
            f"warning: {layout.bare} of {plan.images} pictures have no caption: their concept's name is trained"
        )
    if layout.there:
        verb = counted(len(layout.there), "file", "lie")
        what = "and stays as it is" if len(layout.there) == 1 else "and stay as they are"
        say(f"note: {verb} in {output} already {what}")
    if layout.kept:
        names = few_of([str(path) for path in layout.kept])
        say(
            f"warning: captions in {output} have other words and stay as they are ({names}): take them away to have "
            "the new ones"
        )
    if layout.renamed:
        whose = "its name" if layout.renamed == 1 else "their name"
        say(
            f"note: {counted(layout.renamed, 'picture', 'get')} a number behind {whose}, to keep captions apart"
        )
    if layout.links:
        names = few_of([str(path) for path in layout.links])
        count = len(layout.links)
        what = "1 picture is a link" if count == 1 else f"{count} pictures are links"
        say(f"note: {what} ({names}): the file that it leads to is taken")
    if layout.seconds:
        names = few_of([str(path) for path in layout.seconds])
        say(f"note: captions beside another that is read in their place are not taken: {names}")
    if len(layout.suffixes) > 1:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(layout.suffixes.items()))
        say(f"note: captions have several suffixes ({kinds}): lora-train reads them all, sd-scripts one")
    if options.dry_run:
        for folder in sorted({item.target.parent for item in layout.items}):
            files = sum(item.target.parent == folder for item in layout.items)
            say(f"would make {output / folder}: {counted(files, 'file')} ({options.mode})")
        for new, old in layout.old_names.items():
            say(f"would rename {output / old} -> {new}")


def _rename(plan: Plan, options: Options) -> list[Path]:
    pairs = renames(plan.rows)
    places = [] if options.dry_run or not pairs else rename_folders(pairs)
    for old, new in pairs:
        say(f"{'would rename' if options.dry_run else 'renamed'} {old} -> {new.name}")
    if options.dry_run:
        return []
    if places:
        say(f"to take it back: lora-repeats --undo {printable(shlex.join(map(str, places)))}")
    new_names = dict(pairs)
    folders = [folder for row in plan.rows for folder in row.concept.folders]
    return sorted({new_names.get(folder, folder) for folder in folders})
