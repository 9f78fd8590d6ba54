"""Tags that are put to a caption that is there: behind it, in front of it, or merged with it.

Each line of a caption is one that may be trained, so each gets the tags. What stands before ``|||`` (sd-scripts'
``keep_tokens_separator``) stays in front, what stands behind a second one stays at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from lorapipe_engine.pictures.captions import KEEP_MARK, caption_lines, split_tags

Joining = Literal["append", "prepend", "merge"]
_WIDE_COMMA = "，"


def join_captions(
    before: str,
    tags: Sequence[str],
    how: Joining,
    separator: str,
    key: Callable[[str], str],
    *,
    front: int = 0,
) -> str:
    """The caption ``before`` with the ``tags`` that are not in it; ``key`` gives what tags are compared by.

    ``append`` and ``prepend`` leave the old words as they are. ``merge`` gives the first ``front`` tags (a trigger),
    then the old tags, then the other new ones, each once. Separators at a line's ends are dropped.
    """
    lines = caption_lines(before)
    if not lines:
        return separator.join(_each_once(tags, key))
    return "\n".join(_join_line(line, tags, how, separator, key, front) for line in lines)


def _join_line(
    line: str, tags: Sequence[str], how: Joining, separator: str, key: Callable[[str], str], front: int
) -> str:
    mark = separator.strip() or separator
    parts = [_trim(part, mark) for part in line.split(KEEP_MARK)]
    body = min(1, len(parts) - 1)
    known = {key(tag) for part in parts for tag in _split(part, mark)}
    # A tag that has a comma itself stands there in pieces.
    new = [tag for tag in _each_once(tags, key) if not known.issuperset(map(key, split_tags(tag, mark)))]
    lead = {key(tag) for tag in tags[:front]}
    if how == "merge":
        first = _each_once([*tags[:front], *_split(parts[0], mark)], key)
        rest = [tag for tag in new if key(tag) not in lead]
        if body == 0:
            return separator.join(_each_once([*first, *rest], key))
        old = [tag for tag in _split(parts[1], mark) if key(tag) not in set(map(key, first))]
        parts[0], parts[1] = separator.join(first), separator.join(_each_once([*old, *rest], key))
    elif how == "append":
        parts[body] = _add(separator, [parts[body], *new])
    else:
        # A trigger belongs in front of all, also of what is kept there.
        foremost = [tag for tag in new if key(tag) in lead] if body else []
        parts[body] = _add(separator, [*(tag for tag in new if tag not in foremost), parts[body]])
        parts[0] = _add(separator, [*foremost, parts[0]]) if body else parts[0]
    return f" {KEEP_MARK} ".join(parts).strip()


def _trim(text: str, mark: str) -> str:
    """Without white space and separators at the ends."""
    while (shorter := text.strip().removeprefix(mark).removesuffix(mark).removesuffix(_WIDE_COMMA)) != text:
        text = shorter
    return text


def _split(text: str, mark: str) -> list[str]:
    return split_tags(text.replace(_WIDE_COMMA, mark) if mark == "," else text, mark)


def _add(separator: str, pieces: Iterable[str]) -> str:
    return separator.join(piece for piece in pieces if piece)


def _each_once(tags: Iterable[str], key: Callable[[str], str]) -> list[str]:
    """The tags without repeats; the first stays."""
    unique: dict[str, str] = {}
    for tag in tags:
        unique.setdefault(key(tag), tag)
    return list(unique.values())
