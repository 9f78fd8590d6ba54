"""What goes wrong at users': one clear line each, and everything else is done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .making import DATA, MODEL, PICTURES, Tag, save_model, save_picture

TWO = {"general": (9, 0.9), "cat": (0, 0.9)}


def test_broken_pictures_are_passed_by(tag: Tag, folder: Path) -> None:
    for name in ("empty.png", "text.webp", "truncated.jpg"):
        shutil.copy(PICTURES / name, folder)
    result = tag(folder)
    assert result.code == 1
    assert len(list(folder.glob("*.txt"))) == 3
    errors = [line for line in result.err.splitlines() if "error:" in line]
    assert [line.split(": ", 2)[1] for line in errors] == ["error"] * 3
    assert "empty.png: empty file" in result.err
    assert "text.webp: not a picture that can be read" in result.err
    assert "truncated.jpg: broken picture (image file is truncated" in result.err
    assert "3 tagged, 3 failed" in result.err
    assert {record["path"] for record in result.records if "error" in record} == {
        str(folder / name) for name in ("empty.png", "text.webp", "truncated.jpg")
    }


def test_no_pictures(tag: Tag, tmp_path: Path) -> None:
    result = tag(tmp_path)
    assert (result.code, "no pictures in it" in result.error) == (2, True)
    (tmp_path / "more").mkdir()
    save_picture(tmp_path / "more" / "a.png")
    assert "give --recursive" in tag(tmp_path).error
    result = tag("-", stdin=b"")
    assert (result.code, "the list is empty" in result.error) == (2, True)
    result = tag(tmp_path / "nothing.png")
    assert (result.code, "nothing.png: no such file or folder" in result.error) == (2, True)
    result = tag("./nothing.png")
    assert (result.code, "nothing.png: no such file or folder" in result.error) == (2, True)
    result = tag("-", stdin=os.fsencode(tmp_path / "gone.png"))
    assert result.code == 1
    assert "gone.png: cannot be read (No such file or directory)" in result.err


def test_model_folders_that_are_none(tag: Tag, tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png")
    place = tmp_path / "m"
    place.mkdir()
    assert "no tagger in it; it needs model.onnx and selected_tags.csv" in tag(picture, model=place).error
    shutil.copy(MODEL / "model.onnx", place)
    assert "has model.onnx but no list of tags beside it" in tag(picture, model=place).error
    (place / "selected_tags.csv").write_text("tag_id,name,category,count\n1,general,9,1\n2,cat,0,1\n")
    result = tag(picture, model=place)
    assert result.code == 2
    assert "has 54 outputs but its list of tags has 2 rows" in result.error
    (place / "selected_tags.csv").write_text("just,words\n1,2\n")
    assert 'needs the columns "name" and "category"' in tag(picture, model=place).error
    (place / "selected_tags.csv").write_bytes(b"tag_id,name,category\n1,caf\xe9,0\n")
    assert "not UTF-8" in tag(picture, model=place).error
    shutil.copy(MODEL / "selected_tags.csv", place)
    (place / "model.onnx").write_bytes(b"not a network")
    assert "model.onnx: cannot be loaded" in tag(picture, model=place).error
    (place / "model.onnx").unlink()
    assert "has selected_tags.csv but no model.onnx" in tag(picture, model=place).error
    assert not list(tmp_path.glob("*.txt"))


def test_models_that_give_no_probabilities(tag: Tag, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", {"a": (0, 0.99), "b": (0, 0.01)}, logits=True)
    result = tag(save_picture(tmp_path / "a.png"), model=model)
    assert result.code == 2
    assert "which are no probabilities" in result.err.splitlines()[-1]


def test_models_of_other_families_are_known_by_their_files(tag: Tag, tmp_path: Path) -> None:
    place = save_model(tmp_path / "m", {"a": (0, 0.9), "b": (0, 0.2), "c": (0, 0.7)}, nchw=True, logits=True)
    (place / "selected_tags.csv").unlink()
    tags = {"0": {"tag": "cat", "category": "General"}, "1": {"tag": "dog", "category": "General"}}
    tags["2"] = {"tag": "me", "category": "Artist"}
    (place / "tag_mapping.json").write_text(json.dumps(tags))
    result = tag(save_picture(tmp_path / "a.png"), "--no-txt", "--artist", 0.5, model=place)
    assert result.code == 0, result.err
    assert result.records[0]["caption"] == "cat, me"
    assert result.records[0]["artist"] == {"me": 0.7}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--general", "35"], "--general 35: a threshold lies between 0.01 and 1"),
        (["--character", "-0.1"], "--character -0.1: a threshold lies between"),
        (["--general", "nan"], "--general nan: a threshold lies between"),
        (["--general", "much"], "--general much: not a number, 'auto' or 'off'"),
        (["--general", "auto"], "is not known of model; give a number"),
        (["--ext", "."], "a suffix such as .txt"),
        (["--ext", "a/b"], "a suffix such as .txt"),
        (["--ext", ".png", "--existing", "replace"], "--ext .png: that is no suffix of captions"),
        (["--ext", "NPZ", "--existing", "replace"], "--ext .NPZ: that is no suffix of captions"),
        (["--model", ""], '--model "": a short name, a hub id or a folder is needed'),
        (["--separator", ""], "tags would run together"),
        (["--exclude", "re:("], "no regular expression"),
        (["--replace", "nothing"], "neither 'tag=other' nor a file"),
        (["--aliases", "nowhere.txt"], "nowhere.txt: cannot be read (No such file or directory)"),
        (["--batch", "0"], "--batch: 0 is below 1"),
        (["--max-pixels", "0"], "--max-pixels: 0.0 is not above 0"),
        (["--generl", "1"], "no option --generl, did you mean --general?"),
        (["--device", "cuda"], "the onnxruntime installed here has no CUDAExecutionProvider"),
        (["--model", "swinv3"], "did you mean swinv2?"),
    ],
)
def test_usage(tag: Tag, folder: Path, words: list[str], expected: str) -> None:
    result = tag(folder, "--model", MODEL, *words, model=None)
    assert result.code == 2
    assert expected in result.error
    assert not list(folder.glob("*.txt"))


def test_no_caption_takes_a_pictures_place(tag: Tag, tmp_path: Path) -> None:
    picture = Path(shutil.copy(PICTURES / "rgba.png", tmp_path / "a.txt"))
    before = picture.read_bytes()
    shutil.copy(PICTURES / "la.png", tmp_path)
    result = tag(picture, tmp_path, "--existing", "replace")
    assert result.code == 2
    assert f"{picture}: a picture, which {picture}'s caption would replace; see --ext" in result.error
    assert picture.read_bytes() == before


def test_a_threshold_above_one_is_off(tag: Tag, folder: Path) -> None:
    result = tag(folder, "--general", 1.5, "--character", "off", "--no-txt")
    assert result.code == 0
    assert "--general 1.5 is above 1, so there will be no general tags" in result.err
    assert {record["caption"] for record in result.records} == {""}


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["--threshold", 2], ["--threshold 2 is above 1, so there will be no general and no character tags"]),
        (
            ["--threshold", 2, "--general", 0.2],
            ["--threshold 2 is above 1, so there will be no character tags"],
        ),
        (["--artist", 1.5], ["--artist 1.5 is above 1, so there will be no artist tags"]),
        (["--threshold", 2, "--general", 0.2, "--character", 0.2], []),
        (["--threshold", "OFF", "--meta", "Off"], []),
        (["--threshold", 1], []),
    ],
)
def test_every_threshold_above_one_is_told(
    tag: Tag, folder: Path, words: list[str], notes: list[str]
) -> None:
    result = tag(folder, *words, "--no-txt")
    assert result.code == 0
    told = [line.split("note: ")[1] for line in result.err.splitlines() if "above 1" in line]
    assert told == notes


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tag: Tag, folder: Path) -> None:
    folder.chmod(0o555)
    try:
        result = tag(folder)
        assert result.code == 1
        assert "may not be written to; give --output-dir FOLDER, or --no-txt" in result.error
        assert tag(folder, "--no-txt").code == 0
    finally:
        folder.chmod(0o755)


def test_captions_that_cannot_be_written_fail_alone(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").mkdir()
    result = tag(folder, "--existing", "replace")
    assert result.code == 1
    assert "cannot be written" in result.err
    assert (folder / "exif.txt").is_file()


NAMES = [
    "with space",
    "new\nline",
    "🦊 emoji",
    "-leading dash",
    "--help",
    "per%cent",
    "quote'\"",
    "ü.v2",
    "[a]",
    "{b",
]


def test_odd_names(tag: Tag, tmp_path: Path) -> None:
    for name in NAMES:
        save_picture(tmp_path / f"{name}.png")
    result = tag(tmp_path)
    assert result.code == 0, result.err
    assert {Path(record["path"]).stem for record in result.records} == set(NAMES)
    for name in NAMES:
        assert (tmp_path / f"{name}.txt").is_file()
    listed = b"\0".join(os.fsencode(path) for path in tmp_path.glob("*.png"))
    assert len(tag("-", "--no-txt", stdin=listed).records) == len(NAMES)


def test_names_that_begin_with_dashes_as_words(
    tag: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_picture(Path("--help.png"))
    result = tag("--no-txt", "--model", MODEL, "--", "--help.png", model=None)
    assert result.records[0]["path"] == "--help.png"


@pytest.mark.slow
def test_huge_pictures(tag: Tag, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (30_000, 40)).save(tmp_path / "strip.png")
    Image.new("L", (40, 30_000), 200).save(tmp_path / "tall.jpg")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "square.png")
    result = tag(tmp_path)
    assert result.code == 1
    assert (
        "square.png: 30000 x 30000 is 900 million pixels, more than 179 million (see --max-pixels)"
        in result.err
    )
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["strip.txt", "tall.txt"]


def test_folders_that_hold_themselves(tag: Tag, folder: Path) -> None:
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    result = tag(folder, "--recursive")
    assert result.code == 0, result.err
    assert len(result.records) == 3


def test_hidden_files_and_masks_are_left_out(tag: Tag, tmp_path: Path) -> None:
    for name in (".hidden.png", "a.png", "a-masklabel.png"):
        save_picture(tmp_path / name)
    (tmp_path / "a.npz").write_bytes(b"")
    shutil.copy(DATA / "pictures" / "anim.gif", tmp_path / "no_suffix")
    (tmp_path / "README").write_text("no picture")
    (tmp_path / "orphan.txt").write_text("tags")
    result = tag(tmp_path)
    assert [Path(record["path"]).name for record in result.records] == ["a.png", "no_suffix"]
    assert f"captions without a picture: {tmp_path / 'orphan.txt'}" in result.err
    assert "trainers pass by pictures of these kinds: 1 (no suffix)" in result.err


def test_a_broken_cache_is_done_without(tag: Tag, folder: Path) -> None:
    place = Path(os.environ["XDG_CACHE_HOME"], "lorapipe", "tagger.sqlite")
    place.parent.mkdir()
    place.write_bytes(b"no data base" * 1000)
    result = tag(folder)
    assert result.code == 0
    assert "goes on without the cache" in result.err
