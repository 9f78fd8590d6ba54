"""The report: findings by rule, the set's figures, and how they are printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.buckets import BucketReport
from lorapipe_dataset.check.buckets import table as bucket_table
from lorapipe_dataset.check.findings import SEVERITIES, Finding, Rule
from lorapipe_dataset.check.pictures.dataset import Dataset
from lorapipe_dataset.check.settings import Severity
from lorapipe_dataset.texts.vocabulary import shown
from lorapipe_engine.command.text import printable

SHOWN_CASES = 4
SHOWN_TAGS = 20


@dataclass(frozen=True)
class Report:
    """What was found. ``skipped`` are rules that could not be tried, with what they need."""

    roots: tuple[Path, ...]
    dataset: Dataset
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[Rule, str], ...]
    buckets: BucketReport

    @cached_property
    def by_rule(self) -> dict[str, list[Finding]]:
        """The findings of each rule, the gravest rules first."""
        by_rule: dict[str, list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda one: SEVERITIES.index(one.severity)):
            by_rule.setdefault(finding.rule.id, []).append(finding)
        return by_rule

    @cached_property
    def tags(self) -> list[tuple[str, int]]:
        """Tags of the trained captions with the number of pictures, the commonest first."""
        counts: Counter[str] = Counter()
        for picture in self.dataset.captioned:
            counts.update({shown(key) for key in picture.keys})
        return sorted(counts.items(), key=lambda row: (-row[1], row[0]))

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def worst(self) -> Severity | None:
        """The gravest severity found, or None."""
        return next((severity for severity in SEVERITIES if self.count(severity)), None)

    def as_record(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "path": str(self.roots[0]) if len(self.roots) == 1 else [str(root) for root in self.roots],
            "pictures": len(self.dataset.pictures),
            "trained": sum(picture.is_readable for picture in self.dataset.trained),
            "left_out": list(self.dataset.left_out),
            "formats": formats(self.dataset),
            "concepts": concepts(self.dataset),
            "summary": {severity: self.count(severity) for severity in SEVERITIES},
            "findings": [
                {
                    "rule": finding.rule.id,
                    "severity": finding.severity,
                    "text": finding.text,
                    "paths": [str(path) for path in finding.paths],
                    **({"data": dict(finding.data)} if finding.data else {}),
                }
                for group in self.by_rule.values()
                for finding in group
            ],
            "rules": {
                name: {
                    "title": group[0].rule.title,
                    "fix": group[0].rule.fix,
                    "fixable": group[0].rule.fixable,
                }
                for name, group in self.by_rule.items()
            },
            "skipped": [{"rule": rule.id, "why": why} for rule, why in self.skipped],
            "tags": [{"tag": tag, "pictures": count} for tag, count in self.tags],
            **self.buckets.as_record(),
        }


def formats(dataset: Dataset) -> dict[str, int]:
    """How many pictures have each suffix (without its dot, in small letters), the commonest first."""
    return dict(Counter(picture.path.suffix[1:].lower() for picture in dataset.pictures).most_common())


def concepts(dataset: Dataset) -> list[dict[str, Any]]:
    """Each concept's pictures that can be read, repeats, captions, how many are shown in an epoch and their share, by
    name. Those in folders without a number are in no epoch: they have no repeats, and count once for the share."""
    readable = {name: [one for one in group if one.is_readable] for name, group in dataset.concepts.items()}
    weights = {name: sum(one.place.repeats or 1 for one in group) for name, group in readable.items()}
    whole = sum(weights.values())
    return [
        {
            "concept": name,
            "images": len(group),
            "repeats": sorted({one.place.repeats for one in dataset.concepts[name] if one.place.repeats}),
            "captions": sum(bool(picture.caption) for picture in group),
            "shown": sum(one.place.repeats or 0 for one in group),
            "share": round(weights[name] / whole, 4) if whole else 0.0,
        }
        for name, group in sorted(readable.items())
    ]


# -------------------------------------------------------------------------------- for a person


def table(report: Report, *, whole: bool = False) -> Iterator[str]:
    """The report as lines of text; ``whole`` shows every case, else the first few of each rule."""
    yield from _overview(report)
    for group in report.by_rule.values():
        rule = group[0].rule
        yield ""
        yield f"{group[0].severity:<7}  {rule.id} ({len(group)}): {rule.title}"
        for finding in group if whole else group[:SHOWN_CASES]:
            yield f"         {_case(finding)}"
        if not whole and len(group) > SHOWN_CASES:
            yield f"         and {len(group) - SHOWN_CASES} more (--all shows them)"
        yield f"         fix: {rule.fix}"
    yield ""
    yield from bucket_table(report.buckets)
    yield ""
    if report.tags:
        tags = ", ".join(f"{printable(tag)} {count}" for tag, count in report.tags[:SHOWN_TAGS])
        yield f"tags ({len(report.tags)}): {tags}"
    yield from _skipped(report.skipped)
    yield summary(report)


def _overview(report: Report) -> Iterator[str]:
    dataset = report.dataset
    shown = sum(row["shown"] for row in concepts(dataset))
    bare = sum(picture.place.repeats is None for picture in dataset.trained)
    epoch = f"{shown} an epoch, " if dataset.numbered else ""
    readable = sum(picture.is_readable for picture in dataset.trained)
    captions = sum(picture.is_readable for picture in dataset.captioned)
    counts = _plural(readable, "picture"), _plural(captions, "caption")
    broken = len(dataset.trained) - readable
    more = f", and {_plural(broken, 'picture')} that cannot be trained" if broken else ""
    yield f"{counts[0]}, {epoch}{counts[1]}{more}"
    if bare:
        yield (
            f"  not trained as they lie: {_plural(bare, 'picture')} in folders without a number of repeats in front; "
            "lora-train takes folders N_concept alone, and lora-repeats makes them"
        )
    for line in dataset.left_out:
        yield printable(f"  not trained: {line}")
    kinds = formats(dataset)
    if len(kinds) > 1:
        yield f"  {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
    for row in concepts(dataset):
        repeats = "/".join(map(str, row["repeats"]))
        epoch = f" x {repeats} = {row['shown']}" if repeats else ""
        yield f"  {printable(row['concept'])}: {row['images']}{epoch} ({row['share']:.0%})"


def _case(finding: Finding) -> str:
    if not finding.paths:
        return printable(finding.text)
    more = f" and {len(finding.paths) - 1} more" if len(finding.paths) > 1 else ""
    return printable(f"{finding.paths[0]}{more}: {finding.text}")


def _skipped(skipped: Sequence[tuple[Rule, str]]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for rule, why in skipped:
        reasons.setdefault(why, []).append(rule.id)
    for why, names in reasons.items():
        yield f"not tried: {', '.join(names)}: {why}"


def summary(report: Report) -> str:
    """The last line: how many findings of each severity."""
    counts = [_plural(report.count(severity), severity) for severity in SEVERITIES if report.count(severity)]
    return ", ".join(counts) or "nothing found"


def _plural(count: int, word: str) -> str:
    noun = "note" if word == "info" else word
    return f"{count} {noun}{'' if count == 1 else 's'}"
