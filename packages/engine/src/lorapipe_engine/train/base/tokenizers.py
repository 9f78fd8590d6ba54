"""CLIP's tokenizer: from a folder, the hub's cache or the hub.

Every Stable Diffusion text encoder has the same vocabulary of 49,408 byte-pair tokens; they differ only in
what they pad with, which :mod:`lorapipe_engine.train.families.clip` does. Small models may bring a vocabulary of their
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.hub import first_line
from lorapipe_engine.models.clip_tokenizer import CACHED, CLIP_REPOSITORY, TOKENIZER_FILES
from lorapipe_engine.train.base.hub import fetch_files

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY = 49408
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer(Protocol):
    """Text to ids. ``bos`` and ``eos`` mark start and end; ``size`` is the number of ids."""

    bos: int
    eos: int
    size: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS, not cut."""
        ...


class ClipTokenizer:
    """Byte-pair encoding as CLIP does it: NFC, one space for many, lower case, "</w>" ends a word."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.size = int(backend.get_vocab_size())
        # The last two ids, if the vocabulary does not name them.
        self.bos = _id(backend, BOS, self.size - 2)
        self.eos = _id(backend, EOS, self.size - 1)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS, not cut."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def open_tokenizer(folder: Path) -> ClipTokenizer:
    """The tokenizer in a folder: ``vocab.json`` with ``merges.txt``, or ``tokenizer.json``.

    Raises InputError if neither is there or they cannot be read.
    """
    from tokenizers import Tokenizer as Backend

    vocabulary, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    try:
        if vocabulary.is_file() and merges.is_file():
            return ClipTokenizer(_build(vocabulary, merges))
        if whole.is_file():
            backend = Backend.from_file(str(whole))
            backend.no_truncation()
            backend.no_padding()
            return ClipTokenizer(backend)
    except Exception as error:  # the tokenizers library raises nothing more exact
        raise InputError(f"{folder}: not a CLIP tokenizer ({first_line(error)})") from error
    raise InputError(f"{folder}: no tokenizer there; vocab.json and merges.txt are needed")


def find_tokenizer(given: Path | None, beside: Sequence[Path], vocabulary: int) -> ClipTokenizer:
    """The tokenizer for a text encoder of ``vocabulary`` tokens.

    In this order: the folder ``given`` by the user; the folders ``beside`` the model that hold one of the
    right size; the hub's cache; the hub. Raises InputError with one line that says which files to put where.
    """
    if given is not None:
        tokenizer = open_tokenizer(given)
        if tokenizer.size > vocabulary:
            raise InputError(
                f"{given}: {tokenizer.size} tokens, but the model's text encoder knows {vocabulary}"
            )
        return tokenizer
    for folder in beside:
        if has_tokenizer(folder):
            tokenizer = open_tokenizer(folder)
            if tokenizer.size == vocabulary:
                return tokenizer
    place = (
        f"into {beside[0]} or name their folder with --tokenizer_dir"
        if beside
        else "somewhere, --tokenizer_dir"
    )
    if vocabulary < CLIP_VOCABULARY:
        raise InputError(
            f"this model has a tokenizer of its own ({vocabulary} tokens): "
            f"put its vocab.json and merges.txt {place}"
        )
    fetched = _cached() or fetch_files(CLIP_REPOSITORY, TOKENIZER_FILES)
    if fetched is None:
        raise InputError(
            f"no CLIP tokenizer here, and the hub cannot be reached: put vocab.json and merges.txt "
            f"(from {CLIP_REPOSITORY}) {place}"
        )
    return open_tokenizer(fetched)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds tokenizer files."""
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def _build(vocabulary: Path, merges: Path) -> Any:
    """CLIP's pipeline around a vocabulary (the same as transformers' CLIPTokenizer, whatever its version)."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    ids, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    backend = Backend(
        models.BPE(
            vocab=ids,
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=EOS if EOS in ids else None,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_special_tokens([mark for mark in (BOS, EOS) if mark in ids])
    return backend


def _cached() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repository, folder in CACHED:
        cached = [try_to_load_from_cache(repository, f"{folder}{name}") for name in TOKENIZER_FILES]
        if all(isinstance(path, str) for path in cached):
            return Path(str(cached[0])).parent
    return None


def _id(backend: Any, token: str, default: int) -> int:
    number = backend.token_to_id(token)
    return default if number is None else int(number)
