"""Counting tokens: as the trainer's tokenizer does, and about as many without its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_dataset.texts.tokens import estimate, token_counter
from lorapipe_engine.errors import InputError

FOLDER = Path(__file__).parents[3] / "packages/demo/src/lorapipe_demo/assets/tokenizer"
COUNT, EXACT = token_counter(FOLDER, Path("none"))


@pytest.mark.slow
@pytest.mark.torch
@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(categories=["L", "Nd", "P", "S", "Zs"], max_codepoint=0x2FFF), max_size=60)
    | st.text("ab c,(1_'s-^é", max_size=40)
)
def test_counts_as_the_trainer_does(text: str) -> None:
    pytest.importorskip("tokenizers")
    tokenizers = pytest.importorskip("lorapipe_engine.train.base.tokenizers")
    trainer = tokenizers.open_tokenizer(FOLDER)
    for caption in (text, "1girl, solo, long hair, red_eyes, artist's hat, (smile:1.2), " + text):
        assert COUNT(caption) == len(trainer.encode(caption))


def test_the_files_are_found_in_the_hubs_cache(tmp_path: Path) -> None:
    place = tmp_path / "models--openai--clip-vit-large-patch14/snapshots/abc"
    place.mkdir(parents=True)
    assert token_counter(None, tmp_path)[1] is False
    for name in ("vocab.json", "merges.txt"):
        (place / name).write_bytes((FOLDER / name).read_bytes())
    count, exact = token_counter(None, tmp_path)
    assert (exact, count("a hat")) == (True, COUNT("a hat"))


def test_an_estimate_is_near() -> None:
    # CLIP's own vocabulary takes 25 tokens for this.
    text = "1girl, solo, long hair, blue eyes, smile, looking at viewer, outdoors, tree"
    assert 20 <= estimate(text) <= 30


@pytest.mark.parametrize("content", ["", "a b c\n", "#version: 0.2\na\n"])
def test_files_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "merges.txt").write_text(content)
    with pytest.raises(InputError, match="tokenizer"):
        token_counter(tmp_path, tmp_path)
