"""What ``lora-check`` does once its options are read: scan, look, try the rules, tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorapipe_dataset.check.buckets import Placed, bucket_report, place_all
from lorapipe_dataset.check.findings import Check, Finding, Rule, Skipped, at_least
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset
from lorapipe_dataset.check.pictures.look import look_at_all
from lorapipe_dataset.check.pictures.scan import read_files, scan
from lorapipe_dataset.check.repairs.fix import apply, check_fixable, undo
from lorapipe_dataset.check.reports.report import Report, summary, table
from lorapipe_dataset.check.rules import CHECKS, RULES
from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.records import Record, read_records, write_json, write_path
from lorapipe_engine.command.tool import say, show
from lorapipe_engine.datasets.spec import bucket_rule
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.writing.atomic import atomic_write, check_output

THUMBNAIL = 176  # longest side in pixels


def run(options: Options) -> int:
    """Check and tell; returns the exit status. Raises LoraErrors."""
    check_rules(options)
    for name in {*options.only, *options.fix}.intersection(options.ignore):
        raise ConfigError(f"--ignore {name}: it is asked for as well; leave one of the two out")
    check_fixable(options.fix)
    bucket_rule(options.data)
    records = list(read_records(options.inputs))
    if options.undo:
        return undo(roots_of(records), run=options.run, dry_run=options.dry_run)
    for path in filter(None, (options.output, options.html)):
        check_output(path, force=options.force)
    report = check(records, options)
    if options.fix:
        return mend(report, options)
    write(report, options)
    return int(report.worst is not None and at_least(report.worst, options.fail_on))


def check_rules(options: Options) -> None:
    """Raise ConfigError for the name of a rule that is none."""
    for name in (*options.only, *options.ignore, *options.fix):
        if name not in RULES:
            raise ConfigError(f"no rule '{name}'{nearest(name, RULES)} (--rules lists them)")


def write(report: Report, options: Options) -> None:
    """Put the report where the options want it: files, and else stdout."""
    if options.output is not None:
        _write_file(options.output, report, options)
    if options.html is not None:
        _write_file(options.html, report, options, ".html")
        say(f"report: {options.html}")
    if options.as_json:
        write_json(report.as_record())
    elif options.output is not None:
        write_path(options.output)
    else:
        for line in table(report, whole=options.whole):
            show(line)
    if options.as_json or options.output is not None:
        say(summary(report))


def _write_file(path: Path, report: Report, options: Options, form: str | None = None) -> None:
    form = form or path.suffix.lower()
    if form == ".html":
        from lorapipe_dataset.check.reports.page import page

        text = page(report)
    elif form == ".json":
        text = f"{json.dumps(report.as_record(), allow_nan=False)}\n"
    else:
        text = "".join(f"{line}\n" for line in table(report, whole=True))
    with atomic_write(path, force=options.force) as file:
        file.write(text.encode("utf-8", "replace"))


def check(records: Iterable[Record], options: Options) -> Report:
    """Make the report. Raises InputError for what cannot be checked at all."""
    records = list(records)
    for record in records:
        if not record.path.exists():
            raise InputError(f"{record.path}: no such file or folder")
    dataset = scan(records, options.caption_extension, recursive=options.recursive)
    read_files(dataset)
    if options.look:
        thumbnail = THUMBNAIL if options.pages else None
        with progress(len(dataset.pictures), "looking", "picture") as bar:
            for _ in look_at_all(dataset.pictures, thumbnail):
                bar.update()
    findings, skipped = try_rules(dataset, options)
    placed = [row for row in place_all(dataset, options.data) if isinstance(row, Placed)]
    buckets = bucket_report(placed, options.data.train_batch_size, numbered=dataset.numbered)
    return Report(roots_of(records), dataset, tuple(findings), tuple(skipped), buckets)


def roots_of(records: Iterable[Record]) -> tuple[Path, ...]:
    """The folders that were named, or that the named pictures lie in."""
    paths = (record.path.parent if record.path.is_file() else record.path for record in records)
    return tuple(dict.fromkeys(paths))


def mend(report: Report, options: Options) -> int:
    """Mend what was found; returns the exit status."""
    from lorapipe_dataset.check.repairs.mend import plan_repairs

    for rule, why in report.skipped:
        raise ConfigError(f"--fix {rule.id}: {why}")
    repairs = plan_repairs(report.dataset, report.findings, options.fix)
    failures = apply(repairs, dry_run=options.dry_run, roots=report.roots)
    if options.as_json:
        write_json(repairs.as_record())
    return 1 if failures else 0


def try_rules(
    dataset: Dataset, options: Options, checks: Sequence[Check] = CHECKS
) -> tuple[list[Finding], list[tuple[Rule, str]]]:
    """Findings of the wanted rules of ``checks``, and the rules that could not be tried."""
    findings: list[Finding] = []
    skipped: list[tuple[Rule, str]] = []
    for one in checks:
        wanted = _wanted(one, options)
        if not wanted:
            continue
        try:
            findings += [finding for finding in one.find(dataset, options) if finding.rule in wanted]
        except Skipped as reason:
            skipped += [(rule, str(reason)) for rule in wanted]
    return findings, skipped


def _wanted(one: Check, options: Options) -> list[Rule]:
    chosen = options.fix or options.only
    return [rule for rule in one.rules if (not chosen or rule.id in chosen) and rule.id not in options.ignore]
