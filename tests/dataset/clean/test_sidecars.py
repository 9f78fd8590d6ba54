"""Captions from what other programs write beside pictures, into them, or into one file for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Clean = Callable[..., Any]
DANBOORU = {
    "id": 1,
    "md5": "0" * 32,
    "tag_string_general": "1girl blue_eyes ^_^",
    "tag_string_character": "rem_(re:zero)",
    "tag_string_copyright": "re:zero",
    "tag_string_artist": "somebody",
    "tag_string_meta": "highres",
    "rating": "g",
    "file_url": "https://cdn.example/original/a.png",
}
E621 = {
    "id": 3,
    "file": {"md5": "d" * 32, "ext": "png"},
    "tags": {"general": ["solo", "fluffy_tail"], "species": ["fox"], "character": ["bob"], "artist": []},
    "rating": "s",
}
SIDECARS: list[tuple[str, str, Any, str]] = [
    # format, name of the sidecar of a.png, what is in it, the caption
    ("grabber", "a.png.txt", "rem_(x)^,^ 1girl^,^ blue_hair^,^ ", "rem (x), 1girl, blue hair"),
    ("grabber", "a.txt", "rem_(x) ^,^ , 1girl ^,^ ", "rem (x), 1girl"),
    # By the guide's template: %character:unsafe,separator=^,^ %, %general:unsafe,separator=^,^ %
    ("grabber", "a.txt", "rem_(x)^,^ ram, 1girl^,^ blue_hair^,^ :<", "rem (x), ram, 1girl, blue hair, :<"),
    ("hydrus", "a.png.txt", "blue eyes\ncharacter:rem\nre:zero\ncreator:x\ntitle:y\n", "rem, blue eyes, re:zero"),
    ("hydrus", "a.txt", "blue eyes\ncharacter:rem\n", "rem, blue eyes"),
    ("spaced", "a.txt", "1girl long_hair o_o", "1girl, long hair, o_o"),
    ("danbooru", "a.json", DANBOORU, "rem (re:zero), 1girl, blue eyes, ^_^"),
    ("booru", "posts.json", [DANBOORU, {**DANBOORU, "file_url": "https://cdn.example/z.png", "md5": "1" * 32}],
     "rem (re:zero), 1girl, blue eyes, ^_^"),
    ("gelbooru", "list.json", {"@attributes": {}, "post": [{"id": 7, "tags": "1girl red_hat", "image": "a.png"}]},
     "1girl, red hat"),
    ("moebooru", "a.json", [{"id": 7, "tags": "1girl red_hat", "file_url": "https://x.example/7.png"}],
     "1girl, red hat"),
    ("e621", "a.png.json", {"posts": [E621]}, "bob, solo, fluffy tail"),
    ("gallery-dl", "a.png.json", {"category": "x", "tags_general": ["1girl", "red_hair"], "tags_character": ["foo"]},
     "foo, 1girl, red hair"),
    ("gallery-dl", "a.png.json", {"category": "pixiv", "tags": ["初音ミク", "1girl"]}, "初音ミク, 1girl"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "name", "content", "expected"), SIDECARS)
def test_sidecars(clean: Clean, tmp_path: Path, source: str, name: str, content: Any, expected: str) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    sidecar = tmp_path / name
    sidecar.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    before = sidecar.read_bytes()
    assert clean(tmp_path, "--from", source).code == 0
    caption = tmp_path / "a.txt"
    assert caption.read_text(encoding="utf-8").strip() == expected
    if sidecar != caption:
        assert sidecar.read_bytes() == before
    # Again, by the folder and by the file, nothing changes.
    for word in (tmp_path, sidecar):
        assert "0 of" in clean(word, "--from", source).err
    assert caption.read_text(encoding="utf-8").strip() == expected


def test_the_format_is_told_by_the_content(clean: Clean, tmp_path: Path) -> None:
    for name, content in {"a": DANBOORU, "b": {"posts": [E621]}}.items():
        (tmp_path / f"{name}.png").write_bytes(b"png")
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    clean(tmp_path / "a.json", tmp_path / "b.json")
    assert (tmp_path / "a.txt").read_text() == "rem (re:zero), 1girl, blue eyes, ^_^\n"
    assert (tmp_path / "b.txt").read_text() == "bob, solo, fluffy tail\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--categories", "copyright,character"], "re:zero, rem (re:zero)"),
        (["--underscores", "--escape"], "rem_\\(re:zero\\), 1girl, blue_eyes, ^_^"),
        (["--rating", "first"], "general, rem (re:zero), 1girl, blue eyes, ^_^"),
        (["--categories", "general,character", "--order", "category"], "1girl, blue eyes, ^_^, rem (re:zero)"),
        (["--split-characters"], "rem, re:zero, 1girl, blue eyes, ^_^"),
    ],
)  # fmt: skip
def test_categories_of_posts(clean: Clean, tmp_path: Path, options: list[str], expected: str) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    (tmp_path / "a.json").write_text(json.dumps(DANBOORU))
    clean(tmp_path, "--from", "danbooru", *options)
    assert (tmp_path / "a.txt").read_text() == f"{expected}\n"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"id": 1}', b"\xff\xfe", b"[" * 100_000])
def test_sidecars_that_are_none_are_told_and_passed(clean: Clean, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "b.png").write_bytes(b"png")
    (tmp_path / "b.json").write_text(json.dumps(DANBOORU | {"file_url": ""}))
    done = clean(tmp_path, "--from", "booru", "--text")
    assert done.code == 1
    assert len([line for line in done.err.splitlines() if "a.json" in line]) == 1
    assert (tmp_path / "b.txt").exists()


# -------------------------------------------------------------------------------- one file for all


def test_documents_keep_what_is_not_a_caption(clean: Clean, tmp_path: Path) -> None:
    kohya = {"x/a.png": {"tags": "1girl, Solo, solo", "caption": "A girl.", "train_resolution": [512, 512]}}
    (tmp_path / "meta.json").write_text(json.dumps(kohya))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "b, b", "n": 1.50}\n{"file_name":"b","text":"c"}\n'
    )
    (tmp_path / "table.csv").write_bytes(b'file_name,text,more\r\na.png,"b, b",7\r\n')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    names = [tmp_path / name for name in ("meta.json", "metadata.jsonl", "table.csv")]
    assert clean(*names).code == 0
    kohya["x/a.png"]["tags"] = "1girl, Solo"
    assert json.loads((tmp_path / "meta.json").read_text()) == kohya
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert (json.loads(lines[0]), lines[1]) == (
        {"file_name": "a.png", "text": "b", "n": 1.5},
        '{"file_name":"b","text":"c"}',
    )
    assert (tmp_path / "table.csv").read_bytes() == b"file_name,text,more\r\na.png,b,7\r\n"
    assert clean("--undo", tmp_path).code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_metadata_of_captions_and_tags_loses_neither(clean: Clean, tmp_path: Path) -> None:
    """Another format gets both in one text, as lora-train reads them; a list of tags is cleaned as one."""
    document = tmp_path / "meta.json"
    rows = {"a": {"caption": "A girl.", "tags": ["red_hair", "solo", "solo"]}, "b": {"caption": "B"}}
    document.write_text(json.dumps(rows))
    for target, name in (
        ("txt", "texts"),
        ("kohya", "k.json"),
        ("metadata", "metadata.jsonl"),
        ("csv", "t.csv"),
    ):
        done = clean(document, "--spaces", "--to", target, "-o", tmp_path / name)
        assert done.code == 0, done.err
        path = tmp_path / name / "a.txt" if target == "txt" else tmp_path / name
        assert "A girl., red hair, solo" in path.read_text(), target
    assert json.loads(document.read_text()) == rows
    done = clean(document, "--spaces", "--jsonl")
    captions = [json.loads(line)["caption"] for line in done.out.splitlines()]
    assert captions == ["A girl., red hair, solo", "B"]
    assert json.loads(document.read_text()) == {
        **rows,
        "a": {"caption": "A girl.", "tags": ["red hair", "solo"]},
    }


def test_a_picture_that_a_document_names_twice_is_refused(clean: Clean, tmp_path: Path) -> None:
    """Written again, the document would have one of both."""
    document = tmp_path / "meta.json"
    text = '{"a": {"tags": "red_hair"}, "a": {"tags": "blue_hair"}}'
    document.write_text(text)
    for words in ([], ["--to", "txt", "-o", tmp_path / "texts"]):
        done = clean(document, "--spaces", *words)
        assert (done.code, document.read_text()) == (1, text)
        assert "meta.json: a is there twice; only one of both would be left" in done.err


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "x,y\n1,2\n"), ("a.csv", ""), ("a.jsonl", '{"file_name": 3}\n'), ("a.jsonl", "[]\n")],
)
def test_documents_that_are_none(clean: Clean, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    done = clean(tmp_path / name, "--text")
    assert done.code == 1
    assert f"{tmp_path / name}: " in done.err
    assert (tmp_path / name).read_text() == content


def test_formats_written(clean: Clean, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"png")
        (tmp_path / f"{name}.txt").write_text(f"{name}, {name}, é")
    for target, name in (("kohya", "k.json"), ("metadata", "metadata.jsonl"), ("csv", "t.csv")):
        assert clean(tmp_path, "--to", target, "-o", tmp_path / name, "--text").code == 0
    assert json.loads((tmp_path / "k.json").read_text()) == {
        str(tmp_path / f"{name}.png"): {"tags": f"{name}, é"} for name in "ab"
    }
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert rows == [{"file_name": f"{name}.png", "text": f"{name}, é"} for name in "ab"]
    assert (tmp_path / "t.csv").read_text() == 'file_name,text\na.png,"a, é"\nb.png,"b, é"\n'
    assert (tmp_path / "a.txt").read_text() == "a, a, é"
    assert clean(tmp_path, "--to", "csv", "-o", tmp_path / "t.csv").code == 1
    clean(tmp_path, "--to", "caption")
    assert (tmp_path / "b.caption").read_text() == "b, é\n"


# -------------------------------------------------------------------------------- in the pictures

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag><rdf:li>cat</rdf:li>'
    "<rdf:li>red_hat</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
)
PARAMETERS = "1girl, (blue hair:1.2),\n<lora:x:0.8> smile\nNegative prompt: lowres, bad\nSteps: 20, Seed: 1"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0], "seed": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["9", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad, worse"}},
    "9": {"class_type": "Text", "inputs": {"string": "cat, hat"}},
    "loop": {"inputs": {"positive": ["loop", 0]}},
}


def test_captions_in_pictures(clean: Clean, tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))

    def save(name: str, **notes: str) -> None:
        info = PngInfo()
        for key, text in notes.items():
            info.add_itxt(key, text)
        picture.save(tmp_path / name, pnginfo=info)

    save("a1111.png", parameters=PARAMETERS)
    save("comfy.png", prompt=json.dumps(GRAPH))
    save("loop.png", prompt=json.dumps({"loop": GRAPH["loop"]}))
    save("xmp.png")
    (tmp_path / "xmp.png.xmp").write_text(XMP)
    picture.save(tmp_path / "inside.jpg", xmp=XMP.encode())
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    picture.save(tmp_path / "comment.jpg", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"no")
    done = clean(tmp_path, "--from", "picture", "--strip-weights", "--text")
    assert done.code == 1
    assert "broken.png: not a picture" in done.err
    assert "1 pictures have no caption in them" in done.err
    captions = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    assert captions == {
        "a1111": "1girl, blue hair, smile\n",
        "comment": "1girl, blue hair, smile\n",
        "comfy": "cat, hat\n",
        "xmp": "cat, red_hat\n",
        "inside": "cat, red_hat\n",
    }


def test_xmp_with_entities_is_not_expanded(clean: Clean, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.xmp").write_text(f'<!DOCTYPE x [<!ENTITY e "boom">]>{XMP.replace("cat", "&e;")}')
    assert "1 pictures have no caption in them" in clean(tmp_path, "--from", "picture", "--text").err
