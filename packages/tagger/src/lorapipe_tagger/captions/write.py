"""Captions into files, without ever losing what stood there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lorapipe_engine.errors import InputError, OutputError
from lorapipe_engine.files.atomic import atomic_write
from lorapipe_engine.files.links import read_within
from lorapipe_engine.pictures.captions import decode_caption
from lorapipe_engine.pictures.joining import join_captions
from lorapipe_tagger.scoring.select import spelling
from lorapipe_tagger.settings import Existing

EXISTING: tuple[Existing, ...] = ("skip", "append", "prepend", "replace", "merge")


def read_existing(path: Path) -> str | None:
    """The caption that a file holds, all its lines; None where there is no file or nothing in it.

    Raises InputError if it cannot be read, is not UTF-8, or is a link out of its folder: what that leads to would end
    in a dataset, and in all that is made of it.
    """
    try:
        text = decode_caption(read_within(path, None), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return text.strip("\r\n") if text.strip() else None


def join_existing(
    before: str | None, tags: Sequence[str], mode: Existing, separator: str, *, front: int = 0
) -> str:
    """The caption to write: ``tags`` joined, or put together with the one ``before`` as
    :func:`~lorapipe_engine.pictures.joining.join_captions` does. ``front``: how many tags in front
    are a trigger and the like.
    """
    if before is None or mode == "replace" or mode == "skip":
        unique: dict[str, str] = {}
        for tag in tags:
            unique.setdefault(_key(tag), tag)
        return separator.join(unique.values())
    return join_captions(before, tags, mode, separator, _key, front=front)


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
