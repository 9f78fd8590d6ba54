"""Weights in prompts and captions, in the syntax of AUTOMATIC1111's webui, and BREAK."""

from __future__ import annotations

import re
from collections.abc import Sequence

Piece = tuple[str, float]  # a text, and what its states are multiplied with
EMPHASIS = 1.1
BREAK: Piece = ("BREAK", -1.0)

_MARK = re.compile(r"\\[()\[\]\\]|[(\[\])]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|[\\:]")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_weights(caption: str) -> list[Piece]:
    """Pieces of a caption, each with its multiplier.

    ``(x)`` is 1.1, ``[x]`` 1/1.1, ``(x:1.3)`` 1.3; nested ones multiply; a backslash makes the next bracket
    plain (and vanishes anywhere else, as there). An unclosed bracket reaches to the end, a closing one too
    many is plain text. Never empty: "" is [("", 1)].
    """
    return _parse(caption, breaks=False)


def parse_prompt(prompt: str) -> list[Piece]:
    """The same of a prompt, in which the word BREAK, in capitals, is the piece :data:`BREAK`.

    Inside a weight that is not 1 it is a word like others, with the negative of that weight, as in A1111.
    """
    return _parse(prompt, breaks=True)


def split_chunks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces between BREAKs, each list beginning a new chunk of 75 tokens. Never empty."""
    chunks: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece == BREAK:
            chunks.append([])
        else:
            chunks[-1].append(piece)
    return chunks


def _parse(text: str, *, breaks: bool) -> list[Piece]:
    texts: list[str] = []
    factors: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for index in range(opened[kind].pop(), len(factors)):
            factors[index] *= factor

    for mark in _MARK.findall(text):
        if mark in opened:
            opened[mark].append(len(texts))
        elif mark == ")" and opened["("]:
            close("(", EMPHASIS)
        elif mark == "]" and opened["["]:
            close("[", 1 / EMPHASIS)
        elif mark[0] == ":" and mark[-1] == ")" and opened["("]:
            close("(", float(mark[1:-1]))
        else:
            plain = mark[1:] if mark[0] == "\\" else mark
            for place, part in enumerate(_BREAK.split(plain) if breaks else [plain]):
                texts += [BREAK[0], part] if place else [part]
                factors += [BREAK[1], 1.0] if place else [1.0]
    for kind, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
        while opened[kind]:
            close(kind, factor)
    return _merged(texts, factors)


def _merged(texts: Sequence[str], factors: Sequence[float]) -> list[Piece]:
    """Neighbours of one factor joined, so that words are not cut at plain brackets and colons."""
    pieces: list[Piece] = []
    for piece, factor in zip(texts, factors, strict=True):
        if pieces and pieces[-1][1] == factor:
            pieces[-1] = (pieces[-1][0] + piece, factor)
        else:
            pieces.append((piece, factor))
    return pieces or [("", 1.0)]
