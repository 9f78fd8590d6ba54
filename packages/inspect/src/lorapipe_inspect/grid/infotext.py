"""Parameters of a picture as A1111 writes them: found in the file, and read.

The text is ``PROMPT``, ``Negative prompt: NEGATIVE`` and a last line of ``Key: value`` pairs. PNG has it as the text
``parameters``; JPEG and WebP as EXIF UserComment, ``UNICODE`` and UTF-16 with the high byte first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_engine.pictures.images import has_late_notes
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST_PAIRS = 3  # in a last line of parameters
_NEGATIVE = "Negative prompt:"
_TAG = re.compile(r"<(?:lora|lyco):([^<>]{1,500})>")
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
MOST_LETTERS = 1 << 20  # of a text
MOST_LINE = 1 << 14  # letters of the last line, whose reading may take their square


@dataclass(frozen=True)
class Tag:
    """A network that a prompt asks for: ``<lora:NAME:TE:UNET>``."""

    name: str
    te: float
    unet: float


@dataclass(frozen=True)
class Infotext:
    """What the parameters of a picture say. ``prompt`` has no tags of networks in it; ``pairs`` is the last line."""

    prompt: str = ""
    negative: str = ""
    pairs: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[Tag, ...] = ()


def read_infotext(text: str) -> Infotext:
    """Read parameters. A text of another kind is a prompt with nothing else; nothing is an error."""
    *lines, last = text.strip()[:MOST_LETTERS].split("\n")
    pairs = _PAIR.findall(last) if len(last) <= MOST_LINE else []
    if len(pairs) < _FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part, line = negative, line.removeprefix(_NEGATIVE).strip()
        part.append(line)
    text, tags = split_tags("\n".join(prompt))
    return Infotext(text, "\n".join(negative), {key: _unquoted(value) for key, value in pairs if value}, tags)


def split_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt without its tags of networks, and these. One whose strength is no number stays in the text."""
    tags: list[Tag] = []

    def take(match: re.Match[str]) -> str:
        tag = _tag(match[1])
        if tag is None:
            return match[0]
        tags.append(tag)
        return ""

    text = _TAG.sub(take, prompt)
    return re.sub(r"[ \t]{2,}", " ", text).strip().rstrip(",").rstrip() if tags else text.strip(), tuple(tags)


def _tag(inside: str) -> Tag | None:
    name, *rest = inside.split(":")
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    plain = [part for part in rest if "=" not in part]
    try:
        te = float(named.get("te", plain[0] if plain else "1"))
        unet = float(named.get("unet", plain[1] if len(plain) > 1 else str(te)))
    except ValueError:
        return None
    return Tag(name, te, unet)


def _unquoted(value: str) -> str:
    if value.startswith('"') and value.endswith('"'):
        try:
            text = json.loads(value)
        except ValueError:
            return value
        return text if isinstance(text, str) else value
    return value.strip()


# -------------------------------------------------------------------------------- in a file


def infotext_of(path: Path) -> str:
    """The parameters that stand in a picture, "" where there are none. Raises what Pillow raises for a broken one."""
    with open_picture(path) as picture:
        if picture.format == "PNG":
            if "parameters" not in picture.info and has_late_notes(path):
                with GATE.room(picture.width * picture.height):
                    picture.load()
            text = picture.info.get("parameters", "")
            return text if isinstance(text, str) else ""
        return _user_comment(picture)


def _user_comment(picture: Image) -> str:
    comment = exif_of(picture, late=False).get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return ""
    if comment.startswith(_UNICODE):
        return comment.removeprefix(_UNICODE).decode("utf-16-be", "replace")
    return comment.removeprefix(_ASCII).decode("utf-8", "replace").strip("\0")
