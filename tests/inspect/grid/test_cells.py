"""Cells out of records, pictures and folders; axes; the labelled sheet; what is told of bad input."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.sampling.infotext import read_infotext
from lorapipe_engine.sampling.prompts.tags import split_known_tags
from lorapipe_inspect.grid.cells import find_cells
from lorapipe_inspect.grid.layout import Grid, lay_out
from lorapipe_inspect.text import short_names
from support.cells import GOOD, UNDERCOOKED, Plan, infotext, write_folder, write_records
from support.commands import run

PLAN = Plan({"mina-000002": UNDERCOOKED, "mina-000010": GOOD, "mina": GOOD}, (0.7, 1.0), range(2), ("T",), 48)


def axes_of(grid: Grid) -> dict[str, list[str]]:
    return {axis.name: list(axis.labels) for axis in grid.axes}


def from_lines(*records: dict[str, Any]) -> Grid:
    text = "".join(json.dumps(record) + "\n" for record in records)
    return lay_out(find_cells([], io.BytesIO(text.encode())))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "cells", PLAN)


# -------------------------------------------------------------------------------- parameters


def test_parameters_are_read_as_they_are_written() -> None:
    info = read_infotext(infotext("T", "mina-000002", 0.7, 5, 48))
    prompt, tags = split_known_tags(info.prompt)
    assert prompt == "mina, 1girl, green hair, park"
    assert info.negative == "lowres, bad anatomy"
    assert info.pairs["Seed"] == "5"
    assert [(tag.name, tag.te, tag.unet) for tag in tags] == [("mina-000002", 0.7, 0.7)]


def test_quoted_values_and_short_last_lines() -> None:
    info = read_infotext('a\nSteps: 20, Seed: 1, Sampler: Euler, Lora hashes: "a: 12, b: 34", Note: "x\\ny"')
    assert info.pairs["Lora hashes"] == "a: 12, b: 34"
    assert info.pairs["Note"] == "x\ny"
    # Fewer than three pairs are a line of the prompt.
    assert read_infotext("a cat\nSeed: 1, Steps: 2").prompt == "a cat\nSeed: 1, Steps: 2"


@pytest.mark.parametrize(
    "text", ["a" * 2_000_000, "<lora:" * 300_000, "a\n" + "ab " * 600_000, "\n" * 2_000_000]
)
def test_texts_that_would_take_long(text: str) -> None:
    began = time.perf_counter()
    assert split_known_tags(read_infotext(text).prompt)[1] == ()
    assert time.perf_counter() - began < 5


def test_strengths_of_tags() -> None:
    text, tags = split_known_tags("a <lora:x:0.5:0.25>, <lora:y>, <lora:z:te=1:unet=0.5>, <lora:w:zz>")
    assert [(tag.name, tag.te, tag.unet) for tag in tags] == [("x", 0.5, 0.25), ("y", 1, 1), ("z", 1, 0.5)]
    assert "<lora:w:zz>" in text  # no number, so no network


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_parameters_in_every_kind_of_picture(tmp_path: Path, suffix: str) -> None:
    text = infotext("T", "mina", 0.8, 3, 16) + ", Note: é"
    picture = Image.new("RGB", (16, 16), "red")
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        from PIL.PngImagePlugin import PngInfo

        notes = PngInfo()
        notes.add_itxt("parameters", text)
        picture.save(path, pnginfo=notes)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
        picture.save(path, exif=exif)
    (cell,) = find_cells([str(path)])
    assert cell.infotext == text
    assert (cell.values["file"], cell.values["weight"], cell.values["seed"]) == ("mina", 0.8, 3)


# -------------------------------------------------------------------------------- axes


def test_a_folder_gets_its_axes_from_the_parameters(folder: Path) -> None:
    grid = lay_out(find_cells([str(folder)]))
    assert axes_of(grid) == {
        "file": ["base", "mina-000002", "mina-000010", "mina"],  # the last epoch has no number
        "weight": ["0.7", "1"],
        "seed": ["0", "1"],
    }
    # One picture of the base serves both weights.
    assert grid.places[0, 0, 1] == grid.places[0, 1, 1]
    assert len(set(grid.places.values())) == len(grid.cells)


def test_records_override_pictures_and_give_the_same_grid(tmp_path: Path, folder: Path) -> None:
    listed = write_records(tmp_path / "records", PLAN)
    grid = lay_out(find_cells([str(listed)]))
    assert axes_of(grid) == axes_of(lay_out(find_cells([str(folder)])))
    path = next(folder.glob("*.png"))
    grid = from_lines({"path": str(path), "seed": 77}, {"path": str(path), "seed": 78})
    assert axes_of(grid) == {"seed": ["77", "78"]}


def test_what_follows_from_an_axis_is_none(folder: Path) -> None:
    path = str(next(folder.glob("*.png")))
    grid = from_lines(
        *({"path": path, "seed": seed, "prompt": f"cat in {place}", "weight": weight, "file": "a"}
          for seed, place in ((1, "snow"), (2, "rain"))
          for weight in (0.5, 1))
    )  # fmt: skip
    assert list(axes_of(grid)) == ["weight", "seed"]
    assert axes_of(lay_out(grid.cells, "seed", "prompt"))["prompt"] == ["cat in snow", "cat in rain"]


def test_declared_axes_come_in_their_order(folder: Path) -> None:
    path = str(next(folder.glob("*.png")))
    grid = from_lines(
        *(
            {"path": path, "axes": {"Rank": rank, "Prompt S/R": word}}
            for rank in (8, 32, 128)
            for word in "ab"
        )
    )
    assert axes_of(grid) == {"rank": ["8", "32", "128"], "prompt_s/r": ["a", "b"]}


def test_one_weight_axis_has_the_base_in_front(folder: Path) -> None:
    path = str(next(folder.glob("*.png")))
    rows = [{"path": path, "prompt": f"a <lora:m:{weight}>"} for weight in (1.3, 0.7)]
    grid = from_lines({"path": path, "prompt": "a"}, *rows)
    assert axes_of(grid) == {"weight": ["base", "0.7", "1.3"]}


def test_a_tag_of_a_network_called_none_is_no_base(folder: Path) -> None:
    """A record's file None is the base, as older records have it."""
    path = str(next(folder.glob("*.png")))
    tagged = ({"path": path, "prompt": f"a <lora:{name}:1>"} for name in ("None", "m"))
    assert axes_of(from_lines({"path": path, "prompt": "a", "file": "None"}, *tagged)) == {
        "file": ["base", "lora:None", "m"]
    }


