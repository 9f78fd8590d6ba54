"""Rules and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset
from lorapipe_dataset.check.settings import Severity

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Rule:
    """Something that may be wrong. ``fix`` tells a person what to do; ``fixable`` if ``--fix`` can do it."""

    id: str
    severity: Severity
    title: str
    fix: str
    fixable: bool = False


@dataclass(frozen=True)
class Finding:
    """One case of a rule: the files it is about, and what is the matter with them in a few words.

    ``data`` holds figures for programs. ``severity`` is given where this case is milder than the rule's.
    """

    rule: Rule
    text: str
    paths: tuple[Path, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    milder: Severity | None = None

    @property
    def severity(self) -> Severity:
        return self.milder or self.rule.severity


NOT_DECODED = "pictures were not decoded; --look decodes them"  # by --no-look, or --edit of itself


class Skipped(Exception):
    """A rule could not be tried; the message says what it needs."""


@dataclass(frozen=True)
class Check:
    """A function that looks for the cases of its rules. It raises :class:`Skipped` where something is missing."""

    rules: tuple[Rule, ...]
    find: Callable[[Dataset, Options], Iterable[Finding]]


def at_least(severity: Severity, bar: Severity) -> bool:
    """Whether ``severity`` is as bad as ``bar`` or worse."""
    return SEVERITIES.index(severity) <= SEVERITIES.index(bar)
