"""Unicode NFC, single spaces, no control characters; small letters on request."""

from __future__ import annotations

import re
import unicodedata

from lorapipe_dataset.clean.captions.steps.step import Bench, Each, Step
from lorapipe_dataset.clean.captions.tags import unescape

# Zero-width and byte-order signs look like nothing and make two tags of one.
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\u00ad]|[\x00-\x08\x0e-\x1b\x7f]")


def build(bench: Bench) -> Step | None:
    """The step; always there."""
    rules = bench.rules

    def change(tag: str) -> list[str]:
        tag = tag.strip()
        if tag in bench.own_tags:
            return [tag]
        tag = tidy(tag)
        if rules.escape is False:
            tag = unescape(tag)
        tag = tag.lower() if rules.lower else tag
        return [tag] if tag else []

    return Each(change)


def tidy(text: str) -> str:
    """NFC, one space for each run of white space, nothing invisible."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split()) if "  " in text or text[:1] == " " or text[-1:] == " " else text
    # Joiners (U+200C, U+200D) have a meaning in some scripts and in emoji.
    return " ".join(
        unicodedata.normalize("NFC", _INVISIBLE.sub("", unicodedata.normalize("NFC", text))).split()
    )
