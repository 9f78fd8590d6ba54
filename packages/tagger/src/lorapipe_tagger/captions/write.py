"""Captions into files, without ever losing what stood there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorapipe_engine.errors import InputError, OutputError
from lorapipe_engine.files.atomic import atomic_write
from lorapipe_engine.files.links import read_within
from lorapipe_engine.pictures.captions import split_tags
from lorapipe_tagger.scoring.select import spelling
from lorapipe_tagger.settings import Existing

EXISTING: tuple[Existing, ...] = ("skip", "append", "prepend", "replace", "merge")


def read_existing(path: Path) -> str | None:
    """The caption that a file holds, all its lines; None where there is no file or nothing in it.

    Raises InputError if it cannot be read, is not UTF-8, or is a link out of its folder: what that leads to would end
    in a dataset, and in all that is made of it.
    """
    try:
        text = read_within(path, None).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}), so it is left alone") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return text.strip("\r\n") if text.strip() else None


def join_existing(
    before: str | None, tags: Sequence[str], mode: Existing, separator: str, *, path: Path, front: int = 0
) -> str:
    """The caption to write: ``tags`` joined, or put together with the one ``before``.

    ``append`` and ``prepend`` leave the old text as it is and add the tags that are not in it. ``merge`` gives the
    first ``front`` tags (trigger and the like), then the old tags, then the other new ones, each once. Raises
    InputError for a merge with several lines.
    """
    front = len(set(map(_key, tags[:front])))
    tags = _each_once(tags)
    if before is None or mode == "replace":
        return separator.join(tags)
    mark = separator.strip() or separator
    old = [tag for line in before.splitlines() for tag in split_tags(line, mark)]
    known = {_key(tag) for tag in old}
    # A tag that has a comma itself stands there in pieces.
    new = [tag for tag in tags if not known.issuperset(map(_key, split_tags(tag, mark)))]
    if mode == "append":
        return separator.join([before, *new])
    if mode == "prepend":
        return separator.join([*new, before])
    if len(before.splitlines()) > 1:
        raise InputError(f"{path}: has several lines, which a merge would lose; give --existing append")
    return separator.join(_each_once([*tags[:front], *old, *(tag for tag in tags[front:] if tag in new)]))


def _each_once(tags: Iterable[str]) -> list[str]:
    """The tags without repeats, escaped or not; the first stays."""
    found: dict[str, str] = {}
    for tag in tags:
        found.setdefault(_key(tag), tag)
    return list(found.values())


def _key(tag: str) -> str:
    """One form for the spellings of a tag, escaped or not."""
    return spelling(tag.replace("\\(", "(").replace("\\)", ")"))


class ChangedMeanwhile(OutputError):
    """Another program wrote the caption since it was read; it was left as that program has it."""


def write_caption(path: Path, text: str, *, before: str | None, replace: bool) -> None:
    """Write a caption and a line end, in UTF-8: the file is the old one or the whole new one at any time.

    Unless ``replace``, a file that no longer holds ``before`` stays as it is, and ChangedMeanwhile is raised; that is
    looked at while the folder is locked, as the other tools lock it when they change captions. Raises OutputError.
    """

    def check() -> None:
        if not replace and read_existing(path) != before:
            raise ChangedMeanwhile(f"{path}: another program has just written it, so it is left alone")

    with atomic_write(path, force=replace or os.path.lexists(path), check=check) as file:
        file.write(f"{text}\n".encode("utf-8", "surrogateescape"))


def difference(before: str | None, after: str) -> str:
    """What a dry run shows of a caption: removed and new lines."""
    if before == after:
        return "  (unchanged)"
    old = [f"- {line}" for line in (before or "").splitlines()]
    return "\n".join([*old, *(f"+ {line}" for line in after.splitlines() or [""])])
