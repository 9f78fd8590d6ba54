"""How many CLIP tokens a caption takes: counted with the vocabulary's files, estimated without."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from lorapipe_engine.errors import InputError

_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
LETTERS_A_TOKEN = 6  # of a long word, in CLIP's vocabulary
HUB_FOLDERS = (
    "models--openai--clip-vit-large-patch14/snapshots/*",
    "models--stable-diffusion-v1-5--stable-diffusion-v1-5/snapshots/*/tokenizer",
    "models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/*/tokenizer",
)

Counter = Callable[[str], int]


def token_counter(folder: Path | None, hub: Path) -> tuple[Counter, bool]:
    """A function that counts a caption's tokens, and whether it is exact.

    Exact with ``vocab.json`` and ``merges.txt`` in ``folder``, or where they lie in the ``hub`` cache. Raises
    InputError for a ``folder`` without them.
    """
    if folder is not None:
        return _exact(folder), True
    for pattern in HUB_FOLDERS:
        for place in sorted(hub.glob(pattern)):
            if (place / "merges.txt").is_file():
                return _exact(place), True
    return estimate, False


def words_of(caption: str) -> list[str]:
    """The pieces that CLIP's tokenizer cuts text into before the byte pairs."""
    text = " ".join(unicodedata.normalize("NFC", caption).split()).lower()
    return _WORDS.findall(text)


def estimate(caption: str) -> int:
    """About the number of tokens: a word of up to seven letters is one, longer ones more."""
    return sum(
        1 if len(word) <= LETTERS_A_TOKEN + 1 else -(-len(word) // LETTERS_A_TOKEN)
        for word in words_of(caption)
    )


def _exact(folder: Path) -> Counter:
    ranks = _read_merges(folder)
    letters = _byte_letters()

    @lru_cache(maxsize=1 << 16)
    def count_word(word: str) -> int:
        symbols = [letters[byte] for byte in word.encode("utf-8", "replace")]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols))]
            rank, at = min(pairs)
            if rank == len(ranks):
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return len(symbols)

    return lambda caption: sum(count_word(word) for word in words_of(caption))


def _read_merges(folder: Path) -> dict[tuple[str, str], int]:
    """Pairs of symbols in the order in which they are joined. Raises InputError."""
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        size = len(dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: no tokenizer there; vocab.json and merges.txt are needed") from error
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs) or len(pairs) >= size:
        raise InputError(f"{path}: not the merges of a CLIP tokenizer")
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs)}


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it prints, else one from U+0100 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]
