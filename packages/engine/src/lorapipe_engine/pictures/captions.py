"""Captions: tags and text, the files they lie in, and how they vary from step to step.

The order of the operations is sd-scripts' (prefix and suffix, dropout of the whole caption, wildcards, fixed tags,
warm-up, shuffle, dropout of tags, secondary separator), so a caption option does here what it does there.
"""

from __future__ import annotations

import codecs
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorapipe_engine.errors import InputError

CAPTION_SUFFIXES = (".txt", ".caption")
KEEP_MARK = (
    "|||"  # sd-scripts' keep_tokens_separator as people write it: what stands before it stays in front
)
# The first halves of letters in UTF-16, of Latin to Arabic and Thai: as letters of their own nobody has them.
_HALVES = re.compile(r"[\x00-\x06\x0e]")
_FEW_HALVES = 8  # fewer than one in so many letters are strays
_LINE_ENDS = re.compile(r"\r\n?|\n")
_BRACES = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def split_tags(text: str, separator: str = ",") -> list[str]:
    """The tags of a caption, trimmed, without empty ones."""
    return [tag for tag in (piece.strip() for piece in text.split(separator)) if tag]


def join_tags(tags: Sequence[str], separator: str = ",") -> str:
    """Tags as a caption: ``a, b, c``."""
    mark = separator.strip()
    return (f"{mark} " if mark else separator).join(tags)


def read_caption(
    path: Path, *, every_line: bool = False, read: Callable[[Path], bytes] = Path.read_bytes
) -> str:
    """The caption in a text file: its first line that is not empty, or all of those, joined by newlines.

    Windows line ends are accepted, and what :func:`decode_caption` takes. ``read`` brings the bytes: a reader
    that follows no link out of the dataset, for one. Raises InputError for other encodings, and what ``read`` raises.
    """
    try:
        text = decode_caption(read(path), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    lines = caption_lines(text)
    return "\n".join(lines) if every_line else (lines[0] if lines else "")


def caption_lines(text: str) -> list[str]:
    """The lines of a caption that are not empty, trimmed. Line ends are those of files: other programs read what else
    Unicode has of them (U+2028, form feeds) as white space, and train what stands behind it.
    """
    return [line.strip() for line in _LINE_ENDS.split(text) if line.strip()]


def decode_caption(data: bytes, path: Path | str, encoding: str | None = None) -> str:
    """The text of a caption file: UTF-8, with or without a byte order mark, or UTF-16 with one; what is neither is read
    as ``encoding``, so that a folder may hold captions of both.

    A NUL character is left out. Raises InputError for bytes that are none of it, and for a text with so many control
    characters that it must be UTF-16 without its mark, which reads as text with one behind each letter.
    """
    is_marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_marked else "utf-8-sig")
        if is_marked or not _seems_utf16(text):
            return text.replace("\0", "") if "\0" in text else text
        reason, mend = (
            "control characters among its letters, as in UTF-16 without a byte order mark",
            _utf16(data),
        )
    except UnicodeDecodeError as error:
        reason = f"not {'UTF-16' if is_marked else 'UTF-8'} (byte {error.start})"
        mend = (
            "lora-clean --encoding NAME rewrites it (cp1252 of western Windows, cp1251 of Russian, cp932 or gb18030 of "
            "Japanese and Chinese)"
        )
    if encoding is None or is_marked:
        raise InputError(f"{path}: {reason}; {mend}, or save it as UTF-8 in an editor")
    try:
        return data.decode(encoding).replace("\0", "")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {encoding} (byte {error.start})") from error


def _seems_utf16(text: str) -> bool:
    halves = len(_HALVES.findall(text))
    return bool(halves) and halves * _FEW_HALVES >= len(text)


def _utf16(data: bytes) -> str:
    """The mend for UTF-16 without its mark, with the order that its bytes have."""
    even, odd = (len(_HALVES.findall(data[start::2].decode("latin-1"))) for start in (0, 1))
    return f"lora-clean --encoding utf-16-{'le' if odd > even else 'be'} rewrites it"


def caption_suffixes(extension: str) -> tuple[str, ...]:
    """The suffixes of caption files in the order they are tried: ``extension``, then the usual ones."""
    own = extension if extension.startswith(".") else f".{extension}"
    return tuple(dict.fromkeys((own, *CAPTION_SUFFIXES)))


@dataclass(frozen=True, kw_only=True)
class CaptionRule:
    """How captions vary. Rates are shares in 0..1; ``keep_tokens`` counts tags at the front that stay; text before
    ``keep_tokens_separator`` stays too (and after a second one). ``wildcards`` picks a line and one of ``{a|b}``.
    ``dropout_epochs`` n empties the captions of every n-th epoch (0: of none). With ``warmup_steps`` (a count, or below
    1 a share of the run; 0: off) the flexible tags come one by one, beginning with ``warmup_least``. Tags with
    ``secondary_separator`` between them are one, until all is done.
    """

    separator: str = ","
    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    dropout: float = 0.0
    dropout_epochs: int = 0
    tag_dropout: float = 0.0
    wildcards: bool = False
    secondary_separator: str = ""
    warmup_least: int = 1
    warmup_steps: float = 0.0

    @property
    def is_fixed(self) -> bool:
        """Whether a caption is the same at every step."""
        return not (self.drops or self.is_rewritten or self.warmup_steps)

    @property
    def drops(self) -> bool:
        """Whether captions are left empty at times."""
        return bool(self.dropout or self.dropout_epochs)

    @property
    def is_rewritten(self) -> bool:
        """Whether a caption's tags are drawn anew for every step."""
        return bool(self.shuffle or self.tag_dropout or self.wildcards)


