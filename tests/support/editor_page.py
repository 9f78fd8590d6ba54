"""The page of ``lora-check --edit`` in a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import browser

# The browser has no network; what the test serves is no network.
LOCAL = "--proxy-bypass-list=127.0.0.1"
SECONDS = 30


@contextmanager
def opened(address: str, profile: Path, width: int = 1400, height: int = 900) -> Iterator[browser.Tab]:
    """The page in a browser of its own, with its pictures there."""
    program = browser.find_browser()
    assert program is not None
    with browser.open_browser(program, profile, LOCAL) as tab:
        tab.resize(width, height)
        tab.open(address)
        tab.wait("document.querySelector('.tile') !== null")
        yield tab


def wait_for(path: Path, content: bytes) -> None:
    """Wait until a file holds this."""
    end = time.monotonic() + SECONDS
    while not path.exists() or path.read_bytes() != content:
        assert time.monotonic() < end, f"{path}: {path.read_bytes() if path.exists() else None!r}"
        time.sleep(0.02)


def text(tab: browser.Tab, selector: str) -> str:
    """What an element says."""
    found: str = tab.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def says(tab: browser.Tab, selector: str, words: str) -> None:
    """Wait until an element says this, among other things."""
    tab.wait(f"document.querySelector({json.dumps(selector)}).textContent.includes({json.dumps(words)})")


def chips(tab: browser.Tab) -> list[str]:
    """The tags of the one picture that is selected."""
    found: list[str] = tab.evaluate(
        "[...document.querySelectorAll('#chips [data-chip]')].map(one => one.dataset.chip)"
    )
    return found


def pick(tab: browser.Tab, name: str, **how: bool) -> None:
    """Click a picture, wherever it is scrolled to."""
    tab.evaluate(
        f"reveal(rows.findIndex(index => data.pictures[index].path.endsWith({json.dumps(name)}))), null"
    )
    tab.click(f".tile[data-path$={json.dumps(name)}] .words", **how)


def type_over(tab: browser.Tab, selector: str, words: str) -> None:
    """Type into a field in place of what it holds."""
    tab.click(selector)
    tab.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
    tab.call("Input.insertText", text=words)
