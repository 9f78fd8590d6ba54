"""A folder of all odd things at once: five tools count it alike, say the same of the rest, and give every byte back."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.datasets.described import dataset_notes, folder_lines
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.settings import DataSettings
from support.commands import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names and links that Windows lacks")

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"
E_ONE, E_TWO = "\u00e9", "e\u0301"  # e with an accent, as one letter and as two
LONG = "b" * 251  # with .png as long as a name can be
NAMES = (
    *("100%", "a#b", "a;b", "new\nline", "-dash", "dot.", "space ", "{br}", "[g]", "a b", "q'\"", "a.b.c"),
    *(LONG, "bad\udcff"),
)
NOT_TRAINED = {
    "1 picture in ' 5_x', which has no number of repeats in front (rename it to '5_x')",
    "1 picture in '-1_x', which has no number of repeats in front (rename it to '10_-1_x')",
    "1 picture in '0_x', whose name asks for 0 repeats",
    "1 picture in '1e3_x', which has no number of repeats in front (rename it to '10_1e3_x')",
    "1 picture in 'log', which has no number of repeats in front (rename it to '10_log')",
    "1 picture in 'reg', which has no number of repeats in front (rename it to '10_reg')",
    "1 picture in folders inside a concept's folder",
    "1 picture in a folder of masks",
    "3 pictures in folders that are no part of a dataset (.ipynb_checkpoints, @eaDir, __MACOSX)",
    "1 picture hidden by a dot in front of the name (.hid.png)",
    "3 pictures whose name leads to no file (broken.png, loop.png, pipe.png)",
    "1 mask beside the pictures (m-masklabel.png)",
    "2 pictures of kinds that are not trained (1 .jfif, 1 .gif): convert them to png",
}
BARE = ["anim.webp", "apng.png", "c.jpg", "Case.png", "deep.png", "link.png", "out.png", "pal.png"]
# Pictures with a caption of their own, and the two that share one.
CAPTIONED = len(NAMES) + len([E_TWO, "j.jpeg", "UP.PNG", "own", "empty", "lines", "m", "mark", "turn"]) + 2


def draw(path: Path, mode: str = "RGB", **extra: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((72, 88), 90).convert(mode).save(path, **extra)  # type: ignore[arg-type]


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """The folder. Each caption says whose it is."""
    ds = tmp_path / "ds"
    a = ds / "10_a"
    for name in NAMES:
        draw(a / f"{name}.png")
        write(a / f"{name}.txt", f"tag, one, {len(name)}\n")
    draw(a / f"{E_TWO}.png")
    write(a / f"{E_ONE}.txt", "accents, b, c\n")
    draw(a / "UP.PNG"), write(a / "UP.TXT", "capitals, b, c\n")
    draw(a / "j.jpeg"), write(a / "j.txt", "jpeg, b, c\n")
    draw(a / "own.png"), write(a / "own.txt", "read, b, c\n"), write(a / "own.png.txt", "not read, b, c\n")
    draw(a / "empty.png"), write(a / "empty.txt", "")
    draw(a / "lines.png"), write(a / "lines.txt", "one, b, c\r\ntwo, b, c\r\n")
    draw(a / "m.png"), write(a / "m.txt", ", ".join(f"tag{n}" for n in range(10_000)))
    draw(a / "mark.png"), write(a / "mark.txt", "mayu ||| a, A, a_b, (x:1.2), <lora:q:1>, {a|b}, \\(z\\)")
    for suffix in ("jpg", "png"):
        draw(a / f"same.{suffix}")
    write(a / "same.txt", "shared, b, c\n")
    draw(a / "Case.png"), write(a / "case.txt", "other case\n")
    frames = [Image.effect_noise((72, 88), 90).convert("RGB") for _ in range(3)]
    for name in ("anim.webp", "apng.png"):
        frames[0].save(a / name, save_all=True, append_images=frames[1:])
    draw(a / "c.jpg", "CMYK"), draw(a / "deep.png", "I;16"), draw(a / "pal.png", "P", transparency=3)
    exif = Image.Exif()
    exif[0x112] = 6
    frames[1].save(a / "turn.jpg", exif=exif), write(a / "turn.txt", "turned, b, c\n")
    # What is not trained, and what is no picture at all.
    (
        draw(a / "g.gif", "P"),
        draw(a / "f.jfif", format="JPEG"),
        draw(a / "m-masklabel.png"),
        draw(a / ".hid.png"),
    )
    write(a / "._UP.PNG", b"\0\5\x16\7" + bytes(60)), write(a / "Thumbs.db", "x"), write(a / "m_sd.npz", "x")
    write(a / "m.json", '{"tags": "q"}'), draw(a / ".ipynb_checkpoints" / "x.png")
    draw(a / "@eaDir" / "m.png" / "t.jpg"), draw(ds / "__MACOSX" / "q.png"), draw(ds / "masks" / "m.png")
    draw(a / "10_a" / "in.png")
    for name in ("0_x", "-1_x", "1e3_x", " 5_x", "log", "reg/1_girl", "007_x", "1_", "5_y "):
        draw(ds / name / "p.png"), write(ds / name / "p.txt", "p, q, r\n")
    (ds / "3_none").mkdir(), write(ds / "4_file", "a file"), (a / "folder.png").mkdir()
    draw(tmp_path / "else" / "e.png"), write(tmp_path / "else" / "e.txt", "e, f, g\n")
    for link, to in {
        **{"10_a/broken.png": "nowhere", "10_a/loop.png": "loop.png", "10_a/up": "..", "9_self": "."},
        **{"6_else": "../else", "10_a/link.png": "turn.jpg", "10_a/out.png": "../../else/e.png"},
    }.items():
        (ds / link).symlink_to(to)
    os.mkfifo(a / "pipe.png")
    return ds


def held(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes, and where every link leads; journals left out."""
    rows: dict[str, bytes | str] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".lorapipe"]
        for name in [*names, *folders]:
            path = os.path.join(root, name)  # noqa: PTH118 - names of any bytes
            if os.path.islink(path):  # noqa: PTH114
                rows[path] = f"-> {os.readlink(path)}"  # noqa: PTH115
            elif os.path.isfile(path):  # noqa: PTH113
                rows[path] = Path(path).read_bytes()
    return rows


