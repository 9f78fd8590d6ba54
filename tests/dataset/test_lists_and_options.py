"""Lists on standard input as people make them, and options that would do nothing: said, or refused, in one line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.settings import DataSettings
from support.commands import run

TAGGER = ("--model", Path(__file__).parents[1] / "data" / "tagger" / "model", "--device", "cpu")


def piped(text: str, command: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with a list on standard input."""
    return run(command, *words, stdin=text, cwd=cwd)


def draw(path: Path, caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((72, 80), 90).convert("RGB").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "10_x" / "a.png", "1girl, tree, sun")
    draw(tmp_path / "10_x" / "b c.png", "1girl, hat, rain")
    return tmp_path


# -------------------------------------------------------------------------------- lists


def test_a_list_of_windows(folder: Path) -> None:
    """Line ends of two letters, paths in double quotes, and a file that is not there."""
    text = '"10_x/b c.png"\r\n10_x/a.png\r\n\r\n10_x/gone.png\r\n'
    done = piped(text, "lora-clean", "--trigger", "zz", "--jsonl", cwd=folder)
    assert done.returncode == 1
    assert "error: 10_x/gone.png: no such file\n" in done.stderr
    assert "2 of 3 captions changed, 1 failed" in done.stderr
    assert (folder / "10_x" / "b c.txt").read_text() == "zz, 1girl, hat, rain"
    done = piped(text, "lora-repeats", "--json", cwd=folder)
    assert (done.returncode, json.loads(done.stdout)["images"]) == (1, 2)
    assert "error: 10_x/gone.png: no such file\n" in done.stderr
    done = piped(text, "lora-check", "--no-look", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "lora-check: error: 10_x/gone.png: no such file or folder\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a name that Windows does not take")
def test_a_name_with_quotes_is_that_name(tmp_path: Path) -> None:
    draw(tmp_path / '"q".png', None), draw(tmp_path / "q.png")
    done = piped('"q".png\n', "lora-repeats", "--json", "--concept", "x", cwd=tmp_path)
    assert json.loads(done.stdout)["images"] == 1
    (tmp_path / "q.png").rename(tmp_path / '"q"')  # now the word with its quotes names something
    done = piped('"q"\n', "lora-repeats", cwd=tmp_path)
    assert "error: no pictures found" in done.stderr


