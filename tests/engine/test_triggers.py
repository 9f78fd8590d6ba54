"""Triggers: found as words, taken out of captions, put others in their place."""

from __future__ import annotations

import pytest

from lorapipe_engine.pictures.triggers import has_word, without_words


@pytest.mark.parametrize(
    ("caption", "instead", "wanted"),
    [
        ("mina, 1girl, solo", "", "1girl, solo"),
        ("mina, 1girl, solo", "1girl", "1girl, solo"),
        ("mina, solo", "1girl, young", "1girl, young, solo"),
        ("1girl,  Mina ,solo", "", "1girl, solo"),
        ("a photo of mina in a park", "a girl", "a photo of a girl in a park"),
        ("a photo of mina in a park", "", "a photo of in a park"),
        ("minas, luis mina-hat, mina_2", "girl", "minas, luis girl-hat, mina_2"),
        ("(mina:1.2), solo, (long hair:1.1)", "", "solo, (long hair:1.1)"),
        ("[mina], solo, :)", "1girl", "[1girl], solo, :)"),
        ("mina, :), 1.5", "", ":), 1.5"),
        ("mina", "", ""),
        ("", "1girl", ""),
        ("solo,  smile", "1girl", "solo,  smile"),  # nothing to take out: as it is
    ],
)
def test_words_give_way(caption: str, instead: str, wanted: str) -> None:
    assert without_words(caption, [("mina", instead)]) == wanted


def test_several_words_and_separators() -> None:
    assert without_words("mina and lu", [("mina", "a girl"), ("lu", "a boy")]) == "a girl and a boy"
    assert without_words("mina. solo. smile", [("mina", "")], ".") == "solo. smile"
    assert without_words("ohwx  woman, smile", [("ohwx woman", "woman")]) == "woman, smile"
    assert has_word("an OHWX  woman", "ohwx woman")
    assert not has_word("ohwxs", "ohwx")
