"""What the user is told of each picture and at the end."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.records import write_record
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_tagger.caption import Outcome
from lorapipe_tagger.captions.shape import Shape, is_count
from lorapipe_tagger.options import Options
from lorapipe_tagger.scoring.select import spelling

if TYPE_CHECKING:
    from lorapipe_tagger.sentences.asking import Sentences

_CONSTANT_SHARE = 0.9
_FEWEST_FOR_SHARES = 10


@dataclass
class Count:
    """What came of the pictures."""

    word: str = "tagged"
    tagged: int = 0
    cached: int = 0
    kept: int = 0
    failed: int = 0

    def line(self) -> str:
        """One line for the user."""
        parts = [f"{self.tagged} {self.word}" + (f" ({self.cached} from the cache)" if self.cached else "")]
        parts += [f"{self.kept} had captions already (see --existing)"] * bool(self.kept)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return f"lora-tag: {', '.join(parts)}"


def tell(outcome: Outcome, options: Options, count: Count) -> None:
    """Count what came of a picture; its error to stderr, its record or caption to stdout."""
    if outcome.error is not None:
        count.failed += 1
        complain(f"{outcome.record.path}: {outcome.error}")
    elif outcome.kept:
        count.kept += 1
    else:
        count.tagged += 1
        count.cached += outcome.cached
    if as_records(options):
        write_record(outcome.record, jsonl=True)
    elif outcome.error is None and not (outcome.kept and not options.dry_run):
        first, *more = outcome.text.split("\n")
        show(f"{outcome.record.path}: {first}", *more)


def tell_sentences(sentences: Sentences) -> None:
    """Tell how many sentences came from where, and of those that training would cut."""
    say(sentences.line())
    if note := sentences.note():
        say(note)


def tell_constant(tags: Counter[str], pictures: int, shape: Shape) -> None:
    """Tell of tags that nearly every picture of a trigger has, which the trigger had better mean."""
    given = {spelling(tag) for tag in (shape.trigger, *shape.add, *shape.first)}
    constant = [
        tag
        for tag, number in tags.most_common()
        if number > _CONSTANT_SHARE * pictures and spelling(tag) not in given and not is_count(tag)
    ]
    if constant and pictures >= _FEWEST_FOR_SHARES:
        say(
            f"lora-tag: note: in over {_CONSTANT_SHARE:.0%} of the captions: {', '.join(constant)}; what belongs to "
            f"{shape.trigger} is better learned by that word alone (--exclude, or lora-clean --drop)"
        )


def as_records(options: Options) -> bool:
    """Whether records go to stdout: if asked for, and in a pipe, but for what only people read."""
    if options.jsonl is not None:
        return options.jsonl
    return not (sys.stdout.isatty() or options.explain)


def tell_frequency(tags: Counter[str]) -> None:
    """How many captions have each tag, the most frequent first, to stderr."""
    if QUIET.get():
        return
    for tag, number in sorted(tags.items(), key=lambda item: (-item[1], item[0])):
        say(f"{number:7d}  {tag}")
