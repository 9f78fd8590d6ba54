"""Options that mean one thing in every tool, whatever each of them calls it first: one table of their spellings.

A tool declares an option under one of a row's names; the command line takes the others too. The help shows the row's
letter and first word, and the names that are declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click


class Shared(NamedTuple):
    """An option of several tools. ``names`` are all its spellings, ``meaning`` what it does in each of them."""

    names: tuple[str, ...]
    meaning: str


SHARED = (
    Shared(("-o", "--output", "--output-dir"), "where the result goes"),
    Shared(("--force", "--overwrite"), "replace what is there"),
    Shared(("--json", "--jsonl"), "what programs read: JSON on stdout, path the key of a file"),
    Shared(("-r", "--recursive"), "look into folders' folders too"),
    Shared(("-n", "--dry-run"), "say what would be done, write nothing"),
    Shared(("--ext", "--caption-extension"), "suffix of caption files"),
    Shared(("--drop", "--exclude"), "tags that are left out"),
    Shared(("--drop-file", "--exclude-file"), "file of tags that are left out"),
    Shared(("--overlap", "--drop-overlap"), "leave out a tag that another one says too"),
    Shared(("--tokenizer-dir", "--tokenizer"), "folder of vocab.json and merges.txt"),
    Shared(("--max-tokens", "--max-token-length"), "tokens that are read of a caption"),
    Shared(("--separator", "--caption-separator"), "what stands between two tags of a caption"),
    Shared(("--html",), "write a page for the browser that needs nothing else"),
    Shared(("--new-rank", "--rank", "--dim"), "largest rank of the result"),
    Shared(("--new-conv-rank", "--conv-rank", "--conv-dim"), "largest rank of its convolutions"),
)
# What a letter of the table meant in some tools before it was in the table.
OLD_LETTERS = {"-r": "--rank"}


def plain(name: str) -> str:
    """A spelling with underscores, as the parser has it."""
    dashes = len(name) - len(name.lstrip("-"))
    return name[:dashes] + name[dashes:].replace("-", "_")


def further_names(params: Sequence[click.Parameter]) -> Iterator[tuple[str, str]]:
    """(a spelling that a command does not declare, one that it does) for each shared option that it has."""
    known = {
        plain(name)
        for param in params
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    for row in SHARED:
        names = [plain(name) for name in row.names]
        # A letter alone may be another option's.
        declared = next((name for name in names if name in known and name.startswith("--")), None)
        if declared is not None:
            yield from ((name, declared) for name in names if name not in known)


def add_names(parser: object, params: Sequence[click.Parameter]) -> None:
    """Let click's parser take the further names too."""
    long: dict[str, object] = parser._long_opt  # type: ignore[attr-defined]
    short: dict[str, object] = parser._short_opt  # type: ignore[attr-defined]
    for name, declared in further_names(params):
        if declared in long:
            (long if name.startswith("--") else short)[name] = long[declared]


def row_of(option: click.Option) -> Shared | None:
    """The row of the table that an option belongs to; None for a tool's own."""
    long = {plain(name) for name in option.opts if name.startswith("--")}
    return next((row for row in SHARED if long & set(map(plain, row.names))), None)


def shown_names(names: str, option: click.Option) -> str:
    """The spellings as the help shows them: those of ``names``, and a shared option's letter and first word in front,
    so that a reader finds one word in all tools."""
    row = row_of(option)
    if row is None:
        return names
    letters = [name for name in row.names if not name.startswith("--")]
    word = next(name for name in row.names if name.startswith("--"))
    for letter in letters:
        names = names.removeprefix(f"{letter}, ")
    known = {plain(name) for name in option.opts}
    if any("_" in name for name in known & set(option.opts)):
        word = plain(word)
    return ", ".join([*letters, *([word] if plain(word) not in known else []), names])
