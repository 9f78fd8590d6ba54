"""``lora-check --edit`` in a browser: captions are edited, nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import browser
from support.editor import Editor, editing, held
from support.editor_page import chips, opened, pick, says, text, type_over, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.find_browser() is None or os.name == "nt", reason="no Chromium here: apt-get install chromium"
    ),
]


@pytest.fixture
def folder(draw: Any, tmp_path: Path) -> Path:
    """Twelve pictures in two concepts, six of them with a hat; one without a caption, one with its own line ends."""
    for number in range(10):
        tags = ["mayu", "hat" if number % 2 else "tree", f"thing {number}", "rain"]
        draw(f"set/5_mayu/{number}.png", ", ".join(tags))
    draw("set/3_okabe/a.png", None)
    draw("set/3_okabe/b.png", "x").with_suffix(".txt").write_bytes(b"okabe, hat, night\r\n")
    return tmp_path / "set"


@pytest.fixture
def served(folder: Path) -> Iterator[Editor]:
    with editing(folder) as editor:
        yield editor


def shown(tab: Any) -> list[str]:
    found: list[str] = tab.evaluate(
        "[...document.querySelectorAll('.tile')].map(tile => tile.dataset.path.split('/').pop()).sort()"
    )
    return found


def filter_by(tab: Any, selector: str) -> None:
    """Click a filter; on a narrow screen the filters are opened first and closed then."""
    narrow = tab.evaluate("getComputedStyle(document.querySelector('#show-filters')).display !== 'none'")
    if narrow:
        tab.click("#show-filters")
    tab.click(selector)
    if narrow:
        tab.click("#show-filters")


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (420, 800)])
def test_every_edit_is_on_the_disk_and_can_be_undone(
    served: Editor, folder: Path, tmp_path: Path, width: int, height: int
) -> None:
    before = held(folder)
    first, third, last = folder / "5_mayu/1.txt", folder / "5_mayu/3.txt", folder / "3_okabe/b.txt"
    with opened(served.record["url"], tmp_path / "profile", width, height) as tab:
        assert text(tab, "#shown") == "12 pictures"
        assert text(tab, "#state") == "all saved"
        filter_by(tab, "nav [data-tag='hat']")
        assert text(tab, "#shown") == "6 of 12 pictures"

        # Rename a tag on all that have it: they stay in sight, and their other bytes stay as they are.
        tab.click("#all")
        assert text(tab, "#which") == "6 pictures selected"
        tab.click("#selection-tags [data-tag='hat'] [data-act='rename']")
        tab.call("Input.insertText", text="cap")
        tab.press("Enter")
        wait_for(last, b"okabe, cap, night\n")  # as lora-clean writes files
        wait_for(first, b"mayu, cap, thing 1, rain")
        says(tab, "#undo-what", "rename hat to cap")
        says(tab, "#again", "6 no longer match")
        assert text(tab, "#which") == "6 pictures selected"
        renamed = held(folder)
        tab.press("z", ctrl=True)
        says(tab, "#line-text", "Taken back")
        assert held(folder) == before
        tab.press("z", ctrl=True, shift=True)
        says(tab, "#line-text", "Done again")
        assert held(folder) == renamed

        # Enter takes what was typed; an arrow key chooses what is completed.
        tab.write("#add", "nig")
        says(tab, ".words-list", "night")
        tab.press("Enter")
        wait_for(first, b"mayu, cap, thing 1, rain, nig")
        tab.wait("document.querySelector('#add').value === ''")
        tab.write("#add", "sunny, nigh")
        tab.press("ArrowDown")
        tab.press("Enter")
        wait_for(first, b"mayu, cap, thing 1, rain, nig, sunny, night")
        tab.wait("document.querySelector('#add').value === ''")

        # Remove from all, and move to the front.
        tab.click("#selection-tags [data-tag='rain'] [data-act='remove']")
        wait_for(first, b"mayu, cap, thing 1, nig, sunny, night")
        tab.wait("!document.querySelector('#selection-tags [data-tag=rain]')")
        tab.click("#selection-tags [data-tag='cap'] [data-act='first']")
        wait_for(third, b"cap, mayu, thing 3, nig, sunny, night")
        says(tab, "#state", "all saved")

        # One picture: its tags are moved by keys, and many steps are one edit.
        filter_by(tab, "nav [data-tag='hat']")
        filter_by(tab, "nav [data-tag='sunny']")
        pick(tab, "5_mayu/3.png")
        assert chips(tab) == ["cap", "mayu", "thing 3", "nig", "sunny", "night"]
        tab.click("#chips [data-chip='sunny'] .word")
        tab.press("ArrowLeft", alt=True)
        tab.press("ArrowLeft", alt=True)
        wait_for(third, b"cap, mayu, sunny, thing 3, nig, night")
        tab.press("End")
        tab.press("Home", alt=True)
        wait_for(third, b"night, cap, mayu, sunny, thing 3, nig")
        tab.press("Delete")
        wait_for(third, b"cap, mayu, sunny, thing 3, nig")
        says(tab, "#undo-what", "remove night")
        tab.press("F2")
        tab.call("Input.insertText", text="red cap")
        tab.press("Enter")
        wait_for(third, b"red cap, mayu, sunny, thing 3, nig")
        tab.wait("document.activeElement.textContent === 'red cap'")

        # The text by hand.
        type_over(tab, "#caption", "mayu, a wide field of rye")
        assert text(tab, "#caption-state") == "not saved yet"
        assert third.read_bytes() == b"red cap, mayu, sunny, thing 3, nig"
        tab.press("Enter", ctrl=True)
        wait_for(third, b"mayu, a wide field of rye")
        says(tab, "#state", "all saved")
        assert chips(tab) == ["mayu", "a wide field of rye"]

        # Leave it out and take it in again.
        tab.click("#out")
        says(tab, "#out", "Take in again")
        says(tab, ".tile[data-path$='5_mayu/3.png'] .flag", "left out")
        tab.click("#out")
        tab.wait("document.querySelector('#out').textContent === 'Leave out'")

        # All the way back, byte for byte.
        while not tab.evaluate("document.querySelector('#undo').disabled"):
            tab.evaluate("clearLine()")
            tab.click("#undo")
            says(tab, "#line-text", "Taken back")
        assert held(folder) == before

        assert tab.errors == []
        assert {address.split("/")[2] for address in tab.requests if address.startswith("http")} == {
            f"127.0.0.1:{served.port}"
        }
        assert {address.split(":")[0] for address in tab.requests} <= {"http", "data"}


def test_pictures_are_selected_by_keys_and_by_the_mouse(served: Editor, tmp_path: Path) -> None:
    with opened(served.record["url"], tmp_path / "profile") as tab:
        pick(tab, "3_okabe/b.png")
        assert text(tab, "#which") == "b.png"
        tab.press("ArrowRight")
        assert text(tab, "#which") == "0.png"
        tab.press("ArrowRight", shift=True)
        tab.press("ArrowRight", shift=True)
        assert text(tab, "#which") == "3 pictures selected"
        pick(tab, "5_mayu/7.png", ctrl=True)
        assert text(tab, "#which") == "4 pictures selected"
        tab.press("ArrowRight", ctrl=True)
        tab.press(" ")
        assert text(tab, "#which") == "5 pictures selected"
        tab.press("a", ctrl=True)
        assert text(tab, "#which") == "12 pictures selected"
        assert text(tab, "#selection-tags [data-tag='hat'] .count") == "6 of 12"
        tab.press("Escape")
        assert text(tab, "#which") == "Nothing selected"
        pick(tab, "5_mayu/2.png")
        pick(tab, "5_mayu/4.png", shift=True)
        assert text(tab, "#which") == "3 pictures selected"

        # What is no longer in sight is not edited.
        filter_by(tab, "nav [data-tag='hat']")
        assert text(tab, "#which") == "3.png"
        assert shown(tab) == ["1.png", "3.png", "5.png", "7.png", "9.png", "b.png"]

        # By finding, and the next picture from within a field.
        filter_by(tab, "#clear")
        filter_by(tab, "[data-rule='missing-caption']")
        assert shown(tab) == ["a.png"]
        filter_by(tab, "#clear")
        pick(tab, "5_mayu/2.png")
        tab.press("e")
        assert tab.evaluate("document.activeElement.id") == "caption"
        tab.press("PageDown", alt=True)
        assert text(tab, "#which") == "3.png"
        assert tab.evaluate("document.activeElement.id") == "caption"
        tab.press("Escape")
        assert tab.evaluate("document.activeElement.id") == "grid"
        tab.press("/")
        tab.call("Input.insertText", text="Thing_1")
        assert tab.evaluate("[...document.querySelectorAll('#tags button')].map(b => b.dataset.tag)") == [
            "thing 1"
        ]
        tab.press("ArrowDown")
        tab.press("Enter")
        assert shown(tab) == ["1.png"]
        assert tab.evaluate("document.activeElement.dataset.tag") == "thing 1"

        # Escape closes the list of completions first, then leaves the name as it was.
        tab.press("g")
        tab.press("Home")
        tab.press("t")
        tab.press("F2")
        tab.call("Input.insertText", text="th")
        says(tab, "#chips", "thing 2")
        tab.press("Escape")
        assert tab.evaluate("document.activeElement.value") == "th"
        tab.press("Escape")
        assert tab.evaluate("document.activeElement.textContent") == "mayu"
        assert text(tab, "#undo-what") == ""
        tab.press("?")
        assert tab.evaluate("document.querySelector('#keys').open")
        tab.press("Escape")
        assert tab.errors == []


def test_leaving_the_field_saves_and_a_new_caption_is_written(
    served: Editor, folder: Path, tmp_path: Path
) -> None:
    with opened(served.record["url"], tmp_path / "profile") as tab:
        pick(tab, "3_okabe/a.png")
        tab.write("#caption", "okabe, sea")
        pick(tab, "3_okabe/b.png")
        wait_for(folder / "3_okabe/a.txt", b"okabe, sea\n")
        says(tab, "#state", "all saved")
        tab.click("#undo")
        says(tab, "#line-text", "Taken back")
        assert not (folder / "3_okabe/a.txt").exists()
        # The browser's own undo is for what is typed.
        tab.write("#caption", "X")
        tab.press("z", ctrl=True)
        assert text(tab, "#undo-what") == ""
        assert (folder / "3_okabe/b.txt").read_bytes() == b"okabe, hat, night\r\n"


def test_a_text_outlives_the_page(served: Editor, tmp_path: Path) -> None:
    with opened(served.record["url"], tmp_path / "profile") as tab:
        pick(tab, "5_mayu/2.png")
        type_over(tab, "#caption", "mayu, half a sent")
        # The browser would ask whether to leave.
        tab.evaluate("drafts.clear(), window.isOld = true")
        tab.call("Page.reload")
        tab.wait("!window.isOld && document.querySelector('.tile') !== null")
        says(tab, "#state", "1 text not saved")
        filter_by(tab, "[data-mark='not saved']")
        assert shown(tab) == ["2.png"]
        tab.click(".tile")
        assert tab.evaluate("document.querySelector('#caption').value") == "mayu, half a sent"


def test_what_a_tagger_would_add(folder: Path, tmp_path: Path) -> None:
    hints = tmp_path / "hints.jsonl"
    rows = [(folder / f"5_mayu/{number}.png", "mayu, blue_sky, wide field") for number in (1, 2)]
    hints.write_text("".join(json.dumps({"path": str(path), "caption": text}) + "\n" for path, text in rows))
    with (
        editing(folder, "--hints", hints) as editor,
        opened(editor.record["url"], tmp_path / "profile") as tab,
    ):
        pick(tab, "5_mayu/1.png")
        assert text(tab, "#hints") == "+ blue_sky+ wide field"
        # Written as this dataset writes its tags, and only where the tagger saw it.
        tab.press("a", ctrl=True)
        tab.click("[data-hint='blue_sky']")
        wait_for(folder / "5_mayu/1.txt", b"mayu, hat, thing 1, rain, blue sky")
        wait_for(folder / "5_mayu/2.txt", b"mayu, tree, thing 2, rain, blue sky")
        tab.wait("document.querySelector('[data-hint=blue_sky]') === null")
        assert (folder / "5_mayu/3.txt").read_bytes() == b"mayu, hat, thing 3, rain"


def test_a_second_tab_sees_it_and_an_old_edit_loses_nothing(
    served: Editor, folder: Path, tmp_path: Path
) -> None:
    path = folder / "5_mayu/2.txt"
    with (
        opened(served.record["url"], tmp_path / "one") as one,
        opened(served.record["url"], tmp_path / "two") as two,
    ):
        pick(two, "5_mayu/2.png")
        type_over(two, "#caption", "mayu, written in the second tab")
        pick(one, "5_mayu/2.png")
        one.write("#add", "umbrella")
        one.press("Enter")
        wait_for(path, b"mayu, tree, thing 2, rain, umbrella")
        says(two, ".tile[data-path$='5_mayu/2.png'] .text", "umbrella")
        # The text that was begun before is kept, and what is there now is told; neither is lost.
        two.wait("!document.querySelector('#clash').hidden")
        assert text(two, "#theirs") == "mayu, tree, thing 2, rain, umbrella"
        two.press("Enter", ctrl=True)
        two.click(".tile[data-path$='5_mayu/4.png']")
        assert path.read_bytes() == b"mayu, tree, thing 2, rain, umbrella"
        says(two, ".tile[data-path$='5_mayu/2.png'] .flag", "not saved")
        pick(two, "5_mayu/2.png")
        assert two.evaluate("document.querySelector('#caption').value") == "mayu, written in the second tab"
        two.click("#keep-mine")
        wait_for(path, b"mayu, written in the second tab")
        says(one, ".tile[data-path$='5_mayu/2.png'] .text", "second tab")
        two.click("#undo")
        wait_for(path, b"mayu, tree, thing 2, rain, umbrella")


def test_an_edit_from_outside_is_seen_and_not_overwritten(
    served: Editor, folder: Path, tmp_path: Path
) -> None:
    path = folder / "5_mayu/4.txt"
    with opened(served.record["url"], tmp_path / "profile") as tab:
        pick(tab, "5_mayu/4.png")
        path.write_bytes(b"mayu, from outside")
        says(tab, "#line-text", "1 caption changed elsewhere")
        assert chips(tab) == ["mayu", "from outside"]
        assert tab.evaluate("document.querySelector('#caption').value") == "mayu, from outside"

        type_over(tab, "#caption", "mayu, mine")
        path.write_bytes(b"mayu, outside again")
        tab.wait("!document.querySelector('#clash').hidden")
        assert tab.evaluate("document.querySelector('#caption').value") == "mayu, mine"
        tab.press("Enter", ctrl=True)
        assert path.read_bytes() == b"mayu, outside again"
        tab.click("#take-theirs")
        assert tab.evaluate("document.querySelector('#caption').value") == "mayu, outside again"
        says(tab, "#state", "all saved")

        # A selection where one has changed before the page could see it: that one is left, the others are edited.
        tab.evaluate("look = async () => {}")
        tab.press("Escape")
        tab.press("a", ctrl=True)
        path.write_bytes(b"mayu, a third time")
        tab.click("#selection-tags [data-tag='mayu'] [data-act='last']")
        says(tab, "#line-text", "1 caption had changed elsewhere and was left as found")
        assert path.read_bytes() == b"mayu, a third time"
        assert (folder / "5_mayu/2.txt").read_bytes() == b"tree, thing 2, rain, mayu"
        tab.click("#line-act")
        assert chips(tab) == ["mayu", "a third time"]


def test_a_server_that_ended_is_told_and_the_text_kept(served: Editor, folder: Path, tmp_path: Path) -> None:
    with opened(served.record["url"], tmp_path / "profile") as tab:
        pick(tab, "5_mayu/4.png")
        type_over(tab, "#caption", "mayu, not to be lost")
        served.process.kill()
        says(tab, "#state", "No connection: 1 text kept here")
        tab.press("Enter", ctrl=True)
        says(tab, "#line-text", "Not saved: no connection to lora-check")
        pick(tab, "5_mayu/6.png")
        tab.write("#add", "a tag of its own")
        tab.press("Enter")
        says(tab, "#line-text", "Not saved")
        assert tab.evaluate("document.querySelector('#add').value") == "a tag of its own"
        pick(tab, "5_mayu/4.png")
        assert tab.evaluate("document.querySelector('#caption').value") == "mayu, not to be lost"
        assert text(tab, "#caption-state") == "no connection: kept here"
        assert (folder / "5_mayu/4.txt").read_bytes() == b"mayu, tree, thing 4, rain"
