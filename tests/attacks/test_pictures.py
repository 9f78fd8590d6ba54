"""Pictures that are made to harm: programs in them, pixels, notes and frames without end, names that are numbers."""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_dataset.check.pictures.look import look_at
from lorapipe_dataset.sidecars.embedded import read_embedded
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.images import image_size
from lorapipe_engine.pictures.opening import open_picture
from lorapipe_engine.settings import DataSettings
from support.limited import GIB, run_limited

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"
linux = pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory is the Linux kernel's")

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
(planted) run
%%EOF
"""


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def header(width: int, height: int, kind: int = 2) -> tuple[bytes, bytes]:
    """The first chunk of a PNG of 8 bits: ``kind`` 2 is RGB, 3 a palette."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)


def small_png(*notes: tuple[bytes, bytes]) -> bytes:
    """A PNG of 64 x 64 with notes in front of its pixels."""
    return png(header(64, 64), *notes, (b"IDAT", zlib.compress(b"\0" * 64 * (64 * 3 + 1))), (b"IEND", b""))


def flat_png(side: int) -> bytes:
    """A PNG of one colour, with a palette of which one colour is half transparent."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (side + 1)) for _ in range(side)) + packer.flush()
    return png(
        header(side, side, 3),
        (b"PLTE", b"\x40\x50\x60" * 2),
        (b"tRNS", b"\x80\xff"),
        (b"IDAT", rows),
        (b"IEND", b""),
    )


def dataset(folder: Path, files: dict[str, bytes], name: str = "2_cat") -> Path:
    """A folder of folders with files in it, and one plain picture."""
    place = folder / "set" / name
    place.mkdir(parents=True)
    (place / "plain.png").write_bytes(small_png())
    for file, data in files.items():
        (place / file).write_bytes(data)
    return folder / "set"


def tag_words(root: Path) -> Sequence[object]:
    return [root, "-r", "--model", MODEL, "--device", "cpu", "--no-cache", "--workers", 2]


# -------------------------------------------------------------------------------- formats


@pytest.mark.slow
@linux
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_postscript_never_runs(name: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("gs", "gswin64c"):
        (programs / program).write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
        (programs / program).chmod(0o755)
    root = dataset(tmp_path, {name: EPS})
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    check = run_limited("lora-check", [root], env=env)
    assert check.code == 1
    assert f"{name}" in check.out.decode()
    assert run_limited("lora-tag", tag_words(root), env=env).code == 1
    clean = run_limited("lora-clean", [root / "2_cat", "--from", "picture", "--dry-run"], env=env)
    assert clean.code in (1, 2)
    assert not (tmp_path / "ran").exists()


def test_postscript_is_no_picture_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from lorapipe_engine.pictures.buckets import Placement
    from lorapipe_engine.train.data.latents import LatentJob, open_upright, read_pixels

    calls: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *words, **more: calls.append(words))
    monkeypatch.setattr("subprocess.check_call", lambda *words, **more: calls.append(words))
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    place = Placement((64, 64), (64, 64), (0, 0))
    with pytest.raises(InputError, match="not a whole picture"):
        read_pixels(LatentJob(path, place))
    with pytest.raises(InputError, match="not a whole picture"), open_upright(path):  # as masks are opened
        pass
    with pytest.raises(InputError, match="not a picture"):
        image_size(path)
    assert calls == []


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "DDS", "TGA"])
def test_every_format_of_the_list_opens(form: str, tmp_path: Path) -> None:
    if form == "AVIF":
        from PIL import features

        if not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 24), (9, 99, 199)).save(path, form)
    with open_picture(path) as picture:
        assert picture.size == (40, 24)
        assert picture.format == form
    with open_picture(path.read_bytes()) as picture:
        assert picture.size == (40, 24)


# -------------------------------------------------------------------------------- pixels


@pytest.mark.slow
@linux
def test_small_files_of_many_pixels_share_a_budget(tmp_path: Path) -> None:
    one, other = flat_png(7000), flat_png(7010)  # 49 million pixels each, which took 830 MB each
    assert len(one) < 100_000
    root = dataset(tmp_path, {"a.png": one, "b.png": other})
    ended = run_limited("lora-check", [root], memory=GIB)
    assert ended.code == 1
    assert "not enough memory" not in ended.out.decode()
    assert ended.out.decode().count("Transparent parts") == 1


def check_refused(root: Path, words: str) -> None:
    """lora-check reports the picture, and lora-tag passes it by, in these words."""
    ended = run_limited("lora-check", [root], memory=GIB)
    assert ended.code == 1
    assert words in ended.out.decode()
    ended = run_limited("lora-tag", tag_words(root))
    assert ended.code == 1
    assert any(words in line for line in ended.lines)


@pytest.mark.slow
@linux
def test_more_pixels_than_a_picture_has_are_refused_by_the_header(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a.png": png(header(20_000, 20_000), (b"IDAT", b""), (b"IEND", b""))})
    words = "more than 179 million"
    check_refused(root, words)
    with pytest.raises(InputError, match=words):
        image_size(root / "2_cat" / "a.png")


# -------------------------------------------------------------------------------- notes


@pytest.mark.slow
@linux
def test_a_note_of_400_megabytes_is_not_read(tmp_path: Path) -> None:
    root = dataset(tmp_path, {})
    path = root / "2_cat" / "a.png"
    size = 400 << 20
    start = small_png()[:-12]
    with path.open("wb") as file:
        file.write(start + struct.pack(">I", size) + b"eXIf")
        file.seek(size, os.SEEK_CUR)
        crc = zlib.crc32(b"eXIf")
        for _ in range(400):
            crc = zlib.crc32(bytes(1 << 20), crc)
        file.write(struct.pack(">I", crc) + png((b"IEND", b""))[8:])
    words = "EXIF, texts and profiles of 400 MB, more than 16 MB"
    check_refused(root, words)
    ended = run_limited("lora-clean", [root / "2_cat", "--from", "picture", "--dry-run"], memory=GIB)
    assert ended.code in (1, 2)
    assert any(words in line for line in ended.lines)
    with pytest.raises(InputError, match=words):
        image_size(path)


def directory(entries: int, size: int, order: str = "<") -> bytes:
    """EXIF whose entries all name the same ``size`` bytes."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    rows = b"".join(
        struct.pack(f"{order}HHII", 0xC000 + tag, 7, size, 8 + 2 + entries * 12) for tag in range(entries)
    )
    return mark + struct.pack(f"{order}IH", 8, entries) + rows + bytes(size)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_that_names_one_place_again_and_again(order: str, tmp_path: Path) -> None:
    block = directory(4000, 900_000, order)  # 3.6 GB in one of 948 kB
    path = tmp_path / "a.png"
    path.write_bytes(small_png((b"eXIf", block)))
    with pytest.raises(InputError, match="notes; take them out"):
        image_size(path)
    pieces = [block[at : at + 65_000] for at in range(0, len(block), 65_000)]
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.jpg")
    plain = (tmp_path / "plain.jpg").read_bytes()
    for padding in (b"", b"\xff", b"\xff\0", b"\xff\xd0", b"junk"):
        path.write_bytes(plain[:20] + padding + segments + plain[20:])
        with pytest.raises(PictureBound, match="notes; take them out"), open_picture(path):
            pass