@pytest.mark.parametrize("tool", ["lora-tag", "lora-clean", "lora-check", "lora-repeats"])
def test_an_empty_list(tmp_path: Path, tool: str) -> None:
    done = piped("", tool, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_lora_check_of_files_that_are_no_pictures(folder: Path) -> None:
    (folder / "x.zip").write_bytes(b"PK")
    done = run("lora-check", "10_x/a.png", "x.zip", "--no-look", cwd=folder)
    assert done.stdout.startswith("1 picture, 10 an epoch")
    assert "1 file that is no picture (x.zip)" in done.stdout
    done = run("lora-check", "x.zip", cwd=folder)
    assert (done.returncode, "1 file that is no picture (x.zip)" in done.stderr) == (2, True)
    # A caption that is named is that of its picture, and no orphan that --fix would take away.
    done = run("lora-check", "10_x/a.txt", "--fix", "orphan-caption", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "nothing to mend\n")
    assert (folder / "10_x" / "a.txt").exists()


def test_folders_inside_are_told_without_recursive(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    draw(folder / "cover.png", "cover")
    done = run("lora-clean", folder, "--dry-run")
    assert "left alone: 2 pictures in folders inside (--recursive takes them in)" in done.stderr
    done = run("lora-tag", folder, "--dry-run", *TAGGER)
    assert "not tagged: 2 pictures in folders inside (--recursive takes them in)" in done.stderr
    done = run("lora-tag", folder, "--no-txt", "-r", *TAGGER)
    assert "folders inside" not in done.stderr


# -------------------------------------------------------------------------------- several captions, one place


def test_of_several_captions_the_one_that_is_read_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "10_x"
    draw(place / "a.png", "from txt")
    (place / "a.caption").write_text("from caption")
    draw(place / "b.png", "from txt")
    (place / "b.png.txt").write_text("from own")
    draw(place / "c.png"), Image.open(place / "c.png").save(place / "c.bmp")
    (place / "c.txt").write_text("of both")
    draw(place / "d.png")
    done = run("lora-clean", place, "--trigger", "zz", "--jsonl")
    rows = {Path(row["path"]).name: row["caption"] for row in map(json.loads, done.stdout.splitlines())}
    assert len(done.stdout.splitlines()) == 4
    assert rows == {
        "a.png": "zz, from txt",
        "b.png": "zz, from txt",
        "c.bmp": "zz, of both",
        "c.png": "zz, of both",
    }
    assert "captions beside another that is read in their place: a.caption, b.png.txt" in done.stderr
    assert "1 picture without a caption: d.png" in done.stderr
    assert (place / "a.caption").read_text() == "zz, from caption"  # clean as well
    built = piped(done.stdout, "lora-repeats", "-o", "out", "--repeats", "2", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "out" / "2_zz" / "a.txt").read_text() == "zz, from txt\n"
    done = run("lora-clean", place, "--to", "metadata", "-o", place / "metadata.jsonl")
    lines = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    assert [(row["file_name"], row["text"]) for row in lines] == sorted(rows.items())


def test_two_captions_never_share_a_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw(tmp_path / name / "a.png", f"tag {name}")
    done = run("lora-clean", "one", "two", "--to", "txt", "-o", "out", "--text", cwd=tmp_path)
    assert done.returncode == 1
    assert "would have the place of" in done.stderr
    assert "1 of 2 captions changed, 1 failed" in done.stderr
    assert (tmp_path / "out" / "a.txt").read_text() == "tag one\n"
    (tmp_path / "meta.json").write_text('{"x.png": {"tags": "one"}, "x.jpg": {"tags": "two"}}')
    done = run("lora-clean", "meta.json", "--to", "txt", "-o", "t", "--text", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "t" / "x.txt").read_text()) == (1, "one\n")


def test_the_readers_of_a_hand_written_caption(folder: Path) -> None:
    """A caption that people wrote stays the one that counts, whatever its suffix, through the pipe."""
    pytest.importorskip("onnxruntime")
    place = folder / "10_x"
    (place / "a.txt").rename(place / "a.caption")
    tagged = run("lora-tag", place, "--jsonl", *TAGGER)
    assert "2 had captions already" in tagged.stderr
    built = piped(tagged.stdout, "lora-repeats", "-o", "out", "--repeats", "2", cwd=folder)
    assert built.returncode == 0, built.stderr
    texts = {path.name for path in (folder / "out" / "2_x").iterdir() if path.suffix != ".png"}
    assert texts == {"a.caption", "b c.txt"}
    assert "captions have several suffixes (1 .caption, 1 .txt)" in built.stderr
    for mode in ("append", "replace"):
        run("lora-tag", place, "--existing", mode, *TAGGER)
        assert not (place / "a.txt").exists()
    for _ in range(2):
        if (place / "a.caption").read_text() != "1girl, tree, sun":
            assert run("lora-tag", "--undo", place).returncode == 0
    assert (place / "a.caption").read_text() == "1girl, tree, sun"


# -------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("cp1251", "NAME"), ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")],
)
def test_captions_that_are_no_utf8_stop_every_tool_with_the_mend(
    folder: Path, encoding: str, name: str
) -> None:
    pytest.importorskip("onnxruntime")
    caption = folder / "10_x" / "a.txt"
    text = "1girl, \u0441\u043e\u043b\u043d\u0446\u0435"
    caption.write_bytes(text.encode(encoding))
    for words in (
        ("lora-clean", folder / "10_x"),
        ("lora-tag", folder / "10_x", "--existing", "append", *TAGGER),
        ("lora-repeats", folder, "-o", folder / "out"),
        ("lora-repeats", folder, "-o", folder / "out.toml"),
    ):
        done = run(*words)  # type: ignore[arg-type]
        assert done.returncode != 0
        assert f"lora-clean --encoding {name} rewrites it" in done.stderr
        assert caption.read_bytes() == text.encode(encoding)
    assert not (folder / "out").exists()
    assert not (folder / "out.toml").exists()
    report = json.loads(run("lora-check", folder, "--json", "--no-look").stdout)
    assert [row["rule"] for row in report["findings"] if row["rule"] == "bad-encoding"] == ["bad-encoding"]
    assert run("lora-clean", folder / "10_x", "--encoding", encoding).returncode == 0
    assert caption.read_text(encoding="utf-8") == text
    assert run("lora-clean", "--undo", folder / "10_x").returncode == 0
    assert caption.read_bytes() == text.encode(encoding)