def test_a_network_that_all_share_is_no_axis(folder: Path) -> None:
    path = str(next(folder.glob("*.png")))
    prompts = ["a <lora:style:0.5>", "a <lora:style:0.5> <lora:m:1>", "a <lora:style:0.5> <lora:m:0.6>"]
    grid = from_lines(*({"path": path, "prompt": prompt} for prompt in prompts))
    assert axes_of(grid) == {"weight": ["base", "0.6", "1"]}


def test_records_of_a_plan_are_one_grid(folder: Path) -> None:
    """As lora-sample has them: the base once for each weight, sharing a picture, and weights of zero as they are."""
    paths = sorted(map(str, folder.glob("*.png")))
    records = [
        {
            "path": paths[0] if file == "None" or weight == 0 else paths[number],
            "axes": {"file": file, "weight": weight, "seed": 5.0},
            "file": file,
            **({} if file == "None" else {"weight": weight}),
            "networks": [{"path": f"run/{file}.safetensors", "te": weight, "unet": weight}],
            "prompt": "mina, 1girl",
            "kind": "trigger",
        }
        for number, (file, weight) in enumerate(
            (file, weight) for file in ("None", "m-000002", "m") for weight in (0, 0.7, 1.0)
        )
    ]
    grid = from_lines(*records)
    assert axes_of(grid) == {"file": ["base", "m-000002", "m"], "weight": ["0", "0.7", "1"]}
    assert len(grid.cells) == 7
    assert len(grid.places) == 9
    assert grid.places[0, 0] == grid.places[0, 2]


