"""The report of the pictures as they are now. Only what an edit can change is looked for again."""

from __future__ import annotations

from dataclasses import replace

from lorapipe_dataset.check.buckets import BucketReport, Placed, bucket_report, place_all
from lorapipe_dataset.check.edit.shelf import Shelf
from lorapipe_dataset.check.findings import Finding, Rule
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset
from lorapipe_dataset.check.pictures.look import look_at_all
from lorapipe_dataset.check.reports.report import Report
from lorapipe_dataset.check.rules import CHECKS, OF_CAPTIONS, OF_COPIES
from lorapipe_dataset.check.run import try_rules
from lorapipe_engine.command.progress import progress

_OF_FILES = tuple(one for one in CHECKS if one not in (*OF_CAPTIONS, *OF_COPIES))
Tried = tuple[list[Finding], list[tuple[Rule, str]]]


class Judge:
    """Makes the report. Copies are looked for once, files when one comes or goes, captions whenever one changes."""

    def __init__(self, shelf: Shelf, options: Options) -> None:
        self._shelf = shelf
        self._options = options
        if options.look:
            pictures = [item.picture for item in shelf.present()]
            with progress(len(pictures), "looking", "picture") as bar:
                for _ in look_at_all(pictures, None):
                    bar.update()
        self._copies = try_rules(self._dataset(), options, OF_COPIES)
        self._files: Tried = ([], [])
        self._buckets: BucketReport | None = None
        self._structure = 0
        self._report: Report | None = None
        self._revision = -1

    def report(self) -> Report:
        """The report of the shelf's revision."""
        shelf = self._shelf
        if self._report is not None and self._revision == shelf.revision:
            return self._report
        dataset = self._dataset()
        if self._structure != shelf.structure or self._buckets is None:
            self._files = try_rules(dataset, self._options, _OF_FILES)
            placed = [row for row in place_all(dataset, self._options.data) if isinstance(row, Placed)]
            batch = self._options.data.train_batch_size
            self._buckets = bucket_report(placed, batch, numbered=dataset.numbered)
            self._structure = shelf.structure
        captions = try_rules(dataset, self._options, OF_CAPTIONS)
        findings = [*self._files[0], *captions[0], *self._copies_left(dataset)]
        skipped = [*self._files[1], *captions[1], *self._copies[1]]
        self._report = Report((shelf.root,), dataset, tuple(findings), tuple(skipped), self._buckets)
        self._revision = shelf.revision
        return self._report

    def _dataset(self) -> Dataset:
        scanned = self._shelf.scanned
        pictures = [item.picture for item in self._shelf.present()]
        return replace(scanned, pictures=pictures)

    def _copies_left(self, dataset: Dataset) -> list[Finding]:
        """The groups of copies without the pictures that were left out, where two are left at least."""
        there = {picture.path for picture in dataset.pictures}
        groups = [
            replace(one, paths=tuple(path for path in one.paths if path in there)) for one in self._copies[0]
        ]
        return [one for one in groups if len(one.paths) > 1]
