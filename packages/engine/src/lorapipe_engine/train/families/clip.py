"""CLIP as a text encoder: chunks of token ids, prompt weights, CLIP's states.

CLIP reads 77 tokens: BOS, 75 of content, EOS. A longer caption is cut into n chunks of 75 that are encoded
each on its own and joined again without the marks between them, 75n+2 states in all (kohya's
``max_token_length``). The functions on ids are pure Python, those on states have static shapes and never wait
for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.prompts.attention import parse_weights
from lorapipe_engine.train.base.tokenizers import Tokenizer
from lorapipe_engine.train.families.prompt_chunks import Chunk, prompt_chunks, weigh_states
from lorapipe_engine.train.families.text import AskedPrompt, Conditioning, TextEncoder, Tokens

CHUNK = 75
POSITIONS = CHUNK + 2
MAX_CHUNKS = 3
MOST_CUT = 64  # groups of prompts that were encoded together, kept as ids

# -------------------------------------------------------------------------------------------------- token ids


def chunk_ids(content: Sequence[int], chunks: int, bos: int, eos: int, pad: int) -> list[list[int]]:
    """Cut content ids (without BOS and EOS) into ``chunks`` rows of 77: BOS, up to 75 ids, EOS, padding.

    What is beyond 75 · ``chunks`` is left out. ``pad`` is EOS for CLIP-L and 0 for the OpenCLIP encoders of
    SD2 and SDXL. A chunk always holds its EOS, also where the content itself ends or starts with the id 0
    ("!").
    """
    rows = []
    for start in range(0, CHUNK * chunks, CHUNK):
        piece = list(content[start : start + CHUNK])
        rows.append([bos, *piece, eos] + [pad] * (CHUNK - len(piece)))
    return rows


def chunk_weights(weights: Sequence[float], chunks: int) -> list[float]:
    """Multipliers of content tokens -> of the 75n+2 joined states: 1 for BOS, EOS and padding."""
    kept = list(weights[: CHUNK * chunks])
    return [1.0, *kept] + [1.0] * (CHUNK * chunks - len(kept) + 1)


def weighted_ids(caption: str, encode: Callable[[str], list[int]]) -> tuple[list[int], list[float]]:
    """Content ids of a caption with weights, and the multiplier of each. Pieces are tokenised one by one."""
    ids: list[int] = []
    weights: list[float] = []
    for piece, factor in parse_weights(caption):
        own = encode(piece)
        ids += own
        weights += [factor] * len(own)
    return ids, weights


# -------------------------------------------------------------------------------------------------- states


def encode_sd(encoder: Any, ids: Tensor, clip_skip: int | None = None) -> Tensor:
    """Ids (B, n, 77) -> text states (B, 75n+2, C) of SD 1.x and 2.x.

    ``clip_skip`` k takes the output of the k-th layer from the end (None and 1: the last), always through the
    final layer norm. Raises ConfigError where the encoder has fewer layers.
    """
    states, _ = clip_states(encoder, ids.flatten(0, 1))
    skip = clip_skip or 1
    if not 1 <= skip < len(states):
        raise ConfigError(f"clip_skip: {skip} is not possible, the text encoder has {len(states) - 1} layers")
    hidden = text_body(encoder).final_layer_norm(states[-skip])
    return join_chunks(hidden.reshape(*ids.shape, -1))


def encode_sdxl(encoders: Sequence[Any], ids: Sequence[Tensor], eos: int) -> tuple[Tensor, Tensor]:
    """Ids (B, n, 77) for SDXL's two encoders -> states (B, 75n+2, C1+C2) and the pooled vector (B, P).

    Both states are those before the last layer, without the final layer norm; pooled is the second encoder's
    last state, normed, at the first EOS of the first chunk, through the text projection.
    """
    first, second = encoders
    one, _ = clip_states(first, ids[0].flatten(0, 1))
    two, last = clip_states(second, ids[1].flatten(0, 1))
    hidden = torch.cat([one[-2], two[-2]], dim=-1)
    last = last.reshape(*ids[1].shape, -1)[:, 0]  # (B, 77, C2)
    pooled = second.text_projection(pool_at(last, ids[1][:, 0], eos))
    return join_chunks(hidden.reshape(*ids[0].shape, -1)), pooled


def join_chunks(states: Tensor) -> Tensor:
    """States (B, n, 77, C) of chunks -> (B, 75n+2, C): the first BOS, all content, the last position."""
    content = states[:, :, 1 : CHUNK + 1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], content, states[:, -1, -1:]], dim=1)


def pool_at(states: Tensor, ids: Tensor, eos: int) -> Tensor:
    """The state (B, C) at the first ``eos`` of each row. ``states`` (B, 77, C), ``ids`` (B, 77)."""
    place = (ids == eos).to(torch.int32).argmax(dim=-1)  # (B,)
    index = place[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, index)[:, 0]


def clip_states(encoder: Any, ids: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Ids (N, 77) -> outputs of the embedding and every layer, each (N, 77, C); and the last, normed."""
    out = encoder(input_ids=ids, output_hidden_states=True, return_dict=True)
    return tuple(out.hidden_states), out.last_hidden_state


