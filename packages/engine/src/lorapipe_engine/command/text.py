"""Foreign text on a terminal: names of files and tags, what stands in models, networks and captions.

A terminal obeys escape sequences (they set its title, write over lines, and on some answer as if the user had typed),
and it shows text in the order that directional marks ask for, so that ``gpj.exe`` reads as ``exe.jpg``. All that the
commands print for people goes through :func:`printable`, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: object) -> str:
    r"""Text for a line of a terminal: what has no letter of its own is shown as an escape, as ``\x1b`` or ``\u202e``.

    Those are control characters, line ends, directional and other invisible marks, spaces other than the usual one,
    halves of surrogate pairs, and code points that are not assigned (``str.isprintable``).
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def one_line(text: object) -> str:
    """The same of a text that may have been written in several lines, as messages of libraries are."""
    return printable(" ".join(str(text).split()))


_ONE: Mapping[str, str] = MappingProxyType({"are": "is", "have": "has", "were": "was"})


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number of things: "1 module", "2,000 modules"; with a verb, given as of several: "1 module is", "2 modules
    are".
    """
    words = f"{number:,} {noun}{'' if number == 1 else 's'}"
    if not verb:
        return words
    return f"{words} {_ONE.get(verb, f'{verb}s') if number == 1 else verb}"


def hidden_letter(text: str) -> str | None:
    """The first character of a text that has no shape of its own, None where there is none: controls, directional and
    other formats, surrogates, ends of lines and paragraphs.
    """
    if text.isprintable():
        return None
    import unicodedata

    return next((letter for letter in text if unicodedata.category(letter) in _HIDDEN), None)


_NEXT_PAIR = re.compile(r"\s+(?=[A-Za-z_]\w*\s*=)")


def pairs_apart(words: Sequence[str]) -> tuple[str, ...]:
    """Words ``name=value``, where one word may hold several, as GUIs keep them: ``a=1 b=(2, 3)`` is two."""
    apart: list[str] = []
    for word in words:
        pieces = _NEXT_PAIR.split(word.strip())
        is_plain = all("=" in piece for piece in pieces) and not any(mark in word for mark in "'\"[{")
        apart += pieces if is_plain else [word]
    return tuple(apart)
