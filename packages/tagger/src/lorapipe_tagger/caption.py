"""From a picture's scores to its caption on disk and its record on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.changes.journal import ChangedMeanwhile
from lorapipe_engine.command.records import Record
from lorapipe_engine.command.text import hidden_letter
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.pictures.layout import concept_of
from lorapipe_tagger.captions.explain import explain, table
from lorapipe_tagger.captions.shape import Shape, caption_tags, front_count
from lorapipe_tagger.captions.write import (
    CaptionWriter,
    difference,
    join_existing,
    read_existing,
    read_shown,
)
from lorapipe_tagger.models.labels import CHARACTER, GENERAL
from lorapipe_tagger.options import Options
from lorapipe_tagger.report import failed_row, report_row
from lorapipe_tagger.scoring.combine import Consensus
from lorapipe_tagger.scoring.embeddings import Projection, Vector
from lorapipe_tagger.scoring.pipeline import Result
from lorapipe_tagger.scoring.select import Selection, Tag
from lorapipe_tagger.sources import Task

_TRANSPARENT, _WHITE = "transparent_background", "white_background"
_DIGITS = 4
_TRIES = 20  # to write a caption that other programs write too


@dataclass(frozen=True)
class Outcome:
    """What came of a picture: its record, the tags given to it, a text for people, its row of the report
    and its embedding where they are wanted."""

    record: Record
    tags: Sequence[str] = ()
    text: str = ""
    kept: bool = False
    cached: bool = False
    error: str | None = None
    row: dict[str, Any] | None = None
    vector: Vector | None = None


class Captioner:
    """Makes captions of scores and writes them. :meth:`use` tells it the model before the first score."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model = ""
        self.writer = CaptionWriter()
        self._shape = options.shape
        self._consensus: Consensus | None = None
        self._projection: Projection | None = None

    def use(self, model: str, consensus: Consensus, shape: Shape) -> None:
        """Take what the model is called, what selects its tags, and what captions look like."""
        self._model, self._consensus, self._shape = model, consensus, shape
        self._projection = Projection(consensus.outputs) if self._options.embeddings else None

    def keep(self, task: Task, text: str) -> Outcome:
        """The outcome of a picture that keeps its caption."""
        return Outcome(self._record(task, {"caption": text, "existing": True}), text=text, kept=True)

    def finish(self, result: Result) -> Outcome:
        """Select tags, write the caption. What fails is in the outcome."""
        task = result.task
        if result.error is not None or self._consensus is None:
            row = failed_row(result) if self._options.report else None
            return Outcome(self._record(task, {"error": result.error}), error=result.error, row=row)
        selection = self._consensus.select(result.scores)
        if self._options.transparent_tag and result.transparent:
            selection = _see_through(selection)
        try:
            shape = self._shape_of(task)
        except LoraError as error:
            return Outcome(self._record(task, {"error": str(error)}), error=str(error))
        tags = caption_tags(selection, shape)
        fields: dict[str, Any] = {"size": list(result.size), "model": self._model, **_scores(selection)}
        try:
            before, text = self._caption(task, tags, front_count(tags, shape))
        except LoraError as error:
            return Outcome(self._record(task, {**fields, "error": str(error)}), error=str(error))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            return Outcome(self._record(task, {**fields, "error": reason}), error=reason)
        fields = {**fields, "caption": text, "cached": result.cached}
        person = f"\n{difference(before, text)}" if self._options.dry_run else text
        if self._options.explain:
            reasons = explain(result.scores, self._consensus, shape, tags)
            fields["explain"] = [{**one._asdict(), "score": round(one.score, _DIGITS)} for one in reasons]
            person = f"{text}\n{table(reasons)}"
        row = report_row(result, self._consensus, text) if self._options.report else None
        vector = self._projection.vector(result.scores) if self._projection else None
        kept = before is not None and self._options.existing == "skip"
        fields |= {"existing": True} if kept else {}
        extra: dict[str, Any] = {"row": row, "vector": vector, "kept": kept, "cached": result.cached}
        return Outcome(self._record(task, fields), tags=tags, text=person, **extra)

    def _caption(self, task: Task, tags: Sequence[str], front: int) -> tuple[str | None, str]:
        """:meth:`_write`, again where another program changed the caption meanwhile."""
        for _ in range(_TRIES - 1):
            with suppress(ChangedMeanwhile):
                return self._write(task, tags, front)
        return self._write(task, tags, front)

    def _write(self, task: Task, tags: Sequence[str], front: int) -> tuple[str | None, str]:
        """The caption before and after; written unless that is not wanted. Raises LoraError or OSError."""
        mode, separator = self._options.existing, self._shape.separator
        if task.caption is None:
            return None, separator.join(tags)
        if mode == "replace":
            before = read_shown(task.caption) if self._options.dry_run else None
        else:
            before = read_existing(task.caption)
        if before is not None and mode == "skip":  # written by someone since
            return before, before
        text = join_existing(before, tags, mode, separator, front=front)
        if not self._options.dry_run and text != before:
            self.writer.write(task.caption, text, before=before, replace=mode == "replace")
        return before, text

    def _shape_of(self, task: Task) -> Shape:
        if not self._options.trigger_from_folder:
            return self._shape
        trigger = concept_of(task.path.absolute().parent.name)
        if hidden_letter(trigger):
            raise InputError(
                "its folder's name, the trigger, has control or directional characters; rename it"
            )
        return self._shape.with_trigger(trigger)

    def _record(self, task: Task, fields: dict[str, Any]) -> Record:
        carried = {name: value for name, value in task.data.items() if name not in ("error", "existing")}
        return Record(task.path, {**carried, **fields})


def _see_through(selection: Selection) -> Selection:
    tags = [tag for tag in selection.tags if tag.name not in (_WHITE, _TRANSPARENT)]
    return selection._replace(tags=[*tags, Tag(_TRANSPARENT, GENERAL, 1.0, -1)])


def _scores(selection: Selection) -> dict[str, dict[str, float]]:
    """Probabilities of the tags that passed by category, the highest first; of ratings all."""
    categories: dict[str, dict[str, float]] = {
        "rating": {name: round(score, _DIGITS) for name, score in selection.ratings.items()},
        GENERAL: {},
        CHARACTER: {},
    }
    for tag in sorted(selection.tags, key=lambda tag: -tag.score):
        categories.setdefault(tag.category, {})[tag.name] = round(tag.score, _DIGITS)
    return categories
