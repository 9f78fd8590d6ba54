"""What a step is: tags in, tags out, the same again when it is done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from lorapipe_dataset.clean.captions.rules import Facts, Rules
from lorapipe_dataset.clean.captions.tags import MARK, key_maker, matcher, split_caption

Step = Callable[[list[str], Facts], list[str]]
Value = TypeVar("Value")
MOST = 1 << 18  # texts that are remembered


class Memo(dict[str, Value], Generic[Value]):
    """What a function makes of a text, remembered: a dataset has few different tags."""

    def __init__(self, function: Callable[[str], Value]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> Value:
        value = self._function(text)
        if len(self) < MOST:
            self[text] = value
        return value


class Each:
    """A step that looks at each tag by itself: the tags that come in its place, none if it goes."""

    def __init__(self, change: Callable[[str], Sequence[str]]) -> None:
        self.change = change
        self._known = Memo(self._look)
        self._fixed: set[str] = set()  # tags that stay as they are, most of them in a second round

    def __call__(self, tags: list[str], _facts: Facts) -> list[str]:
        if self._fixed.issuperset(tags):
            return tags
        return list(chain.from_iterable(map(self._known.__getitem__, tags)))

    def _look(self, tag: str) -> tuple[str, ...]:
        changed = (tag,) if tag == MARK else tuple(self.change(tag))
        if changed == (tag,) and len(self._fixed) < MOST:
            self._fixed.add(tag)
        return changed


def fuse(first: Each, second: Each) -> Each:
    """Two such steps as one."""
    return Each(lambda tag: [new for middle in first.change(tag) for new in second.change(middle)])


@dataclass
class Bench:
    """What the steps share: the comparison of tags, which tags are the user's own, counts over all captions."""

    rules: Rules
    counts: Mapping[str, int] = field(default_factory=dict)
    captions: int = 0

    def __post_init__(self) -> None:
        self.key = key_maker()
        self.cut: Counter[str] = Counter()  # what the limits took away
        rules = self.rules
        self.trigger = self._split(rules.trigger)
        self.add = [tag for text in rules.add for tag in self._split(text)]
        self.own_tags = frozenset((*self.trigger, *self.add))
        self.own = frozenset(map(self.key, self.own_tags))
        self._kept = matcher(rules.keep)
        self._last: tuple[list[str], list[str]] = ([], [])

    def _split(self, text: str) -> list[str]:
        """Tags as they will be read again: what has a sign between tags in it is several."""
        return [tag for tag in split_caption(text, self.rules.separators) if tag != MARK]

    def keys(self, tags: list[str]) -> list[str]:
        """What the tags are compared by. Steps leave their lists as they are, so the last one's are remembered."""
        if self._last[0] is not tags:
            self._last = (tags, list(map(self.key, tags)))
        return self._last[1]

    def stays(self, key: str) -> bool:
        """Whether no step may take a tag out: ``--keep`` has it, it is trigger or added, or the mark."""
        return key in self.own or key == MARK or self._kept(key)

    def category(self, key: str, facts: Facts) -> str | None:
        """The category of a tag, if it is known: by the caption's own source, else by the tag list."""
        return facts.categories.get(key) or self.rules.categories.get(key)

    def without(self, out: set[str], tags: list[str], keys: list[str]) -> list[str]:
        """The tags whose keys are not in ``out``, or that stay whatever happens."""
        if out.isdisjoint(keys):
            return tags
        return [tag for tag, key in zip(tags, keys, strict=True) if key not in out or self.stays(key)]


Builder = Callable[[Bench], "Step | None"]