def reasons(text: str) -> set[str]:
    lines = re.findall(r"(?:not trained|left out): (.*)", text)
    return {line.removesuffix(" (--recursive takes them in)") for line in lines}


COUNT = CAPTIONED + len(BARE) + 4  # and a picture each in 007_x, 1_, 5_y and 6_else


def test_the_trainer(odd: Path) -> None:
    data = DataSettings(train_data_dir=odd, resolution=(64, 64))
    dataset = scan(data)
    captions = {row.path.name: row.caption for row in dataset.pictures if row.path.parent.name == "10_a"}
    assert len(dataset.pictures) == COUNT
    assert sorted(name for name, text in captions.items() if text == "a") == sorted(BARE)
    assert captions[f"{E_TWO}.png"] == "accents, b, c"
    assert (captions["UP.PNG"], captions["own.png"]) == ("capitals, b, c", "read, b, c")
    assert (captions["lines.png"], captions["empty.png"]) == ("one, b, c", "")
    assert {captions[f"{name}.png"] for name in NAMES} == {f"tag, one, {len(name)}" for name in NAMES}
    (line,) = (line for line in folder_lines(dataset) if line.startswith("10_a"))
    assert f"{len(BARE)} without a caption" in line
    assert "1 with an empty caption" in line
    notes = "\n".join(dataset_notes(data, dataset))
    assert reasons(notes) == NOT_TRAINED
    assert "10_a: 1 caption has several lines, of which the first is trained" in notes
    assert (
        "10_a: 2 pictures share a caption file, as their names differ in the suffix only (same.jpg" in notes
    )


