"""Captions that are links out of the dataset: the check tells what training does with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.errors import InputError
from lorapipe_engine.settings import DataSettings

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links")

WORDS = "elsewhere, words, private"


@pytest.fixture
def caption(draw: Any, tmp_path: Path) -> Path:
    """The place of a caption that is to be a link."""
    for name in "abc":
        draw(f"set/5_mayu/{name}.png", f"mayu, hat, {name}")
    caption = tmp_path / "set/5_mayu/a.txt"
    caption.unlink()
    return caption


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        ("words", None),
        ("nowhere", "a link out of the dataset, cannot be read (No such file or directory)"),
        ("cp1251", "a link out of the dataset, not UTF-8 (byte 0)"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--no-look",)])
def test_a_link_that_would_stop_training_is_an_error(
    kind: str, trouble: str | None, words: tuple[str, ...], check: Any, caption: Path, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere.txt"
    caption.symlink_to(target)
    if kind != "nowhere":
        target.write_bytes("слова".encode("cp1251") if kind == "cp1251" else WORDS.encode())
    root = caption.parents[1]
    done = check(root, "--resolution", 96, "--json", *words)
    assert WORDS not in done.out + done.err
    rows = [row for row in done.json["findings"] if str(caption) in row["paths"]]
    data = DataSettings(train_data_dir=root, resolution=(96, 96))
    if trouble is None:
        assert (done.code, [row["rule"] for row in rows]) == (0, ["linked-caption"])
        assert WORDS in {picture.caption for picture in scan(data).pictures}
    else:
        assert (done.code, [(row["rule"], row["text"]) for row in rows]) == (1, [("bad-encoding", trouble)])
        with pytest.raises(InputError, match=r"a\.txt: "):
            scan(data)


def test_a_pipe_elsewhere_is_not_waited_for(check: Any, caption: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    caption.symlink_to(tmp_path / "pipe")
    done = check(caption.parents[1], "--resolution", 96, "--no-look")
    assert (done.code, "no plain file" in done.out) == (1, True)


def test_the_rule_says_who_reads_such_a_caption(check: Any) -> None:
    assert "lora-train trains them, the other tools neither change, show nor copy them" in " ".join(
        check("--rules").out.split()
    )