def test_a_dry_run_says_what_the_run_does(folder: Path) -> None:
    """A caption that is to be replaced need not be read."""
    pytest.importorskip("onnxruntime")
    caption = folder / "10_x" / "a.txt"
    caption.write_bytes("\u0441\u043e\u043b".encode("cp1251"))
    words = ("lora-tag", folder / "10_x", "--existing", "replace", "--text", *TAGGER)
    seen = run(*words, "--dry-run")
    assert (seen.returncode, "- \\xf1\\xee\\xeb" in seen.stdout) == (0, True), seen.stdout
    assert caption.read_bytes() == "\u0441\u043e\u043b".encode("cp1251")
    assert run(*words).returncode == 0
    assert run("lora-tag", "--undo", folder / "10_x").returncode == 0
    assert caption.read_bytes() == "\u0441\u043e\u043b".encode("cp1251")


def test_utf16_with_its_mark_is_read_by_all(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    caption = folder / "10_x" / "a.txt"
    caption.write_bytes("1girl, hand_written".encode("utf-16"))
    report = json.loads(run("lora-check", folder, "--json", "--no-look").stdout)
    assert {"tag": "hand written", "pictures": 1} in report["tags"]
    done = run("lora-tag", folder / "10_x", "--jsonl", *TAGGER)
    assert '"caption": "1girl, hand_written", "existing": true' in done.stdout
    assert run("lora-repeats", folder, "-o", tmp_path / "out").returncode == 0
    (built,) = (tmp_path / "out").glob("*/a.txt")
    assert built.read_bytes().decode("utf-16") == "1girl, hand_written"
    words = ("--existing", "append", "--trigger", "zz", *TAGGER)
    assert run("lora-tag", folder / "10_x", *words).returncode == 0
    assert caption.read_text(encoding="utf-8").startswith("1girl, hand_written, zz")


def test_signs_that_look_like_commas_and_line_ends(folder: Path) -> None:
    caption = folder / "10_x" / "a.txt"
    caption.write_text("mayu\uff0c1girl\u3001hat, sun", encoding="utf-8")
    report = json.loads(run("lora-check", folder, "--json", "--no-look", "--only", "other-comma").stdout)
    assert [row["text"] for row in report["findings"]] == ["'\uff0c', '\u3001'"]
    (
        run("lora-clean", folder / "10_x", "--split", "\uff0c"),
        run("lora-clean", folder / "10_x", "--split", "\u3001"),
    )
    assert caption.read_text(encoding="utf-8") == "mayu, 1girl, hat, sun"
    # What other programs read as white space ends no line, and takes no word away.
    caption.write_text("mayu\u2028hat, one\x0ctwo, sun\0", encoding="utf-8")
    assert run("lora-clean", folder / "10_x").returncode == 0
    assert caption.read_text(encoding="utf-8") == "mayu hat, one two, sun"


# -------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lora-clean", "--ext", "png"], "that is no suffix of captions"),
        (["lora-clean", "--ext", ""], "a suffix such as .txt or .caption is needed"),
        (["lora-clean", "--trigger", ""], "--trigger: an empty word"),
        (["lora-clean", "--trigger", " , "], "--trigger: an empty word"),
        (["lora-clean", "--check-trigger", ""], "--check-trigger: an empty word"),
        (["lora-clean", "--drop", ""], "--drop: an empty word"),
        (["lora-clean", "--to", "txt", "--no-txt"], "give one of them"),
        (["lora-clean", "--no-txt", "--existing", "replace"], "--existing has a use only without --no-txt"),
        (["lora-clean", "--drop-category", "meta"], "nothing tells the tags' categories"),
        (["lora-clean", "--order", "category"], "nothing tells the tags' categories"),
        (["lora-tag", "--trigger", " "], "--trigger: an empty word"),
        (["lora-tag", "--ext", ".jfif"], "that is no suffix of captions"),
        (["lora-tag", "--ext", "a/b"], "a suffix such as .txt or .caption is needed"),
        (["lora-check", "--caption_extension", "png"], "that is no suffix of captions"),
        (["lora-check", "--only", "duplicate", "--ignore", "duplicate"], "it is asked for as well"),
        (["lora-check", "--fix", "duplicate", "--no-look"], "--fix duplicate: pictures were not decoded"),
        (["lora-check", "--fix", "misspelt-tag"], "--fix misspelt-tag: needs a list of known tags"),
        (["lora-check", "--train_data_dir", "x"], "name the folder itself"),
        (["lora-repeats", "--train_data_dir", "x"], "name the folder itself"),
        (["lora-repeats", "-o", "out", "--caption_extension", "png"], "that is no suffix of captions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_would_do_nothing_or_harm(folder: Path, words: list[str], told: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tool, *rest = words
    done = run(tool, folder / "10_x", *rest, cwd=folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert told in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_lora_repeats_takes_nothing_that_training_stops_at(folder: Path, tmp_path: Path) -> None:
    (folder / "10_x" / "z.png").touch()
    done = run("lora-repeats", folder, "-o", tmp_path / "out", "--json")
    assert (done.returncode, json.loads(done.stdout)["images"]) == (1, 2)
    assert "z.png: empty file; mend it or take it out" in done.stderr
    assert not list((tmp_path / "out").glob("*/z.png"))


def test_a_count_of_repairs_speaks_of_what_was_done(folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("links need a right there")
    draw(folder / "else" / "e.png"), (folder / "ds").mkdir()
    (folder / "10_x").rename(folder / "ds" / "10_x")
    (folder / "ds" / "5_else").symlink_to("../else")
    done = run("lora-check", folder / "ds", "--fix", "small", "--resolution", "512")
    assert done.returncode == 1
    assert "mended: 4 files moved away; --undo takes it back; 1 failed" in done.stderr
    assert (folder / "else" / "e.png").exists()


def test_what_is_named_twice_counts_once(folder: Path) -> None:
    place = folder / "10_x"
    for again in (place, place / "a.png", f"{place}/../10_x"):
        assert run("lora-check", folder, again, "--no-look").stdout.startswith(
            "2 pictures, 20 an epoch, 2 cap"
        )
        assert json.loads(run("lora-repeats", folder, again, "--json").stdout)["images"] == 2
        assert "2 of 2 captions would" in run("lora-clean", place, again, "-n", "--trigger", "zz").stderr


def test_folders_with_a_use_of_their_own_are_not_told(folder: Path) -> None:
    draw(folder / "reg" / "1_girl" / "p.png", "girl"), draw(folder / "extra" / "q.png")
    for name in ("a.png", "b c.png"):
        Image.open(folder / "10_x" / name).convert("L").save(draw(folder / "shapes" / name))
    data = DataSettings(
        train_data_dir=folder,
        reg_data_dir=folder / "reg",
        conditioning_data_dir=folder / "shapes",
        masked_loss=True,
        resolution=(64, 64),
    )
    notes = [line for line in dataset_notes(data, scan(data)) if "not trained" in line]
    assert notes == [
        f"{folder}: not trained: 1 picture in 'extra', which has no number of repeats in front "
        "(rename it to '10_extra')"
    ]


@pytest.mark.parametrize("tool", ["lora-tag", "lora-clean", "lora-check", "lora-repeats"])
@pytest.mark.parametrize("words", [[], ["--undo"]])
def test_an_empty_word_is_no_folder(folder: Path, tool: str, words: list[str]) -> None:
    """As a variable of a script that is not set: it would mean the folder one is in."""
    done = run(tool, "", *words, cwd=folder / "10_x")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"{tool}: error: an empty path; name a folder or file ('.' is the folder you are in)\n"
    )


def test_repairs_take_all_captions_of_a_picture_along(tmp_path: Path) -> None:
    place = tmp_path / "10_x"
    first = draw(place / "a.png", "1girl, tree, sun")
    (place / "copy.png").write_bytes(first.read_bytes())
    for name in ("copy.txt", "copy.caption", "copy.png.txt"):
        (place / name).write_text(f"of {name}")
    assert run("lora-check", place, "--fix", "duplicate").returncode == 0
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["a.png", "a.txt"]
    assert run("lora-check", "--undo", place).returncode == 0
    if sys.platform != "linux":
        return  # names that differ in capitals are one file there
    draw(place / "COPY.png", "capitals, b, c")
    assert run("lora-check", place, "--fix", "case-clash").returncode == 0
    kept = {path.name: path.read_text() for path in place.iterdir() if path.suffix in (".txt", ".caption")}
    assert kept == {
        "a.txt": "1girl, tree, sun",
        "COPY.txt": "capitals, b, c",
        "copy_2.txt": "of copy.txt",
        "copy_2.caption": "of copy.caption",
        "copy_2.png.txt": "of copy.png.txt",
    }


def test_signs_that_no_option_obeys_are_told_and_the_mend_mends(folder: Path) -> None:
    caption = folder / "10_x" / "a.txt"
    caption.write_text("mayu ||| {a|b}, {{c|d}}, (sun:1.2), <lora:q:1>, BREAK, smile")
    (folder / "10_x" / "b c.txt").write_text("mayu, rem \\(re:zero\\), 1:1, {{c|d}}, :3")

    def told(**options: object) -> list[str]:
        data = DataSettings(train_data_dir=folder, resolution=(64, 64), **options)  # type: ignore[arg-type]
        return [
            line.partition(" (a.png)")[0]
            for line in dataset_notes(data, scan(data))
            if "as it stands" in line
        ]

    signs = [
        "1 caption has '|||'",
        "1 caption has choices such as {a|b}",
        "1 caption has weights such as (tag:1.2)",
        "1 caption has signs of prompts such as <lora:name:1> or BREAK",
    ]
    assert told() == signs
    assert told(keep_tokens_separator="|||", enable_wildcard=True, weighted_captions=True) == signs[3:]
    words = ("--only", "prompt-syntax", "--only", "wildcards")
    report = json.loads(run("lora-check", folder, "--no-look", "--json", *words).stdout)
    found = {row["rule"]: (row["text"], len(row["paths"])) for row in report["findings"]}
    assert found == {
        "prompt-syntax": ("'(sun:1.2)', '<lora:q:1>', 'BREAK'", 1),
        "wildcards": ("'{a|b}'", 1),
    }
    # The words that the report advises.
    mend = shlex.split(
        report["rules"]["prompt-syntax"]["fix"].partition(" for the others")[0].replace(", and", "")
    )
    assert run(mend[0], folder / "10_x", *mend[1:]).returncode == 0
    assert caption.read_text() == "mayu ||| {a|b}, {{c|d}}, sun, smile"
    assert run("lora-clean", folder / "10_x", "--expand-wildcards").returncode == 0
    assert told(keep_tokens_separator="|||") == []


def test_a_caption_named_as_a_picture(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("lora-tag", folder / "10_x" / "a.txt", "--existing", "replace", *TAGGER)
    assert (done.returncode, "a caption's file, not a picture; name the picture" in done.stderr) == (2, True)
    assert (folder / "10_x" / "a.txt").read_text() == "1girl, tree, sun"