def test_a_dataset_file_says_what_a_folder_says(odd: Path, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{odd}/10_a'\n")
    data = DataSettings(dataset_config=file)
    dataset = scan(data)
    assert len(dataset.pictures) == COUNT - 4
    told = {line.removeprefix(f"{odd}/10_a: left out: ") for line in dataset_notes(data, dataset)}
    own = {
        line for line in NOT_TRAINED if line.split()[2] in ("hidden", "whose", "beside") or "kinds" in line
    }
    assert own | {"10_a with 1 picture (folders in a folder are not read)"} <= told


def test_lora_check(odd: Path) -> None:
    report = json.loads(run("lora-check", odd, "--json", "--no-look").stdout)
    assert report["trained"] == COUNT
    assert {
        line.removeprefix(f"{odd}: ").removesuffix(" (--recursive checks them)")
        for line in report["left_out"]
    } == NOT_TRAINED
    found: dict[str, list[str]] = {}
    for row in report["findings"]:
        found.setdefault(row["rule"], []).extend(Path(path).name for path in row["paths"])
    assert sorted(found["missing-caption"]) == sorted(BARE)
    assert found["stem-clash"] == ["same.jpg", "same.png"]
    assert found["orphan-caption"] == ["case.txt"]
    assert found["two-captions"] == ["own.png", "own.png.txt"]
    assert (found["empty-caption"], found["several-lines"]) == (["empty.png"], ["lines.png"])
    assert found["mask-trained"] == ["m-masklabel.png"]


def test_lora_repeats(odd: Path, tmp_path: Path) -> None:
    done = run("lora-repeats", odd, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == COUNT
    assert reasons(done.stderr) == NOT_TRAINED
    # That of the linked folder is somebody else's.
    assert f"{len(BARE) + 1} of {COUNT} pictures have no caption" in done.stderr
    assert "2 pictures are links" in done.stderr
    assert f"in their place are not taken: {odd / '10_a' / 'own.png.txt'}\n" in done.stderr
    (folder,) = (tmp_path / "out").glob("*_a")
    built = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len([name for name in built if not name.endswith(".txt")]) == CAPTIONED + len(BARE)
    assert len([name for name in built if name.endswith(".txt")]) == CAPTIONED
    assert built["own.txt"] == b"read, b, c\n"
    assert {name for name in built if name.startswith(E_TWO)} == {f"{E_TWO}.png", f"{E_TWO}.txt"}


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["lora-clean", "lora-tag"])
def test_captions_are_changed_and_given_back(odd: Path, tool: str) -> None:
    before = held(odd.parent)
    if tool == "lora-tag":
        pytest.importorskip("onnxruntime")
        words: tuple[object, ...] = ("--collision", "suffix", "--model", MODEL, "--device", "cpu")
    else:
        words = ("--trigger", "zz")
    done = run(tool, odd, "-r", "--jsonl", *words)
    assert done.returncode == 0, done.stderr
    assert reasons(done.stderr) == NOT_TRAINED
    assert re.search(r"not tagged|left alone", done.stderr)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths))  # each picture once, whatever lies beside it
    concept = [row for row in rows if Path(row["path"]).parent == odd / "10_a"]
    if tool == "lora-clean":
        assert len(concept) == CAPTIONED
        assert f"{len(BARE) + 2} pictures without a caption" in done.stderr  # the GIF and the JFIF too
        assert "captions beside another that is read in their place: own.png.txt" in done.stderr
        assert {row["caption"] for row in concept if Path(row["path"]).stem == "own"} == {"zz, read, b, c"}
    else:
        # Also the two kinds that are not trained; of the two that share a caption one gets its own.
        assert len(concept) == CAPTIONED + len(BARE) + 2
        kept = [row for row in concept if row.get("existing")]
        assert len(kept) == CAPTIONED - 2  # the empty one and the second of those that share are written
        assert "captions without a picture: " in done.stderr
        assert "case.txt" in done.stderr
    assert held(odd.parent) != before
    assert run(tool, odd, "--undo").returncode == 0
    assert held(odd.parent) == before


def test_a_repair_is_given_back(odd: Path) -> None:
    before = held(odd.parent)
    rules = ("stem-clash", "orphan-caption", "several-lines", "duplicate-tag", "small")
    words = [word for rule in rules for word in ("--fix", rule)]
    done = run("lora-check", odd, *words, "--resolution", "96")
    # What lies behind a link is not changed.
    assert done.returncode == 1
    assert "a link, which is not followed" in done.stderr
    moved = re.search(r"mended: .*?(\d+) files moved away.*; 1 failed", done.stderr)
    assert moved, done.stderr
    gone = before.keys() - held(odd.parent).keys()
    assert len(gone) >= int(moved[1])
    assert run("lora-check", odd, "--undo").returncode == 0
    assert held(odd.parent) == before
