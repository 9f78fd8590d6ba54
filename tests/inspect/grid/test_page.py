"""The page: what is in it, and how it behaves in a browser at two widths."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support import browser
from support.cells import GOOD, UNDERCOOKED, Plan, infotext, write_folder
from support.commands import run

pytestmark = pytest.mark.slow

PROGRAM = browser.find_browser()
needs_browser = pytest.mark.skipif(
    PROGRAM is None or os.name == "nt", reason="no Chromium here: apt-get install chromium"
)
PLAN = Plan({"mina-000002": UNDERCOOKED, "mina": GOOD}, (0.7, 1.0), range(2), ("T", "O"), 96)
NASTY = "</script><script>document.title='bad'</script>, <b>x</b>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files at two weights, two seeds and two prompts, one cell of them broken, one nasty."""
    place = tmp_path_factory.mktemp("page")
    folder = write_folder(place / "a folder", PLAN)
    sorted(folder.glob("*.png"))[1].write_bytes(b"broken")
    notes = PngInfo()
    notes.add_text("parameters", infotext("T", "mina", 1, 5, 32).replace("park", f"park, {NASTY}"))
    Image.new("RGB", (32, 48), "blue").save(folder / "nasty.png", pnginfo=notes)
    output = place / "the page.html"
    done = run("lora-grid", folder, "--html", output, "--title", NASTY)
    assert done.returncode == 1
    assert f"page: {output}" in done.stderr
    return output


def data_of(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'id="data">(.*)</script>', page.read_text(encoding="utf-8"))
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_stands_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    data = data_of(page)
    (pictures,) = re.findall(r'id="pictures">(.*)</script>', text)
    assert len(json.loads(pictures)) == 20  # of 21 cells one is broken
    assert text.count("</script>") == 3
    assert "default-src 'none'; img-src data: blob:;" in text
    code = text.replace(pictures, "").replace(json.dumps(data), "")
    assert not re.search(r'https?://|src="(?!data:)|<link|@import|url\(|fetch|XMLHttp|innerHTML', code)
    assert str(page.parent) not in text
    # A broken picture says nothing of its place.
    assert len(data["cells"]) == 20
    assert {cell["error"] for cell in data["cells"]} == {None}


def test_a_picture_that_cells_share_is_in_it_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cells", PLAN)
    lines = [
        {"path": str(path), "seed": seed} for path in sorted(folder.glob("*.png"))[:3] for seed in range(50)
    ]
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("lora-grid", tmp_path / "cells.jsonl", "--html", tmp_path / "g.html").returncode == 0
    (pictures,) = re.findall(r'id="pictures">(.*)</script>', (tmp_path / "g.html").read_text())
    assert len(json.loads(pictures)) == 3


def test_200_cells_of_512_pixels_are_under_12_mib(tmp_path: Path) -> None:
    """By ten pictures with the detail of photographs: as PNG they have 368 KiB and more, as photographs do."""
    random = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    frequency[0, 0] = 1

    def clouds() -> Any:
        field = np.fft.ifft2(np.fft.fft2(random.normal(size=(512, 512))) / frequency**1.52).real
        return (field - field.mean()) / field.std()

    (tmp_path / "cells").mkdir()
    for number in range(10):
        grey = clouds() * 45
        pixels = (
            np.stack([grey + clouds() * 12 + 128 for _ in range(3)], axis=-1).clip(0, 255).astype(np.uint8)
        )
        path = tmp_path / f"cells/{number}.png"
        Image.fromarray(pixels).save(path)
    assert sum(path.stat().st_size for path in (tmp_path / "cells").iterdir()) > 10 * 368 * 1024
    assert run("lora-grid", tmp_path / "cells", "--html", tmp_path / "g.html").returncode == 0
    assert (tmp_path / "g.html").stat().st_size * 20 < 12 << 20


@pytest.fixture(params=[1400, 420])
def tab(request: pytest.FixtureRequest, page: Path, tmp_path: Path) -> Iterator[Any]:
    assert PROGRAM is not None
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        resize(tab, request.param)
        tab.open(page.as_uri())
        yield tab


def resize(tab: Any, width: int) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=False)


def press(tab: Any, key: str, code: str | None = None) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or key, **text)


def where(tab: Any) -> str:
    found: str = tab.evaluate("document.querySelector('#where').textContent")
    return found


def heads(tab: Any) -> list[str]:
    found: list[str] = tab.evaluate("[...document.querySelectorAll('thead th span')].map(e => e.textContent)")
    return found


