"""What a step is: tags in, tags out, the same again when it is done twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lorapipe_dataset.clean.rules import Facts, Rules
from lorapipe_dataset.clean.tags import MARK, key_maker, matcher, split_caption

Step = Callable[[list[str], Facts], list[str]]


@dataclass
class Bench:
    """What the steps share: the comparison of tags, which tags are the user's own, counts over all captions."""

    rules: Rules
    counts: Mapping[str, int] = field(default_factory=dict)
    captions: int = 0

    def __post_init__(self) -> None:
        self.key = key_maker()
        rules = self.rules
        self.trigger = [tag for tag in split_caption(rules.trigger, rules.separators) if tag != MARK]
        self.own = frozenset(map(self.key, (*self.trigger, *rules.add)))
        self._kept = matcher(rules.keep)

    def stays(self, key: str) -> bool:
        """Whether no step may take a tag out: ``--keep`` has it, it is trigger or added, or the mark."""
        return key in self.own or key == MARK or self._kept(key)

    def category(self, key: str, facts: Facts) -> str | None:
        """The category of a tag, if it is known: by the caption's own source, else by the tag list."""
        return facts.categories.get(key) or self.rules.categories.get(key)


Builder = Callable[[Bench], "Step | None"]


def on_each(change: Callable[[str], str]) -> Step:
    """A step that changes each tag by itself; what becomes of a tag is remembered."""
    known = _Known(change)
    return lambda tags, _facts: [new for tag in tags if (new := known[tag])]


class _Known(dict[str, str]):
    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__()
        self._change = change

    def __missing__(self, tag: str) -> str:
        found = tag if tag == MARK else self._change(tag)
        if len(self) < 1 << 18:
            self[tag] = found
        return found
