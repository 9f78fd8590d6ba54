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
from support.editing import captions, opened, says, serving, text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.find_browser() is None or os.name == "nt", reason="no Chromium here: apt-get install chromium"
    ),
]
PICTURES = 2000
LONGEST = 100  # milliseconds of a task
SECONDS = 2.0  # for a tag on five hundred captions
SCROLL = """new Promise(done => {
  const grid = document.querySelector('#grid');
  const step = () => {
    grid.scrollTop += 500;
    if (grid.scrollTop + grid.clientHeight < grid.scrollHeight - 1) requestAnimationFrame(step);
    else setTimeout(() => done(document.querySelectorAll('.tile').length), 500);
  };
  requestAnimationFrame(step);
})"""
WATCH = """(() => {
  window.tasks = [];
  new PerformanceObserver(list => tasks.push(...list.getEntries().map(entry => Math.round(entry.duration))))
    .observe({ type: 'longtask' });
})()"""


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
    with serving(folder) as (address, _), opened(address, tmp_path / "profile") as tab:
        tab.wait("[...document.querySelectorAll('.tile img')].some(image => image.naturalWidth > 0)")
        tab.evaluate(WATCH)
        yield tab


def test_two_thousand_pictures(tab: Any, folder: Path) -> None:
    before = captions(folder)
    assert text(tab, "#shown") == "2,000 pictures"

    # All the way down: few elements at any time.
    assert tab.evaluate(SCROLL) < 100
    assert tab.evaluate(
        "[...document.querySelectorAll('.tile')].some(tile => tile.dataset.path.endsWith('1999.jpg'))"
    )
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
    assert max(tab.evaluate("tasks"), default=0) <= LONGEST, tab.evaluate("tasks")

    # A tag on five hundred captions, from the key to the page that shows it.
    tab.click("#selection-tags [data-tag='solo'] [data-act='rename']")
    tab.call("Input.insertText", text="alone")
    began = time.monotonic()
    tab.press("Enter")
    tab.wait("document.querySelector('.tile .text').textContent.includes('alone')")
    taken = time.monotonic() - began
    changed = captions(folder)
    assert sum(changed[name] != before[name] for name in before) == 500
    assert b"mayu, alone, " in changed["3_okabe/0000.txt"]
    assert taken < SECONDS
    says(tab, "#undo-what", "rename solo to alone on 500 captions")
    tab.press("z", ctrl=True)
    says(tab, "#line-text", "Taken back: 500 pictures")
    assert captions(folder) == before
    print(f"renamed in {taken:.2f} s; tasks of {tab.evaluate('tasks')} ms")
