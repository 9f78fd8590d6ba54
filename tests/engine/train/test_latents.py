"""Pictures as they are trained, and the cache of their latents."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.pictures.buckets import BucketRule, place  # noqa: E402
from lorapipe_engine.train.data.latents import LatentCache, LatentJob, encode_all, read_pixels  # noqa: E402

RULE = BucketRule(resolution=(64, 64), enabled=False)


def job(path: Path, size: tuple[int, int], *, mirrored: bool = False) -> LatentJob:
    return LatentJob(path, place(size, RULE), mirrored)


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    image.save(path)
    return path


def test_pixels_are_chw_in_minus_one_to_one(tmp_path: Path) -> None:
    pixels = read_pixels(job(picture(tmp_path / "a.png"), (64, 64)))
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert pixels[:, 0, 63].tolist() == [-1.0, -1.0, 1.0]


def test_mirrored(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    plain, mirrored = (read_pixels(job(path, (64, 64), mirrored=m)) for m in (False, True))
    assert torch.equal(plain.flip(2), mirrored)


def test_covers_and_crops_the_centre(tmp_path: Path) -> None:
    pixels = read_pixels(job(picture(tmp_path / "a.png", (256, 128)), (256, 128)))
    assert pixels.shape == (3, 64, 64)
    assert pixels[0, :, 30].mean() > 0.99
    assert pixels[2, :, 33].mean() > 0.99


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_pixels(job(tmp_path / "a.png", (64, 64))).min() == 1.0


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "a.png"))
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "b.jpg", exif=exif, quality=100, subsampling=0)
    pixels = read_pixels(job(tmp_path / "b.jpg", (64, 64)))
    assert pixels[2, 5, 5] > 0.9
    assert pixels[0, 5, 60] > 0.9


def test_a_cut_picture_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"a\.png: not a whole picture"):
        read_pixels(job(path, (64, 64)))


class CountingEncoder:
    """Stands for a model's VAE: 4 channels of means and deviations, a quarter of the size."""

    def __init__(self) -> None:
        self.pictures = 0

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.pictures += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 4).repeat(1, 2, 1, 1)[:, :4]
        return mean, torch.full_like(mean, 0.1)


def test_cache_is_keyed_by_content(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    jobs = [job(path, (64, 64)), job(path, (64, 64), mirrored=True)]
    encoder = CountingEncoder()

    def encode(vae: str) -> list[torch.Tensor]:
        return encode_all(jobs, encoder, LatentCache(tmp_path / "cache", vae), batch=2)  # type: ignore[arg-type]

    first = encode("vae-1")
    assert encoder.pictures == 2
    again = encode("vae-1")
    assert encoder.pictures == 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (8, 16, 16)
    encode("vae-2")
    assert encoder.pictures == 4
    picture(path, (64, 64))
    Image.new("RGB", (64, 64), "green").save(path)
    assert not torch.equal(encode("vae-1")[0], first[0])
    for entry in (tmp_path / "cache").rglob("*.safetensors"):
        entry.write_bytes(b"broken")
    before = encoder.pictures
    encode("vae-1")
    assert encoder.pictures == before + 2
