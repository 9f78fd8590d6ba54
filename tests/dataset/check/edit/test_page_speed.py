"""``lora-check --edit`` with two thousand pictures: the page stays quick, by the browser's own log of long tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support import browser
from support.editor import editing, held
from support.editor_page import opened, says, text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.find_browser() is None or os.name == "nt", reason="no Chromium here: apt-get install chromium"
    ),
]
PICTURES = 2000
LONGEST = 100  # milliseconds of a task in the page
SECONDS = 2.0  # for a tag on five hundred captions
TRIES = 5  # a busy machine makes every task longer, also by the time of its own thread
SCROLL = """new Promise(done => {
  const grid = document.querySelector('#grid');
  const step = () => {
    grid.scrollTop += 500;
    if (grid.scrollTop + grid.clientHeight < grid.scrollHeight - 1) requestAnimationFrame(step);
    else setTimeout(() => done(document.querySelectorAll('.tile').length), 500);
  };
  requestAnimationFrame(step);
})"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every fourth picture has the tag ``solo``; each has some of 800 others."""
    rng = np.random.default_rng(1)
    for number in range(PICTURES):
        path = tmp_path / "set" / ("5_mayu" if number % 2 else "3_okabe") / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(path)
        tags = ["mayu", *["solo"] * (number % 4 == 0), *(f"word {one}" for one in rng.integers(0, 800, 18))]
        path.with_suffix(".txt").write_text(", ".join(dict.fromkeys(tags)))
    return tmp_path / "set"


@pytest.fixture
def tab(folder: Path, tmp_path: Path) -> Iterator[Any]:
    with editing(folder) as editor, opened(editor.record["url"], tmp_path / "profile") as tab:
        tab.wait("[...document.querySelectorAll('.tile img')].some(image => image.naturalWidth > 0)")
        yield tab


def test_two_thousand_pictures_scroll_and_filter(tab: Any) -> None:
    assert text(tab, "#shown") == "2,000 pictures"
    longest: list[list[float]] = []
    while len(longest) < TRIES and min(longest, default=[LONGEST])[0] >= LONGEST:
        with tab.tasks() as tasks:
            # All the way down: few elements at any time.
            assert tab.evaluate(SCROLL) < 100
            assert tab.evaluate("document.querySelector('.tile[data-path$=\"1999.jpg\"]') !== null")
            for selector in (
                "nav [data-tag='word 7']",
                "#clear",
                "[data-rule='small']",
                "#clear",
                "nav [data-tag='solo']",
            ):
                tab.click(selector)
            assert text(tab, "#shown") == "500 of 2,000 pictures"
            tab.click("#all")
            says(tab, "#which", "500 pictures selected")
            time.sleep(0.5)
        longest.append(tasks[:5])
        tab.press("Escape")
        tab.click("#clear")
        assert text(tab, "#shown") == "2,000 pictures"
        tab.evaluate("document.querySelector('#grid').scrollTop = 0")
    assert 0 < min(longest)[0] < LONGEST, longest


def test_a_tag_on_five_hundred_captions(tab: Any, folder: Path) -> None:
    """From the key to the page that shows it."""
    before = held(folder)
    tab.click("nav [data-tag='solo']")
    tab.click("#all")
    taken: list[float] = []
    longest: list[list[float]] = []
    while len(taken) < TRIES and (
        min(taken, default=SECONDS) >= SECONDS or min(longest, default=[LONGEST])[0] >= LONGEST
    ):
        with tab.tasks() as tasks:
            tab.click("#selection-tags [data-tag='solo'] [data-act='rename']")
            tab.call("Input.insertText", text="alone")
            began = time.monotonic()
            tab.press("Enter")
            tab.wait("document.querySelector('.tile .text').textContent.includes('alone')")
            taken.append(time.monotonic() - began)
            says(tab, "#undo-what", "rename solo to alone on 500 captions")
            changed = held(folder)
            assert sum(changed[name] != before[name] for name in before) == 500
            assert b"mayu, alone, " in changed["3_okabe/0000.txt"]
            tab.press("z", ctrl=True)
            says(tab, "#line-text", "Taken back: 500 pictures")
            assert held(folder) == before
        longest.append(tasks[:5])
    assert min(taken) < SECONDS, taken
    assert 0 < min(longest)[0] < LONGEST, longest
