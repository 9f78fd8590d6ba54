"""Prompts cut into chunks of 75 tokens as A1111 cuts them."""

from __future__ import annotations

from itertools import count

import pytest

torch = pytest.importorskip("torch")

from lorapipe_engine.train.families.prompt_chunks import prompt_chunks, weigh_states  # noqa: E402

COMMA = 7


class Words:
    """A tokenizer of one id a word; a comma is a word of its own."""

    def __init__(self) -> None:
        self._free = count(100)
        self._ids = {",": COMMA}

    def __call__(self, text: str) -> list[int]:
        words = text.replace(",", " , ").split()
        return [self._ids.setdefault(word, next(self._free)) for word in words]


def lengths(prompt: str) -> list[int]:
    return [len(chunk.ids) for chunk in prompt_chunks(prompt, Words())]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [0]),
        ("a b", [2]),
        (" ".join("w" * 75), [75]),
        (" ".join("w" * 76), [75, 1]),
        ("a BREAK b c", [1, 2]),
        ("a BREAK", [1]),
        ("BREAK a", [0, 1]),
        ("a BREAK BREAK b", [1, 0, 1]),
        # A comma 20 tokens before the end is where the chunk ends, one 21 before it is not.
        (" ".join("w" * 55) + "," + " ".join("w" * 30), [56, 30]),
        (" ".join("w" * 54) + "," + " ".join("w" * 30), [75, 10]),
        # A comma that does not fit any more begins the next chunk.
        (" ".join("w" * 60) + "," + " ".join("w" * 14) + ", w", [75, 2]),
    ],
)
def test_chunks(prompt: str, expected: list[int]) -> None:
    assert lengths(prompt) == expected


def test_weights_go_with_their_tokens() -> None:
    first, second = prompt_chunks("a (b c:1.5) BREAK [d]", Words())
    assert first.weights == [1.0, 1.5, 1.5]
    assert second.weights == pytest.approx([1 / 1.1])


def test_weighted_states_keep_the_mean_of_each_encoder() -> None:
    states = torch.rand(2, 77, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    factors = torch.ones(2, 77)
    factors[0, 3] = 1.5
    weighed = weigh_states(states, factors, [2, 4])
    assert torch.allclose(weighed[1], states[1])
    for part in (slice(0, 2), slice(2, 6)):
        assert torch.allclose(weighed[..., part].mean(dim=(1, 2)), states[..., part].mean(dim=(1, 2)))
        ratios = weighed[0, :, part] / states[0, :, part]
        assert torch.allclose(ratios[3] / ratios[4], torch.full_like(ratios[3], 1.5))
    assert not torch.allclose(weighed[0, 4, :2] / states[0, 4, :2], weighed[0, 4, 2:4] / states[0, 4, 2:4])
