"""``lora-tag`` as its users run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .making import MODEL, PICTURES, Tag, save_model, save_picture


def test_writes_captions_and_records(tag: Tag, folder: Path) -> None:
    result = tag(folder)
    assert result.code == 0, result.err
    assert [Path(record["path"]).name for record in result.records] == ["exif.jpg", "gray16.png", "rgba.png"]
    first = result.records[0]
    assert list(first) == ["path", "size", "model", "rating", "general", "character", "caption", "cached"]
    assert first["size"] == [100, 180]
    assert first["model"] == "model"
    assert set(first["rating"]) == {"general", "sensitive", "questionable", "explicit"}
    assert first["cached"] is False
    text = (folder / "exif.txt").read_bytes().decode("utf-8")
    assert text == first["caption"] + "\n"
    assert text.startswith("k-on! logo, <o>_<o>, ^_^, long hair")


def test_all_of_the_golden_set_in_one_run(tag: Tag, tmp_path: Path) -> None:
    expected = json.loads((PICTURES / "expected.json").read_text())["images"]
    result = tag(PICTURES, "--no-txt", "--jsonl", "--general", 0.5, "--character", 0.5)
    assert result.code == 1
    by_name = {Path(record["path"]).name: record for record in result.records}
    assert sorted(by_name) == sorted(row["file"] for row in expected)
    for row in expected:
        record = by_name[row["file"]]
        if not row["ok"]:
            assert set(record) == {"path", "error"}
            assert f"{row['file']}: {record['error']}" in result.err
            continue
        wanted = row["tags"]["general 0.5 character 0.5"]
        assert set(record["general"]) == set(wanted["general"])
        assert set(record["character"]) == set(wanted["character"])
        assert max(record["rating"], key=record["rating"].__getitem__) == wanted["rating"]
        assert record["caption"] == wanted["caption_spaces"]
        assert record["size"] == row["upright_size"]
    assert not list(PICTURES.glob("*.txt"))


def test_existing_captions_stay_unless_asked(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").write_text("my own words")
    result = tag(folder)
    assert result.code == 0
    assert (folder / "rgba.txt").read_text() == "my own words"
    assert result.records[-1] == {
        "path": str(folder / "rgba.png"),
        "caption": "my own words",
        "existing": True,
    }
    assert "2 tagged, 1 had captions already" in result.err
    again = tag(folder, model=None)  # nothing left to do: no model is looked for
    assert again.code == 0
    assert "0 tagged, 3 had captions already" in again.err


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("append", "Solo, my words, ;), hands on own face, +_+, monochrome"),
        ("prepend", ";), hands on own face, +_+, monochrome, Solo, my words"),
        ("merge", "Solo, my words, ;), hands on own face, +_+, monochrome"),
        ("replace", ";), hands on own face, +_+, monochrome, solo"),
    ],
)
def test_old_and_new_tags_together(tag: Tag, folder: Path, mode: str, wanted: str) -> None:
    for _ in range(2):
        if mode == "replace" or not (folder / "rgba.txt").exists():
            (folder / "rgba.txt").write_text("\ufeffSolo, my words\r\n", encoding="utf-8")
        result = tag(folder / "rgba.png", "--existing", mode, "--general", 0.65, "--character", "off")
        assert result.code == 0
        assert (folder / "rgba.txt").read_text() == f"{wanted}\n"


def test_every_line_gets_the_tags(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").write_text("one, two\nthree\n")
    assert tag(folder / "rgba.png", "--existing", "append", "--max-tags", 1, "--character", "off").code == 0
    assert (folder / "rgba.txt").read_text() == "one, two, ;)\nthree, ;)\n"
    merged = ("--existing", "merge", "--max-tags", 1, "--character", "off", "--trigger", "mayu")
    assert tag(folder / "rgba.png", *merged).code == 0
    assert (folder / "rgba.txt").read_text() == "mayu, one, two, ;)\nmayu, three, ;)\n"


def test_captions_that_are_not_utf8_are_left_alone(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").write_bytes(b"caf\xe9")
    for mode in ("skip", "append", "merge"):
        result = tag(folder, "--existing", mode)
        assert result.code == 1
        assert "rgba.txt: not UTF-8 (byte 3)" in result.err
        assert (folder / "rgba.txt").read_bytes() == b"caf\xe9"
    assert (folder / "exif.txt").exists()


def test_options_that_shape_captions(tag: Tag, tmp_path: Path) -> None:
    chances = {
        "general": (9, 0.9),
        "explicit": (9, 0.1),
        "1girl": (0, 0.8),
        "white_shirt": (0, 0.95),
        "shirt": (0, 0.9),
        "^_^": (0, 0.5),
        "=_=": (0, 0.45),
        "long_hair": (0, 0.4),
        "blurry_(effect)": (0, 0.36),
        "rem_(re:zero)": (4, 0.99),
    }
    model = save_model(tmp_path / "m", chances)
    picture = save_picture(tmp_path / "a.png")

    def caption(*words: object) -> str:
        result = tag(picture, "--no-txt", *words, model=model)
        assert result.code == 0, result.err
        return str(result.records[0]["caption"])

    plain = "white shirt, shirt, 1girl, ^_^, =_=, long hair, blurry (effect), rem (re:zero)"
    assert caption() == plain
    assert caption("--underscores", "--escape").endswith(r"long_hair, blurry_\(effect\), rem_\(re:zero\)")
    assert caption("--characters", "first") == "rem (re:zero), " + plain.removesuffix(", rem (re:zero)")
    assert caption("--expand-character").endswith("blurry (effect), rem, re:zero")
    assert caption("--order", "count", "--max-tags", 3, "--character", "off") == "1girl, white shirt, shirt"
    assert caption("--order", "model").startswith("1girl, white shirt")
    assert caption("--rating", "first").startswith("general, white shirt")
    assert caption("--trigger", "my_word", "--rating", "first").startswith("my_word, general, white shirt")
    assert caption("--first", "long_hair, 1girl", "--last", "shirt").startswith(
        "long hair, 1girl, white shirt, ^_^"
    )
    assert caption("--drop-overlap").startswith("white shirt, 1girl")
    assert caption("--exclude", "*shirt, ^_^", "--keep", "white shirt").startswith("white shirt, 1girl, =_=")
    assert caption("--exclude", "re:.*_hair|rem.*") == "white shirt, shirt, 1girl, ^_^, =_=, blurry (effect)"
    assert caption("--replace", "=_==closed_eyes, sleepy", "--replace", "shirt=").startswith(
        "white shirt, 1girl, ^_^, closed eyes, sleepy, long hair"
    )
    assert caption("--general", "off", "--character", "0.99") == "rem (re:zero)"
    assert caption("--threshold", 0.9) == "white shirt, shirt, rem (re:zero)"
    assert caption("--separator", "; ", "--threshold", 0.9) == "white shirt; shirt; rem (re:zero)"
    assert caption("--mcut").startswith("white shirt, shirt, 1girl, rem")


def test_trigger_from_the_folders_name(tag: Tag, tmp_path: Path) -> None:
    (tmp_path / "12_shiina mayuri").mkdir()
    shutil.copy(PICTURES / "rgba.png", tmp_path / "12_shiina mayuri")
    result = tag(tmp_path, "--recursive", "--trigger-from-folder", "--max-tags", 1, "--character", "off")
    assert result.records[0]["caption"] == "shiina mayuri, ;)"


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_trigger_has_no_mark_of_the_trainer_in_it(tag: Tag, folder: Path, tmp_path: Path) -> None:
    for words in (("--trigger", "m |||"), ("--trigger", "x|||y"), ("--add", "m, x |||")):
        result = tag(folder, *words)
        assert (result.code, list(folder.glob("*.txt"))) == (2, [])
        assert "||| is training's mark (keep_tokens_separator), no part of a tag" in result.error
    place = tmp_path / "named" / "12_a ||| b"
    place.mkdir(parents=True)
    shutil.copy(PICTURES / "rgba.png", place)
    result = tag(place, "--trigger-from-folder")
    assert result.code == 1
    assert "its folder's name, the trigger, has |||, training's mark; rename it" in result.err


def test_aliases_and_implications(tag: Tag, tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "m",
        {"general": (9, 0.9), "pantyhose": (0, 0.9), "black_pantyhose": (0, 0.8), "sitting": (0, 0.7)},
    )
    (tmp_path / "aliases").write_text("sitting -> seiza\n")
    (tmp_path / "implications").write_text("black_pantyhose,pantyhose\nseiza => nothing\n")
    words = ["--aliases", tmp_path / "aliases", "--implications", tmp_path / "implications", "--no-txt"]
    result = tag(save_picture(tmp_path / "a.png"), *words, model=model)
    assert result.records[0]["caption"] == "black pantyhose, seiza"


def test_two_models(tag: Tag, tmp_path: Path) -> None:
    one = {"general": (9, 0.9), "cat": (0, 0.9), "dog": (0, 0.5), "only_one": (0, 0.4)}
    two = {"dog": (0, 0.3), "cat": (0, 0.2), "only_two": (0, 0.6), "sensitive": (9, 0.8)}
    models = ["--model", save_model(tmp_path / "one", one), "--model", save_model(tmp_path / "two", two)]
    picture = save_picture(tmp_path / "a.png")
    wanted = {
        "mean": ["only_two", "cat", "dog", "only_one"],
        "max": ["cat", "only_two", "dog", "only_one"],
        "union": ["cat", "only_two", "dog", "only_one"],
        "intersection": ["only_two", "only_one"],
        "vote": ["only_two", "only_one"],
    }
    for how, names in wanted.items():
        result = tag(picture, "--no-txt", "--combine", how, "--underscores", *models, model=None)
        assert result.code == 0, result.err
        record = result.records[0]
        assert record["caption"] == ", ".join(names), how
        assert record["model"] == "one+two"
    assert record["rating"] == {"general": 0.9, "sensitive": 0.8}


def test_dry_run_shows_the_difference(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").write_text("solo\n")
    words = ["--existing", "append", "--max-tags", 1, "--character", "off"]
    result = tag(folder / "rgba.png", "--dry-run", "--text", *words)
    assert result.out.decode().splitlines()[1:] == ["- solo", "+ solo, ;)"]
    assert (folder / "rgba.txt").read_text() == "solo\n"


def test_records_pass_through_and_lists_are_read(tag: Tag, folder: Path) -> None:
    listed = (
        json.dumps({"path": str(folder / "rgba.png"), "source": 7, "error": "old"})
        + f"\n{folder / 'exif.jpg'}\n"
    )
    result = tag("-", "--no-txt", stdin=listed.encode())
    assert [Path(record["path"]).name for record in result.records] == ["rgba.png", "exif.jpg"]
    assert result.records[0]["source"] == 7
    assert "error" not in result.records[0]


def test_output_folder_mirrors_the_tree(tag: Tag, tmp_path: Path, folder: Path) -> None:
    (folder / "more").mkdir()
    shutil.copy(PICTURES / "la.png", folder / "more")
    assert tag(folder, "-r", "-o", tmp_path / "out", "--ext", "caption").code == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.caption"))
    assert found == ["exif.caption", "gray16.caption", str(Path("more", "la.caption")), "rgba.caption"]
    assert not list(folder.rglob("*.caption"))


def test_two_pictures_of_one_name(tag: Tag, tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "a.jpg")
    result = tag(tmp_path)
    assert result.code == 2
    assert "would share a.txt" in result.error
    assert tag(tmp_path, "--collision", "suffix").code == 0
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["a.png.txt", "a.txt"]


def test_transparency_as_a_tag(tag: Tag, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", {"white_background": (0, 0.9), "1girl": (0, 0.8)})
    for _ in range(2):  # from the cache the second time
        result = tag(PICTURES / "rgba.png", "--no-txt", "--transparent-tag", model=model)
        assert result.records[0]["caption"] == "transparent background, 1girl"
    result = tag(PICTURES / "exif.jpg", "--no-txt", "--transparent-tag", model=model)
    assert result.records[0]["caption"] == "white background, 1girl"


def test_frequency(tag: Tag, folder: Path) -> None:
    result = tag(folder, "--frequency", "--max-tags", 1, "--trigger", "me")
    lines = result.err.splitlines()
    assert lines[-4] == "      3  me"
    assert len(lines[-3:]) == 3


def test_tags_that_belong_to_the_trigger_are_told(tag: Tag, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", {"general": (9, 0.9), "1girl": (0, 0.9), "blue_eyes": (0, 0.8)})
    for index in range(10):
        save_picture(tmp_path / f"{index}.png")
    result = tag(tmp_path, "--trigger", "mayuri", model=model)
    assert "in over 90% of the captions: blue eyes; what belongs to mayuri" in result.err
    assert (tmp_path / "0.txt").read_text() == "mayuri, 1girl, blue eyes\n"
    assert "in over" not in tag(tmp_path, "--no-txt", model=model).err
    assert "in over" not in tag(tmp_path / "1.png", "--no-txt", "--trigger", "mayuri", model=model).err


def test_quiet_is_quiet(tag: Tag, folder: Path) -> None:
    assert tag(folder, "-q").err == ""


@pytest.mark.slow
def test_the_real_command_in_a_pipe(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lorapipe_tagger", str(folder), "--model", str(MODEL), "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 3
    assert sorted(path.name for path in folder.glob("*.txt")) == ["exif.txt", "gray16.txt", "rgba.txt"]
    assert "3 tagged" in result.stderr


def test_int8_gives_nearly_the_same(tag: Tag, folder: Path) -> None:
    pytest.importorskip("onnx")
    plain = tag(folder, "--no-txt").records
    result = tag(folder, "--no-txt", "--int8")
    assert result.code == 0, result.err
    assert "making an int8 form" in result.err
    for one, other in zip(plain, result.records, strict=True):
        assert other["cached"] is False
        for name, score in one["rating"].items():
            assert other["rating"][name] == pytest.approx(score, abs=0.06)
    assert "making an int8 form" not in tag(folder, "--no-txt", "--int8", "--no-cache").err


def test_a_run_can_be_taken_back_byte_for_byte(tag: Tag, folder: Path) -> None:
    (folder / "rgba.txt").write_bytes("\ufeffmine, words\r\n".encode())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = tag(folder, "--existing", "replace")
    assert f"to take it back: lora-tag --undo {folder}" in result.err
    assert (folder / "rgba.txt").read_bytes() != before["rgba.txt"]
    assert (folder / "exif.txt").exists()
    seen = tag("--undo", folder, "-n", model=None)
    assert seen.code == 0
    assert "3 files would be as before" in seen.err
    assert (folder / "exif.txt").exists()
    result = tag("--undo", folder, model=None)
    assert result.code == 0, result.err
    assert "3 files are as before" in result.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "no run of lora-tag to undo there" in tag("--undo", folder, model=None).error


def test_a_caption_changed_since_is_not_taken_back(tag: Tag, folder: Path) -> None:
    assert tag(folder / "rgba.png").code == 0
    (folder / "rgba.txt").write_text("mine since")
    result = tag("--undo", folder, model=None)
    assert result.code == 1
    assert (folder / "rgba.txt").read_text() == "mine since"


def test_options_of_sd_scripts_do_what_ours_do(tag: Tag, folder: Path, tmp_path: Path) -> None:
    def caption(*words: object) -> str:
        result = tag(folder / "rgba.png", "--no-txt", "--jsonl", "--general", 0.5, *words)
        assert result.code == 0, result.err
        return str(result.records[0]["caption"])

    first, second, *_ = caption().split(", ")
    escaped = [tag.replace(";", "\\;") for tag in (first, second)]
    both = ("--replace", f"{first}=a", "--replace", f"{second}=b")
    assert caption("--tag_replacement", f"{escaped[0]},a;{escaped[1]},b") == caption(*both)
    assert caption("--use_rating_tags") == caption("--rating", "first")
    assert caption("--use_rating_tags", "--use_rating_tags_as_last_tag") == caption("--rating", "last")
    assert "note: " in tag(folder / "rgba.png", "--no-txt", "--onnx", "--remove_underscore").err
    black = tmp_path / "black.txt"
    black.write_text(f"# no\n{first}\n{second}, other\n")
    assert caption("--exclude-file", black) == caption("--exclude", f"{first}, {second}")
    (folder / "rgba.txt").write_text("mine")
    assert tag(folder / "rgba.png", "--append_tags").code == 0
    assert (folder / "rgba.txt").read_text().startswith("mine, ")
    for words, answer in (
        (("--tag_replacement", "a"), "OLD,NEW is needed"),
        (("--append_tags", "--existing", "replace"), "exclude each other"),
        (("--rating", "last", "--use_rating_tags"), "say different things"),
        (("--use_quality_tags",), "use --quality P"),
    ):
        result = tag(folder / "rgba.png", *words)
        assert result.code == 2
        assert answer in result.error
