"""Prompts as vectors beside those of pictures, by a CLIP whose file has both halves: CLIP-T."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.judge import encoders
from lorapipe_inspect.grid.judge.encoders import Encoder, Floats
from lorapipe_inspect.grid.judge.pairs import prompt_tags

NAME = "clip_t"
TOKENIZER = "tokenizer.json"
MOST_TOKENS = 77  # that a CLIP can read, begin and end among them


def likeness_to_prompts(
    encoder: Encoder, cells: Sequence[Cell], rows: Sequence[Floats | None]
) -> list[float | None]:
    """For each cell the cosine of its picture's vector to its prompt's, -1..1; None without a prompt.

    The prompt is read without brackets and strengths. Raises InputError, MissingExtra.
    """
    prompts = [", ".join(prompt_tags(str(cell.values.get("prompt") or ""))) for cell in cells]
    tokens = _tokens_of(encoder.path, sorted({one for one in prompts if one}))
    vectors = {prompt: encoder.words(ids) for prompt, ids in tokens.items()}
    return [
        None if row is None or not prompt else _cosine(encoder.path, row, vectors[prompt])
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def tokenizer_of(path: Path) -> Path | None:
    """The tokenizer of a network: beside it, or in the folder above, as exports to ONNX have it."""
    places = (path.parent / TOKENIZER, path.resolve().parent.parent / TOKENIZER)
    return next((place for place in places if place.is_file()), None)


def _tokens_of(path: Path, prompts: Sequence[str]) -> dict[str, list[int]]:
    file = tokenizer_of(path)
    if file is None:
        raise InputError(f"{path}: no {TOKENIZER} beside it")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra(
            f"{path}: comparing with prompts needs tokenizers, which is not installed: pip install tokenizers"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokens = {prompt: list(tokenizer.encode(prompt).ids) for prompt in prompts}
    except Exception as error:  # the package raises bare Exceptions
        raise InputError(f"{file}: cannot be read as a tokenizer: {str(error)[:200]}") from error
    # What is cut is the end but for the last token, which ends the text.
    return {
        prompt: ids if len(ids) <= MOST_TOKENS else [*ids[: MOST_TOKENS - 1], ids[-1]]
        for prompt, ids in tokens.items()
    }


def _cosine(path: Path, row: Floats, words: Floats) -> float:
    if row.shape != words.shape:
        raise InputError(f"{path}: gives {len(row)} values for a picture and {len(words)} for a prompt")
    return float(np.dot(encoders.unit(row), encoders.unit(words)))
