"""Pictures and folders on disk."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.images import find_images, image_size, repeat_folders  # noqa: E402


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
