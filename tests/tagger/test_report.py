"""``--report``: one page with the pictures, their tags, and where the model was unsure."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from support import browser

from .making import PICTURES, Tag, save_model, save_picture

PROGRAM = browser.find_browser()
CHANCES = {"general": (9, 0.9), "</script>": (0, 0.9), "solo": (0, 0.4), "cat": (0, 0.3), "dog": (0, 0.1)}


def rows_of(page: Path) -> list[dict[str, Any]]:
    (data,) = re.findall(r"const data = (\[.*?\]);\n", page.read_text(encoding="utf-8"), re.DOTALL)
    rows: list[dict[str, Any]] = json.loads(data)
    return rows


@pytest.mark.slow
def test_sure_and_unsure_tags(tag: Tag, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", CHANCES)
    save_picture(tmp_path / "a.png")
    shutil.copy(PICTURES / "truncated.jpg", tmp_path)
    page = tmp_path / "page.html"
    assert tag(tmp_path, "--report", page, model=model).code == 1
    good, bad = rows_of(page)
    assert good["tags"] == [["</script>", 0.9, "p"], ["solo", 0.4, "u"], ["cat", 0.3, "n"]]
    assert good["caption"] == "</script>, solo"
    assert good["image"].startswith("data:image/jpeg;base64,")
    assert "broken picture" in bad["error"]
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 1
    assert not re.search(r"https?://|<link|@import|url\(", text)
    before = page.read_bytes()
    result = tag(tmp_path, "--report", page, "--existing", "replace", model=model)
    assert (result.code, page.read_bytes()) == (1, before)
    assert "exists already; give --force" in result.error
    assert tag(tmp_path, "--report", page, "--force", "--no-txt", model=model).code == 1


@pytest.mark.slow
def test_models_that_disagree(tag: Tag, tmp_path: Path) -> None:
    other = {**CHANCES, "dog": (0, 0.8)}
    models = ["--model", save_model(tmp_path / "m", CHANCES), "--model", save_model(tmp_path / "n", other)]
    page = tmp_path / "page.html"
    tag(save_picture(tmp_path / "a.png"), "--report", page, *models, model=None)
    (row,) = rows_of(page)
    assert ["dog", 0.45, "d"] in row["tags"]
    assert row["caption"] == "</script>, dog, solo"


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None or os.name == "nt", reason="no Chromium here: apt-get install chromium")
def test_the_page_in_a_browser(tag: Tag, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "the page.html"
    tag(folder, "--report", page)
    rows = rows_of(page)
    names = [name for row in rows for name, *_ in row["tags"]]
    once = next(name for name in names if names.count(name) == 1 and name.isalnum())
    (place,) = [row["path"] for row in rows for name, *_ in row["tags"] if name == once]
    with browser.open_browser(PROGRAM, tmp_path / "profile") as tab:
        tab.open(page.as_uri())
        count = "document.querySelectorAll('figure').length"
        assert tab.evaluate(count) == 3
        tab.click(f"button[data-tag='{once}']")
        tab.wait(f"{count} === 1")
        assert tab.evaluate("document.querySelector('figure').dataset.path") == place
        tab.click(f"button[data-tag='{once}']")
        tab.wait(f"{count} === 3")
        assert tab.evaluate("document.querySelectorAll('img').length") == 3
        assert tab.errors == []
        assert [address for address in tab.requests if not address.startswith(("file:", "data:"))] == []