def test_pictures_without_parameters_are_named(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert axes_of(lay_out(find_cells([str(tmp_path)]))) == {"picture": ["b9.png", "b10.png"]}


def test_equal_names_keep_what_tells_them_apart() -> None:
    assert short_names(["slow/m.metrics.jsonl", "fast/m.metrics.jsonl"]) == ["slow/m", "fast/m"]
    assert short_names(["/home/me/one/m.safetensors", "/home/me/two/m.safetensors", "C:\\x\\n.safetensors"]) == [
        "one/m", "two/m", "n",
    ]  # fmt: skip


def test_an_axis_that_is_not_there_is_refused(folder: Path) -> None:
    cells = find_cells([str(folder)])
    with pytest.raises(ConfigError, match=r"--x weigth: no axis .*did you mean 'weight'"):
        lay_out(cells, "weigth")
    with pytest.raises(ConfigError, match="have this axis already"):
        lay_out(cells, "weight", "Weight")
    assert [axis.name for axis in lay_out(cells, None, "file").axes][:2] == ["weight", "file"]


# -------------------------------------------------------------------------------- the sheet


def test_the_sheet_has_every_cell_at_its_place(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "g.png"
    done = run("lora-grid", folder, "-o", output, "--title", "four files")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"sheet: {output}" in done.stderr
    sheet = Image.open(output).convert("RGB")
    for cell in find_cells([str(folder)]):
        # All pixels of a cell stand somewhere, at its own size.
        assert contains(sheet, Image.open(cell.path).convert("RGB")), cell.path
    assert run("lora-grid", folder, "-o", output).returncode == 1
    assert run("lora-grid", folder, "-o", output, "--force").returncode == 0


def contains(sheet: Image.Image, picture: Image.Image) -> bool:
    row = picture.crop((0, 0, picture.width, 1)).tobytes()
    data, width = sheet.tobytes(), sheet.width * 3
    at = data.find(row)
    while at >= 0:
        y, x = divmod(at, width)
        if sheet.crop((x // 3, y, x // 3 + picture.width, y + picture.height)).tobytes() == picture.tobytes():
            return True
        at = data.find(row, at + 1)
    return False


def test_a_large_sheet_becomes_pages(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorapipe_inspect.grid import sheet
    from lorapipe_inspect.grid.run import paint

    monkeypatch.setattr(sheet, "MOST_PIXELS", 80_000)
    grid = lay_out(find_cells([str(folder)]))
    paths = sheet.write_sheets(tmp_path / "g.png", grid, paint, (48, 48), "", force=False)
    assert [path.name for path in paths] == ["g.png", "g-2.png"]
    pages = [Image.open(path).convert("RGB") for path in paths]
    assert all(page.width * page.height <= 80_000 for page in pages)
    for cell in grid.cells:
        assert any(contains(page, Image.open(cell.path).convert("RGB")) for page in pages)
    with pytest.raises(InputError, match="too large for one sheet; give --size"):
        sheet.write_sheets(tmp_path / "h.png", grid, paint, (4000, 4000), "", force=False)


# -------------------------------------------------------------------------------- bad input


def test_broken_cells_are_told_and_the_others_shown(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    (folder / "zz\x1b]0;pwned\x07.png").write_bytes(b"no picture")
    done = run("lora-grid", folder, "-o", tmp_path / "g.png")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 2
    assert "\x1b" not in done.stderr + done.stdout
    assert "zz\\x1b]0;pwned\\x07.png" in done.stderr
    sheet = Image.open(tmp_path / "g.png").convert("RGB")
    assert contains(sheet, Image.open(paths[0]).convert("RGB"))


def test_records_without_pictures(tmp_path: Path, folder: Path) -> None:
    path = next(folder.glob("*.png"))
    lines = [
        {"path": str(path), "seed": 1},
        {"path": "gone.png", "seed": 2},
        {"path": "x.png", "seed": 3, "error": "out of\nmemory"},
    ]
    listed = tmp_path / "cells.jsonl"
    listed.write_text("\n".join(map(json.dumps, lines)))
    done = run("lora-grid", listed)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "lora-grid: error: gone.png: there is no such file",
        "lora-grid: error: x.png: out of\\nmemory",
    ]
    assert "seed: 1; 2; 3" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        ([], "no cells: the list is empty"),
        (["cells", "-o", "g.jpg"], "-o g.jpg: a file that ends in .png is meant"),
        (["cells", "--quality", "90"], "--quality has a use only with --html"),
        (["cells", "--trigger", "nobody"], "--trigger nobody: no prompt of these cells has it"),
        (["cells", "--best"], "--best: nothing to compare by: give --trigger"),
        (
            ["cells", "--best", "--by", "recall", "--trigger", "mina"],
            "--by recall: these cells have no such figure",
        ),
        (["cells", "--dataset", "cells"], "--dataset has a use only with tags"),
        (["cells", "--dino", "x.onnx", "--held-out", "cells"], "x.onnx: no such file"),
        (["bad.jsonl"], "bad.jsonl, line 1: no JSON record"),
        (["empty"], "empty: has no .png"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(folder: Path, words: list[str], told: str) -> None:
    (folder.parent / "bad.jsonl").write_text("{nonsense\n")
    (folder.parent / "empty").mkdir()
    done = run("lora-grid", *words, cwd=folder.parent)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_scattered_cells_are_no_sheet(folder: Path, tmp_path: Path) -> None:
    path = str(next(folder.glob("*.png")))
    lines = [
        json.dumps({"path": path, "seed": n, "cfg": n % 299, "steps": n // 7, "file": f"m{n}"})
        for n in range(300)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    done = run("lora-grid", tmp_path / "c.jsonl", "--x", "seed", "--y", "file", "-o", tmp_path / "g.png")
    assert done.returncode == 2
    assert "seed and file make 90,000 places for 300 cells, more than 50,000; name other axes" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sheets_without_a_cell_are_left_out(folder: Path, tmp_path: Path) -> None:
    path = str(next(folder.glob("*.png")))
    rows = [{"path": path, "axes": {"a": n % 2, "b": n % 3, "c": n, "d": n}} for n in range(12)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("lora-grid", tmp_path / "c.jsonl", "-o", tmp_path / "g.png").returncode == 0
    height = Image.open(tmp_path / "g.png").height
    assert 12 * 3 * 48 < height < 12 * 3 * 48 * 2  # not 144 sheets


def test_no_picture_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    done = run("lora-grid", tmp_path)
    assert done.returncode == 2
    assert "none of the 1 cell has a picture" in done.stderr


@pytest.mark.slow
def test_thousands_of_cells(tmp_path: Path) -> None:
    """Of many cells a part is broken; the page is made, and the lines about them are few."""
    folder = tmp_path / "many"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    lines = []
    for number in range(3000):
        name = f"{number}.png"
        if number % 10:
            shutil.copy(folder / "a.png", folder / name)
        lines.append(
            json.dumps({"path": name, "seed": number % 50, "file": f"m-{number // 50:06}", "weight": 1})
        )
    (folder / "cells.jsonl").write_text("\n".join(lines))
    done = run("lora-grid", folder / "cells.jsonl", "--html", tmp_path / "g.html", "-o", tmp_path / "g.png")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 21
    assert "and 280 more pictures that cannot be read" in done.stderr
    # One picture, however many cells show it.
    assert (tmp_path / "g.html").stat().st_size < 2_000_000
