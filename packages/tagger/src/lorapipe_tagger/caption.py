"""From a picture's scores to its caption on disk and its record on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorapipe_engine.changes.journal import ChangedMeanwhile
from lorapipe_engine.command.records import Record
from lorapipe_engine.command.text import hidden_letter
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.pictures.captions import KEEP_MARK
from lorapipe_engine.pictures.layout import concept_of
from lorapipe_tagger.captions.explain import explain, table
from lorapipe_tagger.captions.shape import (
    Shape,
    caption_tags,
    escaped,
    front_count,
    given_tags,
    without_repeats,
)
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
from lorapipe_tagger.scoring.scores import cache_folder
from lorapipe_tagger.scoring.select import Selection, Tag
from lorapipe_tagger.sources import Task

if TYPE_CHECKING:
    from lorapipe_tagger.sentences.asking import Sentences

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


@dataclass(frozen=True)
class Draft:
    """The parts of each line of a caption; the first ``front`` stand in front because the user said so. ``tags``: those
    parts that are tags.

    Several lines are never joined with a caption that is there.
    """

    lines: Sequence[Sequence[str]]
    front: int
    tags: Sequence[str]


class Captioner:
    """Makes captions of scores and writes them. :meth:`use` tells it the model before the first score."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model = ""
        self.writer = CaptionWriter()
        self._shape = options.shape
        self._consensus: Consensus | None = None
        self._projection: Projection | None = None
        self.sentences: Sentences | None = None

    def use(self, model: str, consensus: Consensus, shape: Shape) -> None:
        """Take what the model is called, what selects its tags, and what captions look like."""
        self._model, self._consensus, self._shape = model, consensus, shape
        self._projection = Projection(consensus.outputs) if self._options.embeddings else None

    def begin(self) -> None:
        """Reach the server that sentences come from, before any other work. Raises LoraError."""
        if self._options.asking is None or self._options.dry_run:
            return
        from lorapipe_tagger.sentences.asking import Sentences

        cache = cache_folder() / "sentences.sqlite" if self._options.cache else None
        self.sentences = Sentences(self._options.asking, cache)
        self.sentences.begin()

    def close(self) -> None:
        """Close what sentences are kept in."""
        if self.sentences:
            self.sentences.close()

    def stop(self) -> None:
        """End what threads wait for."""
        if self.sentences:
            self.sentences.stop()

    def keep(self, task: Task, text: str) -> Outcome:
        """The outcome of a picture that keeps its caption."""
        return Outcome(self._record(task, {"caption": text, "existing": True}), text=text, kept=True)

    def finish(self, result: Result) -> Outcome:
        """Select tags, write the caption. What fails is in the outcome."""
        task = result.task
        if result.error is not None:
            row = failed_row(result) if self._options.report else None
            return Outcome(self._record(task, {"error": result.error}), error=result.error, row=row)
        try:
            shape = self._shape_of(task)
        except LoraError as error:
            return Outcome(self._record(task, {"error": str(error)}), error=str(error))
        selection = self._select(result)
        fields: dict[str, Any] = {}
        tags: Sequence[str] = without_repeats(given_tags(shape))
        if selection is not None:
            tags = caption_tags(selection, shape)
            fields = {"size": list(result.size), "model": self._model, **_scores(selection)}
        draft = Draft([tags], front_count(tags, shape), tags)
        try:
            if self._options.asking is not None and not self._stands(task):
                if self._options.dry_run:
                    return self._asked(task, fields, tags, shape)
                sentence = self._sentence(task, tags, shape)
                fields["sentence"] = sentence
                draft = self._with_sentence(tags, sentence, shape)
                tags = draft.tags
        except InputError as error:
            return Outcome(self._record(task, {**fields, "error": str(error)}), error=str(error))
        try:
            before, text = self._caption(task, draft)
        except LoraError as error:
            return Outcome(self._record(task, {**fields, "error": str(error)}), error=str(error))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            return Outcome(self._record(task, {**fields, "error": reason}), error=reason)
        fields = {**fields, "caption": text, **({"cached": result.cached} if selection is not None else {})}
        person = f"\n{difference(before, text)}" if self._options.dry_run else text
        row, vector = None, None
        if self._consensus is not None:
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

    def _select(self, result: Result) -> Selection | None:
        """The tags that passed; None where no tagger was loaded."""
        if self._consensus is None:
            return None
        selection = self._consensus.select(result.scores)
        seen_through = self._options.transparent_tag and result.transparent
        return _see_through(selection) if seen_through else selection

    def _stands(self, task: Task) -> bool:
        """Whether the picture keeps the caption that it has. Raises InputError for one that cannot be read."""
        if self._options.existing != "skip" or task.caption is None:
            return False
        return read_existing(task.caption) is not None

    def _asked(self, task: Task, fields: dict[str, Any], tags: Sequence[str], shape: Shape) -> Outcome:
        """What a dry run says of a picture for which a sentence would be asked."""
        asking = self._options.asking
        assert asking is not None
        if (sentence := self._carried(task)) is not None:
            text = f"\n  its record has the sentence: {sentence}"
            return Outcome(self._record(task, fields), tags=tags, text=text)
        words = asking.words(task.path, tags[len(without_repeats(given_tags(shape))) :], shape.trigger)
        text = f"\n  would ask {asking.model or 'the first model'} at {asking.address.shown}: {words}"
        return Outcome(self._record(task, {**fields, "question": words}), tags=tags, text=text)

    def _carried(self, task: Task) -> str | None:
        """The sentence that the picture's record came with. Raises InputError for one with hidden letters."""
        sentence = task.data.get("sentence")
        if not isinstance(sentence, str) or self._options.existing == "replace":
            return None
        line = " ".join(sentence.split())
        if hidden_letter(line):
            raise InputError("the sentence in its record has control or directional characters; mend it")
        return line or None

    def _sentence(self, task: Task, tags: Sequence[str], shape: Shape) -> str:
        """The picture's sentence. Raises InputError where there is none, another LoraError where none will come."""
        if (sentence := self._carried(task)) is not None:
            return sentence
        assert self.sentences is not None
        hints = tags[len(without_repeats(given_tags(shape))) :]
        return self.sentences.of(task.path, hints, shape.trigger)

    def _with_sentence(self, tags: Sequence[str], sentence: str, shape: Shape) -> Draft:
        from lorapipe_tagger.sentences.parts import caption_parts

        assert self._options.asking is not None
        style, given = self._options.asking.style, without_repeats(given_tags(shape))
        lines = caption_parts(tags, given, escaped(sentence) if shape.escape else sentence, style)
        if style == "sentence":
            return Draft(lines, len(lines[0]) - 1, lines[0][:-1])
        return Draft(lines, front_count(tags, shape), tags)

    def _caption(self, task: Task, draft: Draft) -> tuple[str | None, str]:
        """:meth:`_write`, again where another program changed the caption meanwhile."""
        for _ in range(_TRIES - 1):
            with suppress(ChangedMeanwhile):
                return self._write(task, draft)
        return self._write(task, draft)

    def _write(self, task: Task, draft: Draft) -> tuple[str | None, str]:
        """The caption before and after; written unless that is not wanted. Raises LoraError or OSError."""
        mode, separator = self._options.existing, self._shape.separator
        if task.caption is None:
            return None, "\n".join(map(separator.join, draft.lines))
        if mode == "replace":
            before = read_shown(task.caption) if self._options.dry_run else None
        else:
            before = read_existing(task.caption)
        if before is not None and mode == "skip":  # written by someone since
            return before, before
        text = "\n".join(
            join_existing(before, line, mode, separator, front=draft.front) for line in draft.lines
        )
        if not self._options.dry_run and text != before:
            is_replaced = mode == "replace"
            self.writer.write(task.caption, text, before=before, replace=is_replaced, root=task.root)
        return before, text

    def _shape_of(self, task: Task) -> Shape:
        if not self._options.trigger_from_folder:
            return self._shape
        trigger = concept_of(task.path.absolute().parent.name)
        if hidden_letter(trigger):
            raise InputError(
                "its folder's name, the trigger, has control or directional characters; rename it"
            )
        if KEEP_MARK in trigger:
            raise InputError(f"its folder's name, the trigger, has {KEEP_MARK}, training's mark; rename it")
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
