"""Options of ``lora-tag --caption-url`` that are refused before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from .making import Tag
from .serving import Server


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--caption-prompt", "{tag}"), "{tag} stands for nothing; there are {tags}, {trigger} and {name}"),
        (("--caption-prompt", "{trigger}"), "{trigger} needs --trigger or --trigger-from-folder"),
        (("--caption-prompt", "{tags}", "--no-hints"), "exclude each other"),
        (("--caption-prompt", " "), "an empty text"),
        (("--caption-prompt", "@none.txt"), "cannot be read (No such file or directory)"),
        (("--caption-style", "two-lines", "--existing", "append"), "--existing skip or replace"),
        (("--caption-style", "sentence", "--no-hints", "--html", "a.html"), "--html has no use here"),
        (("--caption-style", "sentence", "--frequency"), "captions get no tags"),
        (("--caption-key", "a\nb"), "letters that no key has"),
        (("--explain",), "--caption-url has no use with --explain"),
    ],
)
def test_options_that_make_no_sense(
    tag: Tag, folder: Path, server: Server, words: tuple[str, ...], told: str
) -> None:
    result = tag(folder, "--caption-url", server.url, *words, model=None)
    assert result.code == 2
    assert told in result.error
    assert server.asked == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("me:word-to-hide@host/v1", "needs http:// or https://"),
        ("http://me:word-to-hide/v1", "no address"),
        ("127.0.0.1:8080/v1", "needs http:// or https://"),
        ("ftp://a/v1", "needs http:// or https://"),
        ("http://a:b/v1", "no address"),
        ("http://a/v1#x", "leave it out"),
        ("http://a/v 1", "letters that no address has"),
    ],
)
def test_addresses_that_are_none(tag: Tag, folder: Path, url: str, told: str) -> None:
    result = tag(folder, "--caption-url", url, model=None)
    assert result.code == 2
    assert told in result.error
    assert "word-to-hide" not in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("--caption-style", "both"),
        ("--no-hints",),
        ("--caption-key", "abcdefghij"),
        ("--caption-jobs", "3"),
        ("--caption-prompt", "x"),
    ],
)
def test_options_without_an_address(tag: Tag, folder: Path, words: tuple[str, ...]) -> None:
    result = tag(folder, *words, model=None)
    assert result.code == 2
    assert f"{words[0]} has a use only with --caption-url" in result.error
