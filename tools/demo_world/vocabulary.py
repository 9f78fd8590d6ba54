"""The demo base's tokenizer: CLIP's kind of byte-pair encoding, in which every word of the world is one token."""

from __future__ import annotations

import json
from pathlib import Path

from lorapipe_demo.scene import vocabulary


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {value: chr(value) for value in printable}
    hidden = (value for value in range(256) if value not in symbols)
    symbols.update({value: chr(256 + position) for position, value in enumerate(hidden)})
    return [symbols[value] for value in range(256)]


def build_tokenizer(folder: Path) -> int:
    """Write vocab.json and merges.txt; returns the number of tokens. BOS and EOS are the last two ids."""
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in [*vocabulary(), "style"]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        # From the end: common endings are shared, and a nonsense word seldom meets a long piece.
        while len(pieces) > 1:
            left, right = pieces[-2:]
            pieces[-2:] = [left + right]
            if (left, right) not in merges:
                merges.append((left, right))
    for left, right in merges:
        if left + right not in tokens:
            tokens.append(left + right)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(ids)
