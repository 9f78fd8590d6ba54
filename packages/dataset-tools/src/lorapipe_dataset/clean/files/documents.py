"""Cleaning a file of many captions as one: sd-scripts' metadata JSON, Hugging Face's ``metadata.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator

from lorapipe_dataset.clean.captions.cleaner import Cleaner
from lorapipe_dataset.clean.files.inputs import Document, Job
from lorapipe_dataset.clean.files.plan import Outcome
from lorapipe_dataset.clean.files.textfile import encode_text
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.sidecars.documents import (
    NamedPictures,
    change_csv,
    change_kohya,
    change_metadata,
    document_rows,
)
from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.changes.journal import Change, Journal
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.files.links import LeadsOut
from lorapipe_engine.pictures.captions import decode_caption


def clean_document(document: Document, options: Options, cleaner: Cleaner, journal: Journal) -> list[Outcome]:
    """Clean all captions of a document, and write it if one changed. What fails is in the outcomes."""
    path = document.path
    try:
        if options.dry_run or options.no_txt or not options.in_place:
            return _Sweep(document, options, cleaner).read()[1]
        with journal.folder(path.parent) as desk:
            change, outcomes = _Sweep(document, options, cleaner).read()
            failures = desk.write([change]) if change else {}
    except LeadsOut as reason:
        return [Outcome(Job(str(path)), left=str(reason))]
    except LoraError as error:
        return [Outcome(Job(str(path)), error=str(error))]
    except OSError as error:
        return [Outcome(Job(str(path)), error=f"{path}: cannot be read ({error.strerror})")]
    for failure in failures.values():
        outcomes = [Outcome(Job(str(path)), error=str(failure))]
    return outcomes


def document_captions(document: Document, options: Options, cleaner: Cleaner) -> Iterator[str]:
    """The captions in a document as they are. Raises LoraError or OSError."""
    for outcome in _Sweep(document, options, cleaner).read()[1]:
        if outcome.before is not None:
            yield outcome.before


class _Sweep:
    """One reading of a document."""

    def __init__(self, document: Document, options: Options, cleaner: Cleaner) -> None:
        self._document, self._options, self._cleaner = document, options, cleaner
        self._pictures = NamedPictures(document.path)
        self._outcomes: list[Outcome] = []

    def read(self) -> tuple[Change | None, list[Outcome]]:
        """The change of the whole file, and what came of each caption."""
        path = self._document.path
        data, stamp = read_stamped(path)
        if data is None:
            raise InputError(f"{path}: no such file")
        text = decode_caption(data, path, self._options.encoding)
        try:
            if self._options.no_txt or not self._options.in_place:
                for name, caption in document_rows(text, self._document.kind):
                    self._clean(name, caption)
                new = text
            elif self._document.kind == "kohya":
                new = change_kohya(text, self._clean, sentences=self._options.rules.style == "text")
                whole = {self._picture(name): row for name, row in document_rows(new, "kohya")}
                for outcome in self._outcomes:
                    outcome.passed = whole.get(outcome.job.picture or "")
            else:
                new = (change_csv if self._document.kind == "csv" else change_metadata)(text, self._clean)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        after = data if new == text else encode_text(new, path)
        return (Change(path.name, data, after, stamp) if after != data else None), self._outcomes

    def _clean(self, name: str, caption: str) -> str:
        path = self._document.path
        outcome = Outcome(Job(str(path), picture=self._picture(name)), before=caption)
        self._outcomes.append(outcome)
        try:
            outcome.after = self._cleaner.clean(caption)
        except LoraError as error:
            outcome.error = f"{path}, {name}: {error}"
            return caption
        outcome.written = outcome.after != caption and not self._options.no_txt
        return outcome.after

    def _picture(self, name: str) -> str:
        return str(self._pictures.path_of(name))
