"""``--preserve``: for which captions the network is held to the base, how strongly, and at how many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.triggers import has_word

SOURCES = ("trigger", "caption", "file")
WORDS = (*SOURCES, "class", "weight", "every", "unet", "te")


@dataclass(frozen=True)
class Preserve:
    """What ``--preserve`` asks for.

    ``swaps``: triggers, each with the text that takes its place in the step's own caption ("" takes it out).
    ``captions``: whole captions in the place of these, of which each picture draws one. With neither it is the
    pictures of marked subsets that are held, under their own captions. ``weight``: of the term's loss; ``every``: it
    counts at one step in so many; ``unet``, ``te``: what the term's gradient in these parts is multiplied with.
    """

    swaps: tuple[tuple[str, str], ...] = ()
    captions: tuple[str, ...] = ()
    file: Path | None = None
    weight: float = 1.0
    every: int = 1
    unet: float = 1.0
    te: float = 1.0

    @property
    def has_captions(self) -> bool:
        """Whether the term has captions of its own, so that the network predicts for them besides."""
        return bool(self.swaps or self.captions or self.file)


@dataclass
class _Words:
    """The words, as they are read one by one."""

    swaps: list[tuple[str, str | None]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    file: Path | None = None
    numbers: dict[str, float] = field(default_factory=dict)


def read_preserve(words: Sequence[str]) -> Preserve | None:
    """Parse the words of the option; None where there are none. Raises ConfigError for what means nothing."""
    if not words:
        return None
    read = _Words()
    for word in words:
        name, sign, text = word.partition("=")
        name, text = name.strip(), text.strip()
        if not sign:
            raise ConfigError(
                f"preserve: {word!a} is not of the form name=value, as trigger=mina class=1girl"
            )
        if name not in WORDS:
            raise ConfigError(
                f"preserve: '{name}' is not known{nearest(name, WORDS) or '; known: ' + ', '.join(WORDS)}"
            )
        _take(read, name, text)
    kinds = [
        kind for kind, given in zip(SOURCES, (read.swaps, read.captions, read.file), strict=True) if given
    ]
    if len(kinds) > 1:
        raise ConfigError(
            f"preserve: {kinds[0]} and {kinds[1]} are two ways to name captions; leave one of them out"
        )
    numbers = read.numbers
    asked = Preserve(
        tuple((trigger, text or "") for trigger, text in read.swaps),
        tuple(read.captions),
        read.file,
        numbers.get("weight", 1.0),
        int(numbers.get("every", 1)),
        numbers.get("unet", 1.0),
        numbers.get("te", 1.0),
    )
    _check_swaps(asked)
    if not asked.unet and not asked.te:
        raise ConfigError("preserve: with unet=0 and te=0 no part is held; leave preserve out")
    return asked


def _take(read: _Words, name: str, text: str) -> None:
    if name == "trigger":
        if not text:
            raise ConfigError("preserve: trigger= names no word; give the one that calls what is learned")
        read.swaps.append((text, None))
    elif name == "class":
        if not read.swaps or read.swaps[-1][1] is not None:
            raise ConfigError("preserve: class= follows the trigger= whose place it takes")
        read.swaps[-1] = (read.swaps[-1][0], text)
    elif name == "caption":
        read.captions.append(text)
    elif name in read.numbers or (name == "file" and read.file):
        raise ConfigError(f"preserve: {name} is given twice")
    elif name == "file":
        if not text:
            raise ConfigError("preserve: file= names no file")
        read.file = Path(text)
    else:
        read.numbers[name] = _number(name, text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name == "every":
        if value >= 1 and value.is_integer():
            return value
        raise ConfigError(f"preserve: every takes a whole number of 1 or more, not '{text}'")
    if not (0 <= value < math.inf):
        raise ConfigError(f"preserve: {name} takes a number of 0 or more, not '{text}'")
    return value


def _check_swaps(asked: Preserve) -> None:
    for _, text in asked.swaps:
        for other, _ in asked.swaps:
            if has_word(text, other):
                raise ConfigError(
                    f"preserve: the class {text!a} has the trigger {other!a} in it, so what is held would be what is "
                    "learned; name the class without it"
                )
    names = [trigger.casefold() for trigger, _ in asked.swaps]
    if len(set(names)) < len(names):
        raise ConfigError("preserve: a trigger is given twice")