def test_a_tiff_that_names_one_place_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(directory(4000, 900_000))
    with pytest.raises(PictureBound, match="notes; take them out"), open_picture(path):
        pass
    path.write_bytes(directory(5000, 8))
    with pytest.raises(PictureBound, match="more than 4,096 notes"), open_picture(path):
        pass


def test_usual_notes_pass(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "camera " * 2000
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        Image.new("RGB", (60, 40)).save(tmp_path / name, exif=exif)
        assert image_size(tmp_path / name) == (40, 60), name


def test_links_of_a_graph_that_lead_in_circles(tmp_path: Path) -> None:
    names = ("text", "text_g", "prompt", "string", "positive", "conditioning", "conditioning_1")
    graph = {"1": {"inputs": {name: ["1", 0] for name in names}}}
    path = tmp_path / "a.png"
    path.write_bytes(small_png((b"tEXt", b"prompt\0" + json.dumps(graph).encode())))
    assert read_embedded(path) is None
    graph["2"] = {"inputs": {"text": "a cat"}}  # type: ignore[dict-item]
    graph["1"]["inputs"]["conditioning_1"] = ["2", 0]
    path.write_bytes(small_png((b"tEXt", b"prompt\0" + json.dumps(graph).encode())))
    assert read_embedded(path) == "a cat"


@pytest.mark.slow
@linux
def test_keywords_inside_keywords(tmp_path: Path) -> None:
    root = dataset(tmp_path, {})
    depth = 60_000
    start = b'<x xmlns:dc="http://purl.org/dc/elements/1.1/">'
    xmp = start + b"<dc:subject>" * depth + b"</dc:subject>" * depth + b"</x>"
    (root / "2_cat" / "plain.png.xmp").write_bytes(xmp)
    ended = run_limited(
        "lora-clean", [root / "2_cat", "--from", "picture", "--dry-run"], memory=2 * GIB, seconds=10
    )
    assert ended.lines


# -------------------------------------------------------------------------------- frames


def gif(frames: int) -> bytes:
    """A GIF of many frames of one pixel."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return b"GIF89a\x40\0\x40\0\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


@pytest.mark.slow
@linux
def test_frames_are_not_counted_one_by_one(tmp_path: Path) -> None:
    root = dataset(tmp_path, {"a.png": gif(2_000_000)})
    ended = run_limited("lora-check", [root], memory=GIB, seconds=8)
    assert ended.code in (0, 1)
    assert "several frames" in ended.out.decode()
    assert run_limited("lora-tag", tag_words(root), seconds=20).code == 0


def test_a_webp_of_too_many_frames(tmp_path: Path) -> None:
    frame = b"ANMF" + struct.pack("<I", 16) + bytes(16)
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\x3f\0\0" * 2
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * 20_000
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(PictureBound, match="more than 10,000 frames"), open_picture(path):
        pass


def test_a_gif_of_comments(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    blocks = (b"\xff" + b"x" * 255) * 8000
    data = gif(1)
    for place in (19, -1):  # in front of the first frame, and behind it
        path.write_bytes(data[:place] + b"!\xfe" + blocks + b"\0" + data[place:])
        assert "more than 1 MB" in (look_at(path).problem or "")


def test_a_moving_picture_is_read_at_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    for name, wanted in (("a.gif", None), ("a.png", 2), ("a.webp", 2), ("a.tif", None)):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert look_at(tmp_path / name).frames == wanted, name
    first.save(tmp_path / "one.gif")
    assert look_at(tmp_path / "one.gif").frames == 1


# -------------------------------------------------------------------------------- repeats


@pytest.mark.slow
@linux
@pytest.mark.parametrize("number", ["98765432", "10001", "9" * 200])
def test_folder_names_that_are_numbers_of_pictures(number: str, tmp_path: Path) -> None:
    """As lora-train has it, of which test_terminal has a run."""
    root = dataset(tmp_path, {}, f"{number}_p0")
    with pytest.raises(InputError, match=f"{number}_p0: its name asks for {int(number):,} repeats"):
        scan(DataSettings(train_data_dir=root, resolution=(64, 64)))
    ended = run_limited("lora-check", [root], memory=GIB)
    assert ended.code == 2
    lines = [line for line in ended.lines if "error:" in line]
    assert len(lines) == 1
    assert f"{number}_p0: its name asks for {int(number):,} repeats" in lines[0]
    assert f"rename it to '1_{number}_p0'" in lines[0]


@pytest.mark.slow
def test_a_number_of_a_picture_is_no_number_of_repeats(tmp_path: Path) -> None:
    root = dataset(tmp_path, {}, "98765432_p0")
    ended = run_limited("lora-repeats", [root, "-o", tmp_path / "new"], memory=0)
    assert ended.code == 2, ended.err
    assert "98,765,432 repeats of each picture" in ended.lines[-1]
    assert "rename it to '1_98765432_p0'" in ended.lines[-1]
    assert not (tmp_path / "new").exists()
    (root / "98765432_p0").rename(root / "1_98765432_p0")
    ended = run_limited("lora-repeats", [root, "-o", tmp_path / "new"], memory=0)
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "new").iterdir()
    assert folder.name.endswith("_98765432_p0")
    ended = run_limited("lora-repeats", [root, "--repeats", 10_001], memory=0)
    assert ended.code == 2
    assert "10,001 repeats, more than the 10,000" in ended.lines[-1]


@pytest.mark.slow
@linux
def test_the_most_repeats_cost_bytes_for_each_turn() -> None:
    import tracemalloc

    from lorapipe_engine.pictures.batches import epoch_batches

    tracemalloc.start()
    batches = epoch_batches([(0, (64, 64))] * 8, [10_000] * 8, [4], 1, 0)
    assert len(batches) == 20_000
    assert len(batches[7].pictures) == 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 80_000  # bytes; rows were 120 each