def text_body(encoder: Any) -> Any:
    """The module that holds ``embeddings``, ``encoder`` and ``final_layer_norm``.

    transformers 5.6 took the level ``text_model`` out of CLIPTextModel, but not of
    CLIPTextModelWithProjection.
    """
    return getattr(encoder, "text_model", encoder)


# -------------------------------------------------------------------------------------------------- the encoder


class _Cut(NamedTuple):
    """Prompts in chunks, one behind the other; of each prompt the number of its chunks, and the multipliers (n, 77) of
    their states, or None."""

    tokens: Tokens
    prompts: list[tuple[int, Tensor | None]]


class ClipText(TextEncoder):
    """One CLIP text encoder: ids (B, n, 77), states (B, 75n+2, C).

    ``pads``: what captions are filled up with, for each encoder; None is its EOS. ``max_token_length`` is 75, 150 or
    225 (None: 225), ``clip_skip`` as for :func:`encode_sd`.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        tokenizers: Sequence[Tokenizer],
        pads: Sequence[int | None],
        *,
        max_token_length: int | None = None,
        clip_skip: int | None = None,
        **place: Any,
    ) -> None:
        super().__init__({f"te{index}": module for index, module in enumerate(encoders, start=1)}, **place)
        self.tokenizers = tuple(tokenizers)
        self.pads = tuple(pads)
        self.clip_skip = clip_skip
        self.chunks = (max_token_length or CHUNK * MAX_CHUNKS) // CHUNK
        self.limit = self.chunks * CHUNK
        self._cut: dict[tuple[str, ...], _Cut] = {}
        self.longer = self.limit + CHUNK if self.chunks < MAX_CHUNKS else None

    def tokenize(self, texts: Sequence[str], *, weighted: bool = False) -> Tokens:
        ids, weights = [], []
        for tokenizer, pad in zip(self.tokenizers, self.pads, strict=True):
            if not weighted:
                ids.append(self._chunked([tokenizer.encode(line) for line in texts], tokenizer, pad))
                continue
            rows = [weighted_ids(line, tokenizer.encode) for line in texts]
            ids.append(self._chunked([row for row, _ in rows], tokenizer, pad))
            factors = [chunk_weights(factor, self.chunks) for _, factor in rows]
            weights.append(torch.tensor(factors, device=self.device))
        return Tokens(tuple(ids), tuple(weights) if weighted else None)

    def _chunked(self, rows: Sequence[Sequence[int]], tokenizer: Tokenizer, pad: int | None) -> Tensor:
        bos, eos = tokenizer.bos, tokenizer.eos
        ids = [chunk_ids(row, self.chunks, bos, eos, eos if pad is None else pad) for row in rows]
        return torch.tensor(ids, dtype=torch.int64, device=self.device).reshape(-1, self.chunks, POSITIONS)

    def count(self, text: str) -> int:
        return max(len(tokenizer.encode(text)) for tokenizer in self.tokenizers)

    def encode(self, tokens: Tokens) -> Conditioning:
        self.move_to_device()
        return self._weighted(self._states([ids.to(self.device) for ids in tokens.ids]), tokens)

    def encode_prompts(self, asked: Sequence[AskedPrompt]) -> list[Conditioning]:
        """States (1, 77n, C) of each prompt's n chunks, all encoded together, each with its marks, as A1111 has them;
        pooled of the first."""
        cut = self._cut_prompts(tuple(prompt.text for prompt in asked))
        states, start, every = self.encode(cut.tokens), 0, []
        for count, factors in cut.prompts:
            every.append(self._joined(states.rows(slice(start, start + count)), factors))
            start += count
        return every

    @torch.inference_mode(False)
    def _cut_prompts(self, texts: tuple[str, ...]) -> _Cut:
        """Prompts in chunks, on the device. Kept, since each network is asked the same: the numbers' way to a card
        would have it wait for all that it was given to do before."""
        if texts not in self._cut:
            if len(self._cut) >= MOST_CUT:
                self._cut.clear()
            ids: list[Tensor] = []
            for tokenizer, pad in zip(self.tokenizers, self.pads, strict=True):
                chunks = [prompt_chunks(text, tokenizer.encode) for text in texts]
                bos, eos = tokenizer.bos, tokenizer.eos
                end = eos if pad is None else pad
                rows = [chunk_ids(row.ids, 1, bos, eos, end) for own in chunks for row in own]
                ids.append(torch.tensor(rows, dtype=torch.int64, device=self.device))
            prompts = [
                (len(own), self._factors(own)) for own in chunks
            ]  # several encoders share their chunks
            self._cut[texts] = _Cut(Tokens(tuple(ids)), prompts)
        return self._cut[texts]

    def _factors(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """The multipliers of one prompt's states; None where all are 1."""
        factors = [chunk_weights(row.weights, 1) for row in chunks]
        plain = all(factor == 1 for row in factors for factor in row)
        return None if plain else torch.tensor(factors, device=self.device)

    def _joined(self, states: Conditioning, factors: Tensor | None) -> Conditioning:
        """One prompt's states, weighted."""
        hidden = states.hidden
        if factors is not None:
            widths = [int(module.config.hidden_size) for module in self.modules.values()]
            hidden = weigh_states(hidden, factors, widths)
        pooled = None if states.pooled is None else states.pooled[:1]
        return Conditioning(hidden.flatten(0, 1)[None], pooled)

    def _states(self, ids: Sequence[Tensor]) -> Conditioning:
        return Conditioning(encode_sd(self.modules["te1"], ids[0], self.clip_skip))

    @staticmethod
    def _weighted(text: Conditioning, tokens: Tokens) -> Conditioning:
        if tokens.weights is None:
            return text
        # Several encoders share their tokens, so the first one's weights hold for the joined channels.
        return replace(text, hidden=text.hidden * tokens.weights[0].to(text.hidden)[..., None])

    @property
    def cache_key(self) -> str:
        return f"{super().cache_key}|{self.clip_skip}"


class ClipPair(ClipText):
    """SDXL's two encoders: joined states before the last layer, and the second one's pooled vector. ``clip_skip`` means
    nothing to it."""

    def encode_prompts(self, asked: Sequence[AskedPrompt]) -> list[Conditioning]:
        """As of one encoder; an empty negative prompt is zeros, as SDXL was trained with and A1111 has it."""
        every = super().encode_prompts(asked)
        return [
            states.zeros() if prompt.is_negative and not prompt.text else states
            for prompt, states in zip(asked, every, strict=True)
        ]

    def _states(self, ids: Sequence[Tensor]) -> Conditioning:
        both = list(self.modules.values())
        return Conditioning(*encode_sdxl(both, ids, self.tokenizers[1].eos))


def positions(max_token_length: int | None) -> int:
    """Tokens of a caption with the marks of its chunks: 77 for each of 75."""
    return (max_token_length or CHUNK * MAX_CHUNKS) // CHUNK * POSITIONS