@dataclass(frozen=True)
class When:
    """The place in a run: finished epochs and steps, and the steps of the whole run."""

    epoch: int = 0
    step: int = 0
    steps: int = 1


START = When()


def vary_caption(text: str, rule: CaptionRule, draw: random.Random, when: When = START) -> str:
    """The caption of one step: empty where it is dropped, else as :func:`rewrite_caption` has it."""
    return "" if drops_caption(rule, draw, when) else rewrite_caption(text, rule, draw, when)


def drops_caption(rule: CaptionRule, draw: random.Random, when: When = START) -> bool:
    """Whether the whole caption is left out this time."""
    if rule.dropout and draw.random() < rule.dropout:
        return True
    return bool(rule.dropout_epochs) and (when.epoch + 1) % rule.dropout_epochs == 0


def rewrite_caption(text: str, rule: CaptionRule, draw: random.Random, when: When = START) -> str:
    """The caption with prefix and suffix, its wildcards chosen, its tags shuffled, dropped or not yet there."""
    lines = text.split("\n") if rule.wildcards else text.split("\n", 1)[:1]
    lines = [" ".join(part for part in (rule.prefix, line, rule.suffix) if part) for line in lines]
    text = _pick_wildcards(draw.choice(lines), draw) if rule.wildcards else lines[0]
    # A mark is never a tag, and ends the tags on both of its sides.
    is_marked = bool(rule.keep_tokens_separator) and rule.keep_tokens_separator in text
    if is_marked or rule.shuffle or rule.tag_dropout or rule.warmup_steps:
        text = _vary_tags(text, rule, draw, when)
    if rule.secondary_separator:
        text = text.replace(rule.secondary_separator, rule.separator)
    return text


def fixed_caption(text: str, rule: CaptionRule) -> str:
    """The caption as it stands, with what is put before and after it: nothing drawn, nothing left out."""
    still = replace(rule, shuffle=False, tag_dropout=0.0, warmup_steps=0.0)
    # Of wildcards the first choices of a stream of their own, the same at every time.
    return rewrite_caption(text, still, random.Random(text))


def prompt_caption(text: str, rules: Iterable[CaptionRule]) -> str:
    """A prompt as captions of ``rules`` are trained: their marks taken out, of wildcards the same choice at every time.

    Nothing is put before or after it, and all of its lines stay.
    """
    for rule in dict.fromkeys(rules):
        marks = CaptionRule(
            separator=rule.separator,
            keep_tokens_separator=rule.keep_tokens_separator,
            secondary_separator=rule.secondary_separator,
            wildcards=rule.wildcards,
        )
        text = "\n".join(fixed_caption(line, marks) for line in text.split("\n"))
    return text


def caption_tags(text: str, rule: CaptionRule) -> list[str]:
    """All tags of a caption as its file has them, with the marks between them taken out: of its first line, with
    wildcards of all lines."""
    lines = text.split("\n") if rule.wildcards else text.split("\n", 1)[:1]
    tags: list[str] = []
    for line in lines:
        for mark in (rule.keep_tokens_separator, rule.secondary_separator):
            line = line.replace(mark, rule.separator) if mark else line
        tags += split_tags(line, rule.separator)
    return tags


def _vary_tags(text: str, rule: CaptionRule, draw: random.Random, when: When) -> str:
    head, flexible, tail = _fixed_parts(text, rule)
    warm = rule.warmup_steps if rule.warmup_steps >= 1 else rule.warmup_steps * when.steps
    if when.step < warm:
        grown = when.step * (len(flexible) - rule.warmup_least) / warm
        flexible = flexible[: math.floor(grown) + rule.warmup_least]
    if rule.shuffle:
        draw.shuffle(flexible)
    if rule.tag_dropout:
        flexible = [tag for tag in flexible if draw.random() >= rule.tag_dropout]
    return join_tags([*head, *flexible, *tail], rule.separator)


def _fixed_parts(text: str, rule: CaptionRule) -> tuple[list[str], list[str], list[str]]:
    mark = rule.keep_tokens_separator
    if mark and mark in text:
        # Of marks behind the second none means anything.
        texts = [piece.replace(mark, rule.separator) for piece in text.split(mark, 2)]
        pieces = [split_tags(piece, rule.separator) for piece in texts]
        return pieces[0], pieces[1], pieces[2] if len(pieces) > 2 else []
    tags = split_tags(text, rule.separator)
    return tags[: rule.keep_tokens], tags[rule.keep_tokens :], []


def _pick_wildcards(line: str, draw: random.Random) -> str:
    # Doubled braces are literal ones; they are put aside while choices are made.
    line = line.replace("{{", "\0").replace("}}", "\1")
    while match := _BRACES.search(line):
        line = line[: match.start()] + draw.choice(match.group(1).split("|")) + line[match.end() :]
    return line.replace("\0", "{").replace("\1", "}")
