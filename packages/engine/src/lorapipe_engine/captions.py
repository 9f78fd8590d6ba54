"""Captions: tags and text, the files they lie in, and how they vary from step to step.

The order of the operations is sd-scripts' (prefix and suffix, dropout of the whole caption, wildcards, fixed tags,
shuffle, dropout of tags), so a caption option does here what it does there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.errors import InputError

CAPTION_SUFFIXES = (".txt", ".caption")
_BRACES = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class Caption:
    """A caption and the file it stands in."""

    text: str
    path: Path


def split_tags(text: str, separator: str = ",") -> list[str]:
    """The tags of a caption, trimmed, without empty ones."""
    return [tag for tag in (piece.strip() for piece in text.split(separator)) if tag]


def join_tags(tags: Sequence[str], separator: str = ",") -> str:
    """Tags as a caption: ``a, b, c``."""
    mark = separator.strip()
    return (f"{mark} " if mark else separator).join(tags)


def read_caption(path: Path, *, every_line: bool = False) -> str:
    """The caption in a text file: its first line that is not empty, or all of those, joined by newlines.

    A byte order mark and Windows line ends are accepted. Raises InputError for a file that is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8, or convert it with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines) if every_line else (lines[0] if lines else "")


def find_caption(picture: Path, extension: str = ".txt", *, every_line: bool = False) -> Caption | None:
    """The caption beside a picture, or None: the file with ``extension``, else .txt, else .caption."""
    for suffix in dict.fromkeys((_dotted(extension), *CAPTION_SUFFIXES)):
        path = picture.with_name(picture.stem + suffix)
        if path.is_file():
            return Caption(read_caption(path, every_line=every_line), path)
    return None


def _dotted(extension: str) -> str:
    return extension if extension.startswith(".") else f".{extension}"


@dataclass(frozen=True, kw_only=True)
class CaptionRule:
    """How captions vary. Rates are shares in 0..1; ``keep_tokens`` counts tags at the front that stay; text before
    ``keep_tokens_separator`` stays too (and after a second one). ``wildcards`` picks a line and one of ``{a|b}``."""

    separator: str = ","
    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    dropout: float = 0.0
    tag_dropout: float = 0.0
    wildcards: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether a caption is the same at every step."""
        return not (self.shuffle or self.dropout or self.tag_dropout or self.wildcards)


def vary_caption(text: str, rule: CaptionRule, draw: random.Random) -> str:
    """The caption of one step."""
    text = " ".join(part for part in (rule.prefix, text, rule.suffix) if part)
    if rule.dropout and draw.random() < rule.dropout:
        return ""
    text = _pick_wildcards(text, draw) if rule.wildcards else text.split("\n", 1)[0]
    if rule.shuffle or rule.tag_dropout:
        text = _vary_tags(text, rule, draw)
    # The mark itself is never a tag.
    if rule.keep_tokens_separator:
        text = text.replace(rule.keep_tokens_separator, "")
    return text


def _vary_tags(text: str, rule: CaptionRule, draw: random.Random) -> str:
    head, flexible, tail = _fixed_parts(text, rule)
    if rule.shuffle:
        draw.shuffle(flexible)
    if rule.tag_dropout:
        flexible = [tag for tag in flexible if draw.random() >= rule.tag_dropout]
    return join_tags([*head, *flexible, *tail], rule.separator)


def _fixed_parts(text: str, rule: CaptionRule) -> tuple[list[str], list[str], list[str]]:
    mark = rule.keep_tokens_separator
    if mark and mark in text:
        pieces = [split_tags(piece, rule.separator) for piece in text.split(mark, 2)]
        return pieces[0], pieces[1], pieces[2] if len(pieces) > 2 else []
    tags = split_tags(text, rule.separator)
    return tags[: rule.keep_tokens], tags[rule.keep_tokens :], []


def _pick_wildcards(text: str, draw: random.Random) -> str:
    line = draw.choice(text.split("\n"))
    # Doubled braces are literal ones; they are put aside while choices are made.
    line = line.replace("{{", "\0").replace("}}", "\1")
    while found := _BRACES.search(line):
        line = line[: found.start()] + draw.choice(found.group(1).split("|")) + line[found.end() :]
    return line.replace("\0", "{").replace("\1", "}")
