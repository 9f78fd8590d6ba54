"""Signs in captions that mean something to one option or another, and are trained as words without it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorapipe_engine.pictures.captions import KEEP_MARK, CaptionRule

if TYPE_CHECKING:
    from lorapipe_engine.datasets.scan import Dataset, Picture
    from lorapipe_engine.settings import DataSettings

WEIGHT = re.compile(r"(?<!\\)[(\[][^()\[\]]+:\s*[+-]?\d*\.?\d+[)\]]")
# Networks called by name, and words that some user interfaces read as commands.
COMMAND = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>|\bBREAK\b|\bADDROW\b|\bADDCOL\b")
# What every one of them has; most captions have none.
LIKELY = re.compile(r"[|(\[<{]|BREAK|ADDROW|ADDCOL")
WILDCARD = re.compile(r"(?<!\{)\{[^{}|]*\|[^{}]*\}(?!\})")


@dataclass(frozen=True)
class _Sign:
    """What is looked for, the options under which it is obeyed, and what to say where it is not."""

    find: Callable[[str], bool]
    is_obeyed: Callable[[CaptionRule, DataSettings], bool]
    what: str
    mend: str


_SIGNS = (
    _Sign(
        lambda text: KEEP_MARK in text,
        lambda rule, _: KEEP_MARK in (rule.keep_tokens_separator, rule.separator, rule.secondary_separator),
        f"'{KEEP_MARK}'",
        f"keep_tokens_separator '{KEEP_MARK}' keeps what stands before it in front",
    ),
    _Sign(
        lambda text: WILDCARD.search(text) is not None,
        lambda rule, _: rule.wildcards,
        "choices such as {a|b}",
        "enable_wildcard takes one at a time",
    ),
    _Sign(
        lambda text: WEIGHT.search(text) is not None,
        lambda _, data: data.weighted_captions,
        "weights such as (tag:1.2)",
        "weighted_captions reads them, lora-clean --strip-weights takes them out",
    ),
    _Sign(
        lambda text: COMMAND.search(text) is not None,
        lambda *_: False,
        "signs of prompts such as <lora:name:1> or BREAK",
        "lora-clean --drop 're:<.*>' --drop BREAK takes them out",
    ),
)


def sign_notes(data: DataSettings, dataset: Dataset) -> list[str]:
    """A line for each kind of sign that the captions have and that no option obeys."""
    likely = [picture for picture in dataset.pictures if LIKELY.search(picture.caption)]
    return [line for sign in _SIGNS if (line := _note(sign, list(_having(sign, likely, data, dataset))))]


def _having(
    sign: _Sign, pictures: Sequence[Picture], data: DataSettings, dataset: Dataset
) -> Iterator[Picture]:
    for picture in pictures:
        if sign.find(picture.caption) and not sign.is_obeyed(dataset.subset_of(picture).captions, data):
            yield picture


def _note(sign: _Sign, pictures: list[Picture]) -> str | None:
    if not pictures:
        return None
    count = "1 caption has" if len(pictures) == 1 else f"{len(pictures)} captions have"
    return f"{count} {sign.what} ({pictures[0].path.name}), trained as it stands: {sign.mend}"
