"""Networks in prompts: ``<lora:NAME>``, ``<lora:NAME:0.8>``, ``<lora:NAME:TE:UNET>``, ``<lora:NAME:te=0.5:unet=1>``.

A1111's numeric forms, all of them. What other extensions add (``lbw=``, ``dyn=``) and other kinds of networks
(``<hypernet:...>``) are refused by name, because leaving them out would draw another picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorapipe_engine.errors import ConfigError

_TAG = re.compile(r"<(\w+):([^>]+)>")
_KINDS = ("lora", "lyco")
_SHORT_TAG = re.compile(r"<(lora|lyco):([^<>]{1,500})>")  # whose search takes no longer than the text
_UNCLOSED = re.compile(r"<(?:lora|lyco):[^>]*$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?")
_PARTS = ("te", "unet")
MOST_STRENGTH = 1000.0


@dataclass(frozen=True)
class Tag:
    """A network that a prompt asks for: its name as written, the strengths of text encoder and UNet."""

    name: str
    te: float = 1.0
    unet: float = 1.0

    def text(self) -> str:
        """The tag as A1111 reads it; one number where both strengths are equal."""
        if self.te == self.unet:
            return f"<lora:{self.name}:{shown_strength(self.te)}>"
        return f"<lora:{self.name}:{shown_strength(self.te)}:{shown_strength(self.unet)}>"


def shown_strength(value: float) -> str:
    """A strength in plain digits, without an exponent, which CivitAI's parser does not know: 1, 0.8, 0.00001."""
    text = f"{value:.8f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def split_tags(prompt: str, where: str) -> tuple[str, tuple[Tag, ...]]:
    """The prompt without its tags (spaces stay), and these in order; the same tag twice is two.

    ``where`` names the prompt in errors. Raises ConfigError for strengths that are no numbers and for what is not
    supported.
    """
    tags = tuple(_read_tag(match[0], match[1], match[2], where) for match in _TAG.finditer(prompt))
    return _TAG.sub("", prompt), tags


def split_known_tags(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """The prompt of a picture that is there already without its tags of networks, and these; one that would be refused
    stays in the text. Spaces and a comma that the tags leave go with them.
    """
    tags: list[Tag] = []

    def take(match: re.Match[str]) -> str:
        try:
            tags.append(_read_tag(match[0], match[1], match[2], "prompt"))
        except ConfigError:
            return match[0]
        return ""

    text = _SHORT_TAG.sub(take, prompt)
    if tags:
        text = re.sub(r"[ \t]{2,}", " ", text).strip().rstrip(",")
    return text.strip(), tuple(tags)


def tag_notes(prompt: str) -> Iterator[str]:
    """What looks like a tag and is text, for A1111 too."""
    match = _UNCLOSED.search(_TAG.sub("", prompt))
    if match:
        yield f"'{match[0][:60]}' has no '>', so it is text"


def refuse_tags(negative: str, where: str) -> None:
    """Raise ConfigError for a tag in a negative prompt, where A1111 leaves it as text and loads nothing."""
    match = _TAG.search(negative)
    if match and match[1].lower() in (*_KINDS, "hypernet"):
        raise ConfigError(f"{where}: {match[0]} has no effect in a negative prompt; put it into the prompt")


def _read_tag(tag: str, kind: str, inside: str, where: str) -> Tag:
    if kind not in _KINDS:
        hint = f"; write <lora:{inside}>" if kind.lower() in _KINDS else "; <lora:NAME:0.8> is"
        raise ConfigError(f"{where}: {tag} is not supported{hint}")
    name, *words = inside.split(":")
    values: dict[str, float] = {}
    for place, word in enumerate(words):
        key, sign, text = word.partition("=")
        part = key.strip() if sign else (_PARTS[place] if place < len(_PARTS) else "dyn")
        if part not in _PARTS:
            raise ConfigError(f"{where}: {tag}: {part}= is not supported; te= and unet= are")
        values[part] = _strength(text if sign else word, tag, where)
    if "=" in name:
        raise ConfigError(f"{where}: {tag}: the network's name comes first, and has no '=' in it")
    te = values.get("te", 1.0)
    return Tag(name, te, values.get("unet", te))


def _strength(text: str, tag: str, where: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise ConfigError(f"{where}: {tag}: '{text}' is no number")
    value = float(text)
    if not math.isfinite(value) or abs(value) > MOST_STRENGTH:
        raise ConfigError(f"{where}: {tag}: a strength is at most {MOST_STRENGTH:g}")
    return value
