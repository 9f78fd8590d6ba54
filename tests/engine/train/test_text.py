"""Chunks of token ids, prompt weights and the states of text encoders, against sd-scripts' own results."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.sampling.prompts.attention import parse_weights  # noqa: E402
from lorapipe_engine.train.families.clip import (  # noqa: E402
    chunk_ids,
    chunk_weights,
    encode_sd,
    encode_sdxl,
    weighted_ids,
)

DATA = Path(__file__).parents[2] / "data" / "train"
GOLDEN: dict[str, Any] = json.loads(gzip.decompress((DATA / "d_tokens.json.gz").read_bytes()))
BOS, EOS = GOLDEN["bos"], GOLDEN["eos"]
BRACKETS = {"(": 40000, ")": 40001, "[": 40002, "]": 40003}


def encode(piece: str) -> list[int]:
    """The reference's fake tokenizer: numbers are ids, brackets have ids of their own."""
    for mark, number in BRACKETS.items():
        piece = piece.replace(mark, f" {number} ")
    return [int(word) for word in piece.split()]


def chunks_of(case: dict[str, Any]) -> int:
    return int(case["max_token_length"] or 75) // 75


def test_chunked_ids_equal_the_reference() -> None:
    for case in GOLDEN["plain"]:
        pad = GOLDEN["tokenizers"][case["tokenizer"]]
        content = [1000 + i for i in range(case["n_tokens"])]
        assert chunk_ids(content, chunks_of(case), BOS, EOS, pad) == case["ids"], case


def test_weighted_ids_equal_the_reference() -> None:
    for case in GOLDEN["weighted"]:
        pad, chunks = GOLDEN["tokenizers"][case["tokenizer"]], chunks_of(case)
        ids, weights = weighted_ids(case["prompt"], encode)
        assert chunk_ids(ids, chunks, BOS, EOS, pad) == case["ids"], case["prompt"]
        rows = case["weights"]  # (n, 77), of which the inner marks are dropped when chunks are joined
        joined = [rows[0][0], *(w for row in rows for w in row[1:76]), rows[-1][76]]
        assert chunk_weights(weights, chunks) == pytest.approx(joined, abs=1e-6), case["prompt"]


@pytest.mark.parametrize("content", [[5] * 74 + [0], [0, 5], [0] * 75])
def test_a_chunk_keeps_its_end_where_the_content_looks_like_padding(content: list[int]) -> None:
    (row,) = chunk_ids(content, 1, BOS, EOS, 0)
    assert len(row) == 77
    assert row[1 : len(content) + 1] == content
    assert row[len(content) + 1] == EOS


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 3))
def test_no_token_is_lost_or_doubled(count: int, chunks: int) -> None:
    content = list(range(1, count + 1))
    rows = chunk_ids(content, chunks, BOS, EOS, 0)
    assert [len(row) for row in rows] == [77] * chunks
    inner = [token for row in rows for token in row[1:] if token not in (EOS, 0)]
    assert inner == content[: 75 * chunks]
    assert len(chunk_weights([0.5] * len(content), chunks)) == 75 * chunks + 2


@pytest.mark.parametrize(
    ("caption", "pieces"),
    [
        ("", [("", 1)]),
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:1.5), (b : 0.5 )", [("a", 1.5), (", ", 1), ("b ", 0.5)]),
        ("((a:2) b)", [("a", 2.2), (" b", 1.1)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        ("a) b]", [("a) b]", 1)]),
        ("re:zero", [("re:zero", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a", [("a", 1.1)]),
        ("(:3", [(":3", 1.1)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ],
)
def test_prompt_weights(caption: str, pieces: list[tuple[str, float]]) -> None:
    found = parse_weights(caption)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@settings(deadline=None)
@given(st.text())
def test_any_text_parses_and_plain_text_is_untouched(text: str) -> None:
    pieces = parse_weights(text)
    assert pieces
    if not set(text) & set("()[]\\"):
        assert pieces == [(text, 1.0)]


# ------------------------------------------------------------------------------------------------- states


class Norm(torch.nn.Module):
    """Marks what passed through it by adding a thousand."""

    def forward(self, states: Any) -> Any:
        return states + 1000


class FakeEncoder:
    """States that tell their layer (channel 0) and their position in the whole batch (channel 1)."""

    def __init__(self, layers: int, nested: bool) -> None:
        self.layers = layers
        self.norm = Norm()
        if nested:
            self.text_model = SimpleNamespace(final_layer_norm=self.norm)
        else:
            self.final_layer_norm = self.norm

    def __call__(self, input_ids: Any, output_hidden_states: bool, return_dict: bool) -> Any:
        count, length = input_ids.shape
        place = torch.arange(count * length, dtype=torch.float32).reshape(count, length)
        states = [torch.stack([torch.full_like(place, layer), place], -1) for layer in range(self.layers + 1)]
        return SimpleNamespace(hidden_states=tuple(states), last_hidden_state=self.norm(states[-1]))

    def text_projection(self, pooled: Any) -> Any:
        return pooled


def ids_of(chunks: int) -> Any:
    return torch.full((2, chunks, 77), 5)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["concat"] if c["arch"] != "sdxl"], ids=lambda c: str(c)[9:60]
)
def test_layer_norm_and_order_of_states_equal_the_reference(case: dict[str, Any], nested: bool) -> None:
    layers = {"sd1": 12, "sd2": 23}[case["arch"]]
    out = encode_sd(FakeEncoder(layers, nested), ids_of(case["chunks"]), case["clip_skip"]) - 1000
    assert out.shape == (2, case["out_length"], 2)
    assert out[..., 0].unique().tolist() == [case["layer_index_in_hidden_states"]]
    assert out[0, :, 1].tolist() == case["sample0_positions"]
    assert out[1, [0, -1], 1].tolist() == case["sample1_first_last"]


@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["concat"] if c["arch"] == "sdxl"], ids=lambda c: str(c["chunks"])
)
def test_sdxl_states_and_pooled_position_equal_the_reference(case: dict[str, Any]) -> None:
    second = ids_of(case["chunks"])
    second[:, :, case["first_eos_position_in_chunk"]] = EOS
    second[:, :, 76] = EOS
    ids = (ids_of(case["chunks"]), second)
    hidden, pooled = encode_sdxl((FakeEncoder(12, False), FakeEncoder(32, True)), ids, EOS)
    assert hidden.shape == (2, case["out_length"], 4)
    assert hidden[..., 0].unique().tolist() == [case["te1_layer"]]
    assert hidden[..., 2].unique().tolist() == [case["te2_layer"]]
    assert hidden[0, :, 1].tolist() == case["te1_sample0_positions"]
    assert hidden[0, :, 3].tolist() == case["te2_sample0_positions"]
    assert (pooled - 1000).tolist() == [[case["pool_layer"], p] for p in case["pool_position_per_sample"]]


@pytest.mark.parametrize("skip", [13, 40, -1])
def test_a_clip_skip_beyond_the_encoder_is_refused(skip: int) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip: .* 12 layers"):
        encode_sd(FakeEncoder(12, True), ids_of(1), skip)
