"""Every rule on a dataset that breaks it, and none on one that is clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from lorapipe_dataset.check.rules import RULES
from lorapipe_engine.errors import InputError

Args = list[object]
SIZE = (96, 96)
WORDS = ("red hat", "tree", "smile", "umbrella", "bench", "rain", "window", "cat", "flower", "lamp")


@pytest.fixture
def clean(draw: Any, tmp_path: Path) -> Path:
    """Ten pictures with nothing wrong: ``set/5_mayu``."""
    for number in range(10):
        tags = [WORDS[(number + step) % len(WORDS)] for step in range(3)]
        draw(f"set/5_mayu/{number}.png", ", ".join(["mayu", *tags]))
    return tmp_path / "set"


@pytest.fixture
def folder(clean: Path) -> Path:
    return clean / "5_mayu"


BASE: Args = ["--resolution", 96, "--bucket-reso-steps", 32, "--json"]


def names(findings: list[dict[str, Any]]) -> list[list[str]]:
    return [[Path(path).name for path in finding["paths"]] for finding in findings]


def test_a_clean_set_has_no_findings(check: Any, clean: Path) -> None:
    done = check(clean, *BASE, "--trigger", "mayu", "--fail-on", "info")
    assert done.json["findings"] == []
    assert done.code == 0
    assert done.json["summary"] == {"error": 0, "warning": 0, "info": 0}
    assert {row["rule"] for row in done.json["skipped"]} >= {"unknown-tag", "misspelt-tag", "alias"}
    assert check(clean, *BASE[:-1]).out.endswith("nothing found\n")


# -------------------------------------------------------------------------------- files


def test_broken_pictures(check: Any, folder: Path, clean: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").write_bytes(b"not a picture")
    done = check(clean, *BASE)
    texts = {Path(row["paths"][0]).name: row["text"] for row in done.found("unreadable")}
    assert texts == {"0.png": "cut short", "1.png": "empty file", "2.png": "not a picture"}
    assert done.code == 1
    # They are no part of an epoch.
    assert "5 pictures that" not in (line := check(clean, "--only", "unreadable").out.splitlines()[0])
    assert line.endswith(", and 3 pictures that cannot be trained")
    assert done.json["trained"] == done.json["pictures"] - 3
    # Headers alone still tell the other two.
    assert names(check(clean, *BASE, "--no-look").found("unreadable")) == [["1.png"], ["2.png"]]


def test_a_truncated_jpeg_is_seen_at_any_scale(check: Any, folder: Path, clean: Path) -> None:
    picture = Image.effect_noise((1600, 1600), 60).convert("RGB")
    picture.save(folder / "0.jpg")
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-4000])
    assert names(check(clean, *BASE).found("unreadable")) == [["0.jpg"]]


@pytest.mark.slow
def test_a_picture_of_30000_pixels(check: Any, folder: Path, clean: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(folder / "0.png")
    done = check(clean, *BASE)
    assert names(done.found("too-large")) == [["0.png"]]
    assert (done.code, done.found("unreadable")) == (1, [])
    Image.new("L", (30_000, 40)).save(folder / "0.png")
    done = check(clean, *BASE)
    assert done.found("too-large") == []
    assert names(done.found("crop-loss")) == [["0.png"]]


def test_files_that_belong_to_nothing(check: Any, folder: Path, clean: Path) -> None:
    Image.new("RGB", SIZE).save(folder / "anim.gif")
    for name in (
        "anim.txt",
        "gone.txt",
        "gone.caption",
        "gone.npz",
        "0.npz",
        "1_0096x0096_sd.npz",
        "notes.md",
    ):
        (folder / name).touch()
    for name in ("0-masklabel.png", "gone-masklabel.png"):
        Image.new("L", SIZE).save(folder / name)
    done = check(clean, *BASE)
    assert names(done.found("other-format")) == [["anim.gif"]]
    assert names(done.found("orphan-caption")) == [["gone.caption"], ["gone.txt"]]
    assert names(done.found("orphan-cache")) == [["gone.npz"]]
    assert names(done.found("orphan-mask")) == [["gone-masklabel.png"]]
    assert names(done.found("mask-trained")) == [["0-masklabel.png"]]
    assert done.json["pictures"] == 10


def test_names_that_clash(check: Any, folder: Path, clean: Path) -> None:
    Image.open(folder / "0.png").save(folder / "0.jpg")
    Image.open(folder / "1.png").save(folder / "A.png")
    Image.open(folder / "2.png").save(folder / "a.png")
    (folder / "3.png").rename(folder / "line\nend.png")
    done = check(clean, *BASE)
    assert names(done.found("stem-clash")) == [["0.jpg", "0.png"]]
    assert names(done.found("case-clash")) == [["A.png", "a.png"]]
    assert names(done.found("odd-name")) == [["line\nend.png"]]


def test_pictures_in_the_wrong_place(
    check: Any, draw: Any, folder: Path, clean: Path, tmp_path: Path
) -> None:
    draw("set/stray.png"), draw("set/5_mayu/deep/a.png"), draw("set/new/b.png")
    done = check(clean, *BASE)
    assert names(done.found("not-trained")) == [["stray.png"], ["a.png"], ["b.png"]]
    assert (done.json["pictures"], done.json["trained"]) == (13, 10)
    draw("plain/hats/c.png")
    (finding,) = check(tmp_path / "plain", *BASE).found("no-repeats")
    assert "rename it to 10_hats" in finding["text"]


def test_pictures_are_counted_by_format(check: Any, draw: Any, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.JPG"):
        draw(f"set/5_mayu/{name}")
    draw("one/5_mayu/a.png")
    done = check(tmp_path / "set", "--json")
    assert done.json["formats"] == {"jpg": 2, "png": 1}
    assert "  2 jpg, 1 png" in check(tmp_path / "set").out.splitlines()
    assert "png" not in check(tmp_path / "one").out.splitlines()[1]


# -------------------------------------------------------------------------------- captions


def test_captions_that_are_not_there(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").unlink()
    (folder / "1.txt").write_text(" \r\n")
    (folder / "2.txt").write_bytes("mayu, caf\xe9".encode("latin-1"))
    (folder / "3.txt").write_bytes(b"\xef\xbb\xbfmayu, tree, cat\r\nsecond line\r\n")
    done = check(clean, *BASE)
    assert [(row["rule"], row["text"]) for row in done.json["findings"]] == [
        ("missing-caption", "would be 'mayu'"),
        ("empty-caption", "no text in it"),
        ("bad-encoding", "not UTF-8 (byte 9)"),
        ("several-lines", "2 lines"),
    ]
    assert done.json["concepts"][0]["captions"] == 7


def test_the_trigger(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").write_text("tree, smile, cat")
    (folder / "1.txt").write_text("tree, Mayu, cat")
    (folder / "2.txt").write_text("a drawing of mayu sitting on a bench in the rain.")
    done = check(clean, *BASE, "--trigger", "mayu", "--ignore", "mixed-style")
    assert names(done.found("no-trigger")) == [["0.png"]]
    assert [row["text"] for row in done.found("trigger-not-first")] == ["'mayu' is tag 2"]
    assert done.code == 1
    assert check(clean, *BASE, "--trigger", "mayu", "--keep-tokens", 0).found("trigger-not-first") == []
    # Guessed from the folder's name it is no error.
    done = check(clean, *BASE)
    assert [row["severity"] for row in done.found("no-trigger")] == ["warning"]
    assert done.code == 0


def test_long_captions(check: Any, folder: Path, clean: Path) -> None:
    tokenizer = Path(__file__).parents[3] / "packages/demo/src/lorapipe_demo/assets/tokenizer"
    (folder / "0.txt").write_text("mayu, " + ", ".join(["umbrella"] * 200))
    (folder / "1.txt").write_text("mayu, " + ", ".join(["umbrella"] * 60))
    done = check(clean, *BASE, "--ignore", "duplicate-tag", "--tokenizer-dir", tokenizer)
    (finding,) = done.found("too-many-tokens")
    assert (Path(finding["paths"][0]).name, finding["data"]["exact"]) == ("0.png", True)
    done = check(clean, *BASE, "--tokenizer-dir", tokenizer, "--max-token-length", 75)
    findings = done.found("too-many-tokens")
    assert len(findings) == 2
    # What is advised is not what is set already.
    assert all("with lora-train --max_token_length 225" in row["text"] for row in findings)
    assert "--max_token_length" not in finding["text"]
    assert "225" not in RULES["too-many-tokens"].fix
    done = check(clean, *BASE, "--tokenizer-dir", clean)
    assert (done.code, "vocab.json and merges.txt are needed" in done.err) == (2, True)


def test_captions_unlike_the_others(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").write_text("mayu stands under an old tree and looks at the rain")
    (folder / "1.txt").write_text("mayu, cat")
    for number in (2, 3, 4):
        (folder / f"{number}.txt").write_text("mayu, cat, night")
    done = check(clean, *BASE)
    assert names(done.found("mixed-style")) == [["0.png"]]
    assert [(row["text"]) for row in done.found("few-tags")] == ["2 tags"]
    assert names(done.found("same-caption")) == [["2.png", "3.png", "4.png"]]
    assert "30%" in done.found("same-caption")[0]["text"]


# -------------------------------------------------------------------------------- tags

CSV = "tag_id,name,category,count\n0,general,9,10\n" + "".join(
    f"{number},{name},0,{count}\n"
    for number, (name, count) in enumerate(
        [("long_hair", 900), ("short_hair", 700), ("tree", 50), ("cat", 40), ("shirt", 60), ("1girl", 999),
         ("2girls", 99), ("hatsune_miku_(vocaloid)", 5), *((word.replace(" ", "_"), 3) for word in WORDS)], 1
    )
)  # fmt: skip


def test_known_tags(check: Any, folder: Path, clean: Path, tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text(CSV)
    (folder / "0.txt").write_text(
        "mayu, long_hair, lnog hair, hair long, shrt hair, longhair, 3girls, zzz, rating:safe"
    )
    (folder / "1.txt").write_text(
        r"mayu, (long hair:1.2), hatsune miku \(vocaloid\), Shirts, cap, general, 1girl"
    )
    done = check(
        clean, *BASE, "--tags", tmp_path / "tags.csv", "--only", "unknown-tag", "--only", "misspelt-tag"
    )
    nearest = {row["data"]["tag"]: row["data"]["nearest"] for row in done.found("misspelt-tag")}
    assert nearest == {
        "lnog hair": "long hair", "hair long": "long hair", "shrt hair": "short hair", "longhair": "long hair",
        "shirts": "shirt",
    }  # fmt: skip
    assert {row["data"]["tag"] for row in done.found("unknown-tag")} == {"zzz", "cap", "3girls"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "not a tag list"), ("", "not a tag list"), ("name,category\nx,9\n", "has no tags")],
)
def test_lists_that_are_none(check: Any, clean: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tags.csv").write_text(text)
    done = check(clean, "--tags", tmp_path / "tags.csv")
    assert (done.code, message in done.err, len(done.err.splitlines())) == (2, True, 1)
    done = check(clean, "--tags", tmp_path / "none.csv")
    assert (done.code, "cannot be read" in done.err) == (2, True)


def test_old_names(check: Any, folder: Path, clean: Path, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("# remarks\nparasol = umbrella\nfeline,cat\n")
    (folder / "0.txt").write_text("mayu, parasol, feline, lamp")
    done = check(clean, *BASE, "--aliases", tmp_path / "old.txt")
    assert {row["data"]["tag"]: row["data"]["new"] for row in done.found("alias")} == {
        "parasol": "umbrella",
        "feline": "cat",
    }


def test_tags_of_one_caption(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").write_text("mayu, Red_Hat, red hat, tree")
    (folder / "1.txt").write_text("mayu, 1girl, 2girls, tree")
    (folder / "2.txt").write_text("mayu, 1girl, 1boy, short hair, long hair")
    (folder / "3.txt").write_text("mayu, 2girls, multiple girls, short hair, long hair")
    (folder / "4.txt").write_text("mayu, no humans, solo, tree")
    done = check(clean, *BASE, "--kind", "character")
    assert [row["text"] for row in done.found("duplicate-tag")] == ["'red hat'"]
    clashes = [row["text"] for row in done.found("contradiction")]
    assert clashes == ["1girl + 2girls", "short hair + long hair", "no humans + solo"]
    assert names(done.found("several-people")) == [["1.png"], ["3.png"], ["4.png"]]
    assert check(clean, *BASE, "--kind", "style").found("several-people") == []


def test_tags_that_nobody_wants(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").write_text("mayu, signature, tree, artist_name")
    (folder / "1.txt").write_text("mayu, signature, multiple views, cat")
    done = check(clean, *BASE)
    assert {row["data"]["tag"]: len(row["paths"]) for row in done.found("artefact")} == {
        "signature": 2,
        "artist name": 1,
    }
    assert [row["text"] for row in done.found("panels")] == ["'multiple views' on 1 picture"]


def test_tags_that_are_always_there(check: Any, folder: Path, clean: Path) -> None:
    for number in range(8):
        path = folder / f"{number}.txt"
        path.write_text(path.read_text() + ", silver hair")
    done = check(clean, *BASE, "--trigger", "mayu", "--kind", "character")
    (finding,) = done.found("invariant-tag")
    assert (finding["data"], finding["severity"]) == ({"tag": "silver hair", "share": 0.8}, "warning")
    (finding,) = check(clean, *BASE).found("invariant-tag")
    assert finding["severity"] == "info"
    (folder / "0.txt").write_text("mayu, tree, cat")
    assert check(clean, *BASE).found("invariant-tag") == []


def test_ratings(check: Any, folder: Path, clean: Path) -> None:
    (folder / "0.txt").write_text("mayu, tree, cat, rating:safe")
    (folder / "1.txt").write_text("mayu, lamp, cat, explicit")
    (finding,) = check(clean, *BASE).found("rating-mix")
    assert finding["text"] == "explicit 1, safe 1, none 8"


# -------------------------------------------------------------------------------- pictures


def test_kinds_of_pictures(check: Any, folder: Path, clean: Path) -> None:
    whole = [Image.open(folder / f"{number}.png").convert("RGB") for number in range(10)]
    hole = whole[0].convert("RGBA")
    hole.putpixel((0, 0), (9, 9, 9, 0))
    hole.save(folder / "0.png")
    whole[1].convert("RGBA").save(folder / "1.png")
    whole[2].convert("CMYK").save(folder / "x2.jpg", quality=95)
    exif = whole[3].getexif()
    exif[0x0112] = 6
    whole[3].save(folder / "x3.jpg", exif=exif, quality=20)
    Image.fromarray(np.asarray(whole[4].convert("L")).astype(np.uint16) * 257).save(folder / "4.png")
    whole[5].save(folder / "x5.webp", save_all=True, append_images=[whole[6]])
    whole[7].convert("L").save(folder / "7.png")
    Image.new("RGB", SIZE, (200, 10, 10)).save(folder / "8.png")
    done = check(clean, *BASE, "--ignore", "missing-caption")
    found = {
        row["rule"]: Path(row["paths"][0]).name
        for row in done.json["findings"]
        if "duplicate" not in row["rule"]
    }
    assert found | {"variant": ""} == {
        "alpha": "0.png", "cmyk": "x2.jpg", "exif-rotation": "x3.jpg", "jpeg-quality": "x3.jpg",
        "deep-colour": "4.png", "animated": "x5.webp", "grey": "7.png", "blank": "8.png", "variant": "",
    }  # fmt: skip
    (low,) = done.found("jpeg-quality")
    assert low["data"]["quality"] == pytest.approx(20, abs=1)
    assert [row["text"] for row in done.found("animated")] == ["2 frames"]
    assert names(done.found("grey")) in ([["7.png"]], [["4.png"], ["7.png"]])


def test_small_pictures(check: Any, draw: Any, clean: Path) -> None:
    draw("set/5_mayu/s.png", "mayu, tree, cat, dog", size=(48, 48))
    (finding,) = check(clean, *BASE).found("small")
    assert finding["text"] == "48x48, 2 times too small for 96x96"
    (finding,) = check(clean, *BASE, "--bucket-no-upscale").found("small")
    assert finding["data"]["scale"] == 2
    assert len(check(clean, "--resolution", 512, "--json").found("small")) == 11


def test_blurred_pictures(check: Any, folder: Path, clean: Path) -> None:
    with Image.open(folder / "0.png") as picture:
        picture.filter(ImageFilter.GaussianBlur(4)).save(folder / "0.png")
    with Image.open(folder / "1.png") as picture:
        picture.resize((24, 24)).resize((600, 600), Image.Resampling.BICUBIC).save(folder / "1.png")
    assert names(check(clean, *BASE).found("blurred")) == [["0.png"], ["1.png"]]


def test_bars(check: Any, folder: Path, clean: Path) -> None:
    with Image.open(folder / "0.png") as picture:
        ImageOps.expand(picture.convert("RGB"), (0, 20, 0, 20), "black").save(folder / "0.png")
    (finding,) = check(clean, *BASE).found("bars")
    assert finding["data"]["bars"] == pytest.approx([0, 20 / 136, 0, 20 / 136], abs=0.01)


# -------------------------------------------------------------------------------- the set


def test_buckets_and_orientation(check: Any, draw: Any, tmp_path: Path) -> None:
    for number in range(6):
        draw(f"set/9_x/p{number}.png", f"a, b, c{number}", size=(64, 128))
    draw("set/9_x/long.png", "a, b, long", size=(960, 96))
    words: Args = [*BASE, "--max-bucket-reso", 160, "--min-bucket-reso", 64, "--train-batch-size", 16]
    done = check(tmp_path / "set", *words)
    assert names(done.found("crop-loss")) == [["long.png"]]
    assert done.found("crop-loss")[0]["data"]["loss"] > 0.5
    assert names(done.found("short-batch")) == [["long.png"]]
    assert [row["text"] for row in done.found("orientation")] == ["portrait 86%, landscape 14%"]
    assert done.json["orientation"]["portrait"] == pytest.approx(6 / 7, abs=1e-3)
    done = check(tmp_path / "set", *BASE, "--bucket-no-upscale", "--bucket-reso-steps", 64)
    assert names(done.found("no-bucket")) == [["long.png"]]
    assert done.code == 1


def test_amounts(check: Any, draw: Any, clean: Path) -> None:
    done = check(clean, *BASE, "--kind", "character")
    assert [row["text"] for row in done.found("few-pictures")] == ["10 for a character; 50 to 100 are good"]
    assert [row["data"] for row in done.found("epoch-length")] == [{"shown": 50}]
    for number in range(3):
        draw(f"set/100_okabe/{number}.png", f"okabe, lab, coat, {number}")
    done = check(clean, *BASE, "--kind", "character")
    assert done.found("epoch-length") == []
    assert done.found("balance")[0]["text"] == "mayu 14%, okabe 86% of an epoch; equal shares are 50%"


# -------------------------------------------------------------------------------- rules as such


def test_rules_are_named_once_and_can_be_chosen(check: Any, clean: Path, folder: Path) -> None:
    (folder / "0.txt").unlink()
    (folder / "gone.txt").touch()
    found = check(clean, *BASE).json["findings"]
    assert {row["rule"] for row in found} == {"missing-caption", "orphan-caption"}
    assert [row["rule"] for row in check(clean, *BASE, "--only", "orphan-caption").json["findings"]] == [
        "orphan-caption"
    ]
    assert check(clean, *BASE, "--ignore", "missing-caption").code == 0
    listed = check("--rules").out.splitlines()
    assert len(listed) == len(RULES)
    for rule in RULES.values():
        assert rule.fix
        assert rule.id.islower()


def test_every_rule_is_in_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs/checking.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    wrong = [
        rule.id
        for rule in RULES.values()
        if f" | {rule.title} | {rule.fix} |" not in rows.get(rule.id, "")
        or rows[rule.id].startswith(f"| `{rule.id}` *") != rule.fixable
        or f"| {rule.severity}" not in rows[rule.id]
    ]
    assert wrong == []


def test_severity_decides_the_exit_status(check: Any, folder: Path, clean: Path) -> None:
    (folder / "gone.txt").touch()
    assert check(clean, *BASE).code == 0
    assert check(clean, *BASE, "--fail-on", "warning").code == 1
    (folder / "gone.txt").unlink()
    (folder / "0.txt").unlink()
    assert check(clean, *BASE).code == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["none"], "none: no such file or folder"),
        (["empty"], "no pictures found"),
        (["set", "--only", "mising-caption"], "no rule 'mising-caption', did you mean 'missing-caption'?"),
        (["set", "--trigger", " "], "--trigger: an empty word"),
        (["set", "--kind", "person"], "'person' is not one of"),
        (["set", "--html", "none/report.html"], "its folder none does not exist"),
        (["set", "--html", "set"], "is not a regular file"),
        (["set", "--bucket-reso-steps", "20"], "not a multiple of 8"),
        (["set", "--jsn"], "no option --jsn, did you mean --json?"),
    ],
)
def test_errors_take_one_line(
    check: Any, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = check(*words)
    assert done.code in (1, 2)
    assert (done.out, len(done.err.splitlines())) == ("", 1)
    assert text in done.err


def test_strange_names_and_loops(check: Any, draw: Any, tmp_path: Path) -> None:
    for name in ("-dash.png", "two words.png", "új😀.png", "line\nend.png"):
        draw(f"set/5_x/{name}", f"x, tree, {name!r}")
    (tmp_path / "set/5_x/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/self").symlink_to(tmp_path / "set/self")
    done = check(tmp_path / "set", *BASE, "--html", tmp_path / "-r.html")
    assert done.json["pictures"] == 4
    assert {row["rule"] for row in done.json["findings"]} == {"odd-name"}
    assert "line\\nend.png" in check(tmp_path / "set", "--resolution", 96).out
    listed = json.dumps({"path": str(tmp_path / "set/5_x/új😀.png")}).encode()
    assert check(*BASE, stdin=listed).json["pictures"] == 1


def test_library_errors_are_input_errors(clean: Path) -> None:
    from lorapipe_dataset.check.pictures.scan import scan
    from lorapipe_engine.command.records import Record

    with pytest.raises(InputError, match="no such folder"):
        scan([Record(clean / "none")], ".txt")


# -------------------------------------------------------------------------------- parts


@pytest.mark.slow
def test_pictures_cut_out_of_others(check: Any, folder: Path, clean: Path) -> None:
    """Of any size and shape, scaled and compressed; not mirrored ones, nor those that have nothing to do with it."""
    whole = Image.open(folder / "0.png").convert("RGB").resize((600, 480), Image.Resampling.BICUBIC)
    whole.save(folder / "whole.png")
    whole.crop((200, 130, 500, 430)).save(folder / "part.png")
    whole.crop((60, 20, 460, 300)).resize((700, 490)).save(folder / "large.jpg", quality=80)
    whole.crop((200, 130, 500, 430)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    rows = check(clean, "--json", "--only", "crop").found("crop")
    found = {Path(row["paths"][0]).name: row for row in rows}
    assert set(found) == {"part.png", "large.jpg"}
    assert Path(found["part.png"]["data"]["whole"]).name in ("whole.png", "0.png")
    expected = [200 / 600, 130 / 480, 500 / 600, 430 / 480]
    assert found["part.png"]["data"]["box"] == pytest.approx(expected, abs=0.02)
    assert check(clean, "--json", "--crops").found("crop") == rows
    assert check(clean, "--json").found("crop") == []  # it takes too long to be done unasked
    skipped = check(clean, "--json", "--no-look", "--only", "crop").json["skipped"]
    assert "crop" in {row["rule"] for row in skipped}
