"""Pictures and folders on disk."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.pictures.image_headers import header_size  # noqa: E402
from lorapipe_engine.pictures.images import image_size  # noqa: E402
from lorapipe_engine.pictures.layout import find_images, repeat_folders  # noqa: E402


def picture(path: Path, size: tuple[int, int] = (8, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_finds_pictures_by_suffix(tmp_path: Path) -> None:
    for name in ("b.PNG", "a 1.jpg", "deep/c.webp", ".hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert [path.name for path in find_images(tmp_path)] == ["a 1.jpg", "b.PNG"]
    assert [path.name for path in find_images(tmp_path, recursive=True)] == ["a 1.jpg", "b.PNG", "c.webp"]


def test_repeat_folders(tmp_path: Path) -> None:
    for name in ("10_maid", "2_some one", "0_none", "notes", "_5"):
        (tmp_path / name).mkdir()
    found = [(row.repeats, row.concept) for row in repeat_folders(tmp_path)]
    assert found == [(10, "maid"), (2, "some one")]


def test_the_folder_itself_is_taken(tmp_path: Path) -> None:
    picture(tmp_path / "3_cat/a.png")
    assert [row.repeats for row in repeat_folders(tmp_path / "3_cat")] == [3]


def test_a_level_further_down_is_named(tmp_path: Path) -> None:
    for name in ("img/5_mira", "log", "reg/1_girl"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"name .*img in its place, which holds '5_mira'"):
        repeat_folders(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it is empty"),
        (["cat/a.png"], "rename 'cat' to '10_cat'"),
        (["a.png"], "put its pictures into a folder such as '10_"),
    ],
)
def test_no_level_says_what_to_rename(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        picture(tmp_path / name)
    with pytest.raises(InputError, match=f"no folder named N_concept in it; {message}"):
        repeat_folders(tmp_path)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        repeat_folders(tmp_path / "none")
    with pytest.raises(InputError, match="is a file, not a folder"):
        repeat_folders(picture(tmp_path / "a.png"))


def test_size_is_the_size_as_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (20, 30)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("behind", [False, True])
def test_a_png_may_tell_its_rotation_before_or_behind_the_pixels(tmp_path: Path, behind: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = picture(tmp_path / "plain.png", (30, 20)).read_bytes()
    note = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    path = tmp_path / "turned.png"
    path.write_bytes(data[:place] + note + data[place:])
    assert image_size(path) == (20, 30) == ImageOps.exif_transpose(Image.open(path)).size
    assert image_size(tmp_path / "plain.png") == (30, 20)


def test_only_the_header_is_read(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png", (300, 200)).read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    assert image_size(tmp_path / "half.png") == (300, 200)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.png", b"", "empty file"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "not a picture that can be read"),
        ("a.jpg", b"text", "not a picture that can be read"),
        ("a.jxl", b"\xff\x0a", "this Pillow reads no .jxl files"),
        ("none.png", None, "No such file or directory"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, name: str, data: bytes | None, reason: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{re.escape(name)}: .*{re.escape(reason)}"):
        image_size(tmp_path / name)


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"]))
def test_damaged_files_give_a_size_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(start + data)
    try:
        width, height = image_size(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert min(width, height) > 0


def pillow_size(path: Path) -> tuple[int, int] | None:
    """The size as shown, by Pillow; None where it cannot open the file."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            width, height = picture.size
            return (height, width) if picture.getexif().get(0x0112) in (5, 6, 7, 8) else (width, height)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError):
        return None


def turned_exif(orientation: int) -> object:
    exif = Image.Exif()
    exif[0x010F] = "a camera with a name that is not short"
    exif[0x0112] = orientation
    return exif


