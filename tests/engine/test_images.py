"""Pictures and folders on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")

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
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.png: empty file"):
        image_size(tmp_path / "b.png")
