"""The HTML report: what is in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import browser

PROGRAM = browser.find_browser()
needs_browser = pytest.mark.skipif(
    PROGRAM is None or os.name == "nt", reason="no Chromium here: apt-get install chromium"
)
NASTY = "mayu, </script><script>document.title='bad'</script>, <b>tree</b> & 'cat'"


@pytest.fixture
def report(draw: Any, check: Any, tmp_path: Path) -> Path:
    """The page of six pictures, three of them with a hat, in two concepts; one caption is nasty."""
    for number in range(5):
        tags = [
            "mayu",
            "tree" if number % 2 else "hat",
            f"thing {number}",
            "signature" if number == 4 else "rain",
        ]
        draw(f"a set/5_mayu/{number}.png", ", ".join(tags))
    draw("a set/5_okabe/x#%.png", NASTY)
    (tmp_path / "a set/5_mayu/gone.txt").touch()
    output = tmp_path / "the report.html"
    done = check(tmp_path / "a set", "--resolution", 96, "--html", output)
    assert f"report: {output}" in done.err
    return output


def shown(tab: Any) -> list[str]:
    found: list[str] = tab.evaluate(
        "[...document.querySelectorAll('figure')].map(f => f.dataset.path.split('/').pop())"
    )
    return found


def test_the_page_stands_alone(report: Path) -> None:
    text = report.read_text()
    (data,) = re.findall(r"const data = (.*);\n", text)
    pictures = json.loads(data)["pictures"]
    assert len(pictures) == 6
    assert all(picture["image"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert pictures[5]["caption"] == NASTY
    assert text.count("</script>") == 1
    assert not re.search(r"https?://|src=\"(?!data:)|<link|@import|url\(", text.replace(data, ""))
    assert "default-src 'none'" in text


def test_an_existing_page_stays(check: Any, report: Path, tmp_path: Path) -> None:
    before = report.read_bytes()
    done = check(tmp_path / "a set", "--html", report)
    assert (done.code, "exists already; give --force" in done.err, report.read_bytes()) == (1, True, before)
    assert check(tmp_path / "a set", "--resolution", 96, "--html", report, "--force").code == 0


def test_the_report_goes_to_a_file(check: Any, report: Path, tmp_path: Path) -> None:
    """Its suffix says the form; the path goes to stdout in the report's place."""
    words = (tmp_path / "a set", "--resolution", 96)
    printed = check(*words, "--all")
    for name in ("r.txt", "r.JSON", "r.html"):
        done = check(*words, "-o", tmp_path / name)
        assert (done.code, done.out) == (printed.code, f"{tmp_path / name}\n")
    assert (tmp_path / "r.txt").read_text() == printed.out
    assert (tmp_path / "r.html").read_bytes() == report.read_bytes()
    record = json.loads((tmp_path / "r.JSON").read_text())
    assert record == check(*words, "--json").json
    both = check(*words, "--json", "--output", tmp_path / "r.txt", "--force")
    assert both.json == record
    done = check(*words, "-o", tmp_path / "r.txt")
    assert (done.code, "exists already; give --force" in done.err) == (1, True)
    done = check(*words, "-o", tmp_path / "report")
    assert (done.code, "its suffix says the form of the report: .html, .json, .txt" in done.err) == (2, True)


@pytest.fixture
def tab(report: Path, tmp_path: Path) -> Iterator[Any]:
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        tab.open(report.as_uri())
        yield tab


@pytest.mark.slow
@needs_browser
def test_in_a_browser(tab: Any, report: Path) -> None:
    everything = [f"{number}.png" for number in range(5)] + ["x#%.png"]
    assert shown(tab) == everything
    assert tab.evaluate("document.title").startswith("lora-check: ")
    tab.wait("[...document.images].slice(0, 6).every(i => i.complete && i.naturalWidth > 0)")

    # A tag, a second one, none of them, and one that may not be there.
    tab.click("[data-tag='hat']")
    assert shown(tab) == ["0.png", "2.png", "4.png"]
    assert tab.evaluate("document.querySelector('#shown').textContent") == "3 of 6 pictures"
    tab.click("[data-tag='signature']")
    assert shown(tab) == ["4.png"]
    tab.click("#clear")
    assert shown(tab) == everything
    tab.click("[data-tag='hat']", shift=True)
    assert shown(tab) == ["1.png", "3.png", "x#%.png"]
    assert tab.evaluate("location.hash") == "#not=hat"
    tab.click("#clear")

    # Tags come by frequency and can be searched.
    tags = tab.evaluate("[...document.querySelectorAll('[data-tag]')].map(b => b.dataset.tag)")
    assert tags[:3] == ["mayu", "rain", "hat"]
    tab.write("#search", "thing")
    tags = tab.evaluate("[...document.querySelectorAll('[data-tag]')].map(b => b.dataset.tag)")
    assert tags == [f"thing {number}" for number in range(5)]

    # Findings lead to their pictures and say how they are mended.
    tab.click("[data-rule='artefact']")
    assert shown(tab) == ["4.png"]
    assert "crop or paint them out" in tab.evaluate("document.querySelector('#case').textContent")
    tab.click("[data-rule='orphan-caption']")
    assert shown(tab) == []
    assert "gone.txt" in tab.evaluate("document.querySelector('#case').textContent")
    tab.click("#clear")

    # Concepts, and one picture closely.
    tab.evaluate(
        "[...document.querySelectorAll('#concepts button')].find(b => b.textContent.includes('okabe')).click()"
    )
    assert shown(tab) == ["x#%.png"]
    tab.click("figure")
    assert tab.evaluate("document.querySelector('#detail').open")
    assert "</script><script>" in tab.evaluate("document.querySelector('#detail').textContent")
    assert tab.evaluate("document.querySelector('#detail a').href").endswith("/a%20set/5_okabe/x%23%25.png")

    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data"}
    assert [address for address in tab.requests if address.startswith("file:")] == [report.as_uri()]


@pytest.mark.slow
@needs_browser
def test_a_link_opens_the_same_view(report: Path, tmp_path: Path) -> None:
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        tab.open(report.as_uri() + "#tag=hat&not=signature&rule=nonsense")
        assert shown(tab) == ["0.png", "2.png"]
        assert tab.errors == []