@needs_browser
def test_in_a_browser(tab: Any, page: Path) -> None:
    assert heads(tab) == ["base", "mina-000002", "mina"]
    assert tab.evaluate("document.title") == f"lora-grid: {NASTY}"
    tab.wait(
        "[...document.images].length >= 5 && [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    # Nothing is wider than the window but the table, which scrolls by itself.
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("[...document.images].every(i => i.alt.includes('weight: '))")
    assert tab.evaluate("[...document.querySelectorAll('.missing')].map(e => e.textContent)") == ["missing"]

    # A column is hidden and comes back.
    tab.click("[data-hide='file:1']")
    assert heads(tab) == ["base", "mina"]
    assert "hide=0:1" in tab.evaluate("location.hash")
    tab.click("#hidden button")
    assert heads(tab) == ["base", "mina-000002", "mina"]

    # Another axis in the rows; sheets.
    tab.evaluate("(() => { const e = $('y'); e.value = '2'; e.dispatchEvent(new Event('change')); })()")
    assert tab.evaluate("document.querySelector('thead th').textContent") == "seed \\ file"
    assert tab.evaluate("document.querySelectorAll('tbody tr').length") == 3  # seed 5 is the nasty cell's
    tab.evaluate("(() => { const e = $('y'); e.value = '1'; e.dispatchEvent(new Event('change')); })()")

    # The full view: arrows walk along the axes, and stop at the end.
    tab.click("[data-place='2,0,0,0']")
    assert where(tab).startswith("file: mina, weight: 0.7, seed: 0")
    press(tab, "ArrowDown")
    press(tab, "ArrowDown")
    assert where(tab).startswith("file: mina, weight: 1, seed: 0")
    press(tab, "ArrowLeft")
    assert where(tab).startswith("file: mina-000002, weight: 1")
    press(tab, "PageDown")
    assert where(tab).startswith("file: mina-000002, weight: 1, seed: 1")
    assert tab.evaluate("$('live').textContent") == where(tab)

    # Flipping shows the base, then a cell that is pinned, at the same zoom.
    press(tab, "z")
    shown = tab.evaluate("$('stage').querySelector('img').src")
    press(tab, " ", "Space")
    assert where(tab).startswith("pinned: file: base")
    assert tab.evaluate("$('stage').querySelector('img').src") != shown
    assert tab.evaluate("$('stage').querySelector('img').width") == 96
    press(tab, " ", "Space")
    assert tab.evaluate("$('stage').querySelector('img').src") == shown
    press(tab, "p")
    press(tab, "ArrowRight")
    press(tab, " ", "Space")
    assert where(tab).startswith("pinned: file: mina-000002, weight: 1, seed: 1")
    assert tab.evaluate("$('stage').querySelector('img').src") == shown
    press(tab, " ", "Space")

    # Parameters are copied as they stand in the picture.
    tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    press(tab, "c")
    tab.wait("$('where').textContent === 'parameters copied'")
    assert tab.evaluate("navigator.clipboard.readText()").replace("\r", "") == infotext(
        "T", "mina", 1.0, 1, 96
    )

    # The address holds the view.
    state = tab.evaluate("location.hash")
    tab.call("Page.reload")
    tab.wait("document.readyState === 'complete' && $('full').open")
    assert tab.evaluate("location.hash") == state
    assert where(tab).startswith("file: mina, weight: 1, seed: 1")
    press(tab, " ", "Space")
    assert where(tab).startswith("pinned: file: mina-000002, weight: 1, seed: 1")
    press(tab, "Escape")
    tab.wait("!$('full').open")
    tab.wait("document.activeElement.dataset.place === '2,1,1,0'")
    assert "open=1" not in tab.evaluate("location.hash")

    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data", "blob"}
    assert {address for address in tab.requests if address.startswith("file:")} <= {
        page.as_uri(),
        page.as_uri() + state,
    }


@needs_browser
def test_an_address_that_is_nonsense(page: Path, tmp_path: Path) -> None:
    assert PROGRAM is not None
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        tab.open(
            page.as_uri() + "#x=nobody&y=file&at=99.x.-1&hide=0:0.1.2,9:1&pin=1e9&side=7&open=1&figure=zz"
        )
        tab.wait("document.images.length > 0 && $('full').open")
        assert where(tab).startswith("file: base")
        assert tab.errors == []


@needs_browser
def test_figures_and_reduced_motion(page: Path, tmp_path: Path) -> None:
    assert PROGRAM is not None
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        tab.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        tab.open(page.as_uri() + "#figure=*")
        tab.wait("document.images.length > 0")
        notes = tab.evaluate("[...document.querySelectorAll('.figures')].map(e => e.innerText)")
        assert all(re.search(r"move\s+[\d.]+", note) for note in notes)
        # Figures are differences from the base, which has none.
        assert len(notes) == tab.evaluate(
            "[...document.querySelectorAll('[data-place]:not([data-place^=\"0\"])')].length"
        )
        tab.click("[data-place='2,0,0,0']")
        assert tab.evaluate("$('auto').disabled")
        tab.call("Emulation.setEmulatedMedia", features=[])
        tab.wait("!$('auto').disabled")
        tab.click("#auto")
        tab.wait("$('where').textContent.startsWith('pinned: ')")
        tab.wait("!$('where').textContent.startsWith('pinned: ')")
        assert tab.evaluate("FLIPS") >= 500
