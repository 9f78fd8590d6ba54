"""CLIP's tokenizer from folders and the hub's cache, against transformers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.train.base.tokenizers import (  # noqa: E402
    CLIP_REPOSITORY,
    CLIP_VOCABULARY,
    find_tokenizer,
    has_tokenizer,
    open_tokenizer,
)
from support.tiny import VOCABULARY, write_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


CAPTIONS = [
    "",
    "cat",
    "1girl, red hair",
    "RED  Hair\n!",
    "it's 42 <|endoftext|> naïve 猫 e\u0301 don't 'LL",
    "a" * 400,
]


def test_ids_equal_those_of_transformers(folder: Path) -> None:
    ours, theirs = open_tokenizer(folder), transformers.CLIPTokenizer.from_pretrained(str(folder))
    for caption in CAPTIONS:
        assert ours.encode(caption) == theirs(caption, add_special_tokens=False, verbose=False)["input_ids"]
    assert (ours.bos, ours.eos, ours.size) == (VOCABULARY - 2, VOCABULARY - 1, VOCABULARY)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_has_ids_of_the_vocabulary(folder: Path, text: str) -> None:
    ids = open_tokenizer(folder).encode(text)
    assert all(0 <= token < VOCABULARY for token in ids)


def test_a_long_caption_is_not_cut(folder: Path) -> None:
    assert len(open_tokenizer(folder).encode("cat " * 300)) == 300


def test_tokenizer_json_alone_is_enough(folder: Path, tmp_path: Path) -> None:
    theirs = transformers.CLIPTokenizerFast.from_pretrained(str(folder))
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = open_tokenizer(tmp_path)
    assert ours.encode("red cat") == open_tokenizer(folder).encode("red cat")
    assert (ours.bos, ours.eos) == (VOCABULARY - 2, VOCABULARY - 1)


def test_a_vocabulary_without_marks_ends_with_them(tmp_path: Path, folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    renamed = {token.replace("<|", "<<"): number for token, number in vocabulary.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(renamed), encoding="utf-8")
    shutil.copy(folder / "merges.txt", tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == (VOCABULARY - 2, VOCABULARY - 1)


def test_the_given_folder_goes_first(folder: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", VOCABULARY - 10)
    assert find_tokenizer(other, [folder], VOCABULARY).size == VOCABULARY - 10
    assert find_tokenizer(None, [tmp_path / "none", other, folder], VOCABULARY).size == VOCABULARY


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"600 tokens, but the model's text encoder knows 500"):
        find_tokenizer(folder, [], 500)


def test_without_any_one_line_says_which_files_to_put_where(tmp_path: Path) -> None:
    for size in (VOCABULARY, CLIP_VOCABULARY):
        with pytest.raises(InputError) as caught:
            find_tokenizer(None, [tmp_path / "tokenizer"], size)
        line = str(caught.value)
        assert "\n" not in line
        for part in ("vocab.json", "merges.txt", str(tmp_path / "tokenizer"), "--tokenizer_dir"):
            assert part in line


def test_the_hub_cache_is_used_without_a_network(tmp_path: Path, folder: Path) -> None:
    repository = tmp_path / "hub" / ("models--" + CLIP_REPOSITORY.replace("/", "--"))
    snapshot = repository / "snapshots" / "abc"
    write_tokenizer(snapshot, 1000)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_tokenizer(None, [], CLIP_VOCABULARY).size == 1000


def test_broken_files_are_one_line(tmp_path: Path, folder: Path) -> None:
    assert not has_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt are needed"):
        open_tokenizer(tmp_path)
    shutil.copy(folder / "merges.txt", tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    assert has_tokenizer(tmp_path)
    with pytest.raises(InputError, match="not a CLIP tokenizer") as caught:
        open_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
