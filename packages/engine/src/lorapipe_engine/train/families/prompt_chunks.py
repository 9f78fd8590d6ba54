"""Prompts in chunks of CLIP's 75 tokens as AUTOMATIC1111's webui cuts and weights them, as many as a prompt needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lorapipe_engine.sampling.prompts.attention import parse_prompt, split_chunks

CHUNK = 75
BACKTRACK = 20  # tokens between a chunk's last comma and its end that go over into the next chunk


class Chunk(NamedTuple):
    """At most 75 content ids, and what the state of each is multiplied with."""

    ids: list[int]
    weights: list[float]


def prompt_chunks(prompt: str, encode: Callable[[str], list[int]]) -> list[Chunk]:
    """The chunks of a prompt. ``encode`` gives a text's ids without marks. Never empty.

    BREAK begins a new chunk. What is cut at the end of a full chunk is cut behind a comma, if there is one within the
    last 20 tokens.
    """
    comma = encode(",")[-1:]
    chunks: list[Chunk] = []
    parts = split_chunks(parse_prompt(prompt))
    for number, pieces in enumerate(parts):
        ids: list[int] = []
        weights: list[float] = []
        for text, factor in pieces:
            tokens = encode(text)
            ids += tokens
            weights += [factor] * len(tokens)
        is_last = number == len(parts) - 1
        # A prompt that ends with BREAK has no empty chunk behind it.
        if ids or not (is_last and chunks):
            chunks += _cut(ids, weights, comma)
    return chunks


def _cut(ids: Sequence[int], weights: Sequence[float], comma: Sequence[int]) -> list[Chunk]:
    edges = [0]
    while len(ids) - edges[-1] > CHUNK:
        start, end = edges[-1], edges[-1] + CHUNK
        if [ids[end]] != list(comma):
            commas = [place for place in range(start, end) if [ids[place]] == list(comma)]
            if commas and end - commas[-1] <= BACKTRACK:
                end = commas[-1] + 1
        edges.append(end)
    edges.append(len(ids))
    return [Chunk(list(ids[start:end]), list(weights[start:end])) for start, end in pairwise(edges)]


def weigh_states(states: Tensor, factors: Tensor, widths: Sequence[int]) -> Tensor:
    """States (n, 77, C) times ``factors`` (n, 77), each chunk brought back to the mean that it had.

    ``widths``: how many of the C channels each text encoder has; their means are apart.
    """
    parts = []
    for part in torch.split(states, list(widths), dim=-1):
        mean = part.mean(dim=(1, 2), keepdim=True)
        weighted = part * factors.to(part)[..., None]
        parts.append(weighted * (mean / weighted.mean(dim=(1, 2), keepdim=True)))
    return torch.cat(parts, dim=-1)