KINDS = {
    "plain.png": ("RGB", {}),
    "palette.png": ("P", {}),
    "alpha.png": ("RGBA", {}),
    "turned.png": ("RGB", {"exif": turned_exif(6)}),
    "plain.jpg": ("RGB", {}),
    "grey.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    **{f"turned{number}.jpg": ("RGB", {"exif": turned_exif(number)}) for number in range(1, 9)},
    "profile.jpg": ("RGB", {"icc_profile": bytes(100_000)}),
    "commented.jpg": ("RGB", {"comment": b"x" * 9000, "exif": turned_exif(5)}),
    "xmp.jpg": ("RGB", {"xmp": b'<rdf tiff:Orientation="6"/>'}),
    "lossy.webp": ("RGB", {"quality": 60}),
    "lossless.webp": ("RGB", {"lossless": True}),
    "alpha.webp": ("RGBA", {"quality": 60}),
    "turned.webp": ("RGB", {"exif": turned_exif(8)}),
    "plain.bmp": ("RGB", {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_sizes_are_those_that_pillow_shows(name: str, tmp_path: Path) -> None:
    mode, more = KINDS[name]
    path = tmp_path / name
    Image.effect_noise((130, 75), 90).convert(mode).save(path, **more)
    assert image_size(path) == pillow_size(path)


@pytest.mark.parametrize("name", ["plain.png", "turned6.jpg", "lossy.webp", "lossless.webp", "alpha.webp"])
def test_usual_pictures_need_no_full_reader(name: str, tmp_path: Path) -> None:
    mode, more = KINDS[name]
    path = tmp_path / name
    Image.effect_noise((300, 200), 90).convert(mode).save(path, **more)
    assert header_size(path) == pillow_size(path)


def test_text_in_a_png_is_passed_over(tmp_path: Path) -> None:
    data = picture(tmp_path / "plain.png", (30, 20)).read_bytes()
    place = data.index(b"IDAT") - 4
    for name, text, quick in (
        ("parameters", b"1girl, Steps: 28", (30, 20)),
        ("XML:com.adobe.xmp", b'tiff:Orientation="6"', None),
    ):
        note = png_chunk(b"tEXt", name.encode() + b"\0" + text)
        (tmp_path / "noted.png").write_bytes(data[:place] + note + data[place:])
        assert header_size(tmp_path / "noted.png") == quick
        assert image_size(tmp_path / "noted.png") == pillow_size(tmp_path / "noted.png")


@pytest.mark.parametrize("note", [b"", b"tEXt", b"eXIf"])
@pytest.mark.parametrize(
    "lengths", [[40], [100, 100, 100], [100] * 50 + [7], [100] * 50 + [0], [100] * 9 + [80] * 9 + [150]]
)
def test_notes_behind_many_chunks_of_pixels_are_seen(tmp_path: Path, lengths: list[int], note: bytes) -> None:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 8, 2, 0, 0, 0))
    stream = zlib.compressobj(0)
    raw = stream.compress(bytes(20 * (1 + 30 * 3) + 6000)) + stream.flush()
    pieces = []
    for length in [*lengths, len(raw)]:
        pieces.append(png_chunk(b"IDAT", raw[:length]))
        raw = raw[length:]
    exif = Image.Exif()
    exif[0x0112] = 6
    text = {b"tEXt": b"parameters\0" + b"x" * 3000, b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0")}
    late = png_chunk(note, text[note]) if note else b""
    path = tmp_path / "many.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(pieces) + late + png_chunk(b"IEND", b""))
    assert image_size(path) == pillow_size(path) == ((20, 30) if note == b"eXIf" else (30, 20))
    assert header_size(path) == (None if note == b"eXIf" else (30, 20))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("samples")
    found = {}
    for name, (mode, more) in KINDS.items():
        Image.effect_noise((40, 25), 90).convert(mode).save(root / name, **more)
        found[name] = (root / name).read_bytes()
    return found


@given(st.data())
def test_damaged_headers_are_read_as_pillow_does_or_left_to_it(
    samples: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(samples)))
    whole = bytearray(samples[name])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, min(len(whole), 400) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    found, right = header_size(path), pillow_size(path)
    assert found is None or right is None or found == right
