"""What a step is given: mirrored, cut and coloured pictures, their masks, SDXL's numbers, weights, captions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from lorapipe_engine.pictures.batches import Batch  # noqa: E402
from lorapipe_engine.pictures.buckets import BucketRule, place  # noqa: E402
from lorapipe_engine.pictures.captions import When  # noqa: E402
from lorapipe_engine.settings import DataSettings  # noqa: E402
from lorapipe_engine.train.data.augment import GAMMA, ColourShift, draw_colour, draw_crop  # noqa: E402
from lorapipe_engine.train.data.examples import TrainingData, latent_jobs, scan  # noqa: E402
from lorapipe_engine.train.data.latents import LatentJob, read_pixels  # noqa: E402
from lorapipe_engine.train.data.masks import latent_mask  # noqa: E402
from lorapipe_engine.train.families.text import Tokens  # noqa: E402


@dataclass
class PlainFamily:
    """Stands for a base whose latents are the picture itself, a cell for 8 pixels: what is seen can be compared."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def plain_geometry(self, count: int, width: int, height: int) -> torch.Tensor:
        return torch.zeros(count, 6)

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        return height // 8, width // 8

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return mean, torch.zeros_like(mean)

    @property
    def text(self) -> PlainFamily:
        return self

    def tokenize(self, captions: Any, *, weighted: bool = False) -> Tokens:
        assert not weighted
        return Tokens((torch.tensor([[len(caption)] for caption in captions]),))


def ramp(path: Path, size: tuple[int, int], alpha: int | None = None) -> Path:
    """Red grows from left to right, green from top to bottom: a cell's colour tells where it was cut."""
    width, height = size
    rows = torch.zeros(height, width, 3)
    rows[..., 0] = torch.linspace(0, 255, width)
    rows[..., 1] = torch.linspace(0, 255, height)[:, None]
    picture = Image.fromarray(rows.to(torch.uint8).numpy(), "RGB")
    if alpha is not None:
        # The left half can be seen through.
        mask = Image.new("L", size, 255)
        mask.paste(alpha, (0, 0, width // 2, height))
        picture.putalpha(mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def loaded(data: DataSettings, **more: Any) -> TrainingData:
    dataset = scan(data)
    family: Any = PlainFamily()
    latents = {
        key: torch.cat(family.encode_images(read_pixels(job)[None]), dim=1)[0]
        for key, job in latent_jobs(dataset).items()
    }
    return TrainingData(dataset, latents, family, seed=3, **more)


def step(data: TrainingData, epoch: int, turn: int = 0) -> Any:
    return data.micro_batch(Batch((0, (64, 64)), (0,), (turn,)), When(epoch), 1.0)


def options(root: Path, **more: Any) -> DataSettings:
    return DataSettings(train_data_dir=root, resolution=(64, 64), enable_bucket=False, **more)


def test_random_crops_are_where_their_numbers_say(tmp_path: Path) -> None:
    ramp(tmp_path / "1_x/a.png", (256, 128))
    data = loaded(options(tmp_path, random_crop=True, flip_aug=True))
    assert not data.latents
    seen = set()
    for epoch in range(12):
        batch = step(data, epoch)
        height, width, top, left, *target = batch.geometry[0].tolist()
        assert (height, width, top, target) == (128, 256, 0, [64, 64])
        red = (batch.latents[0, 0].mean(0) + 1) / 2  # (8,), from left to right
        mirrored = bool(red[0] > red[-1])
        first = red.flip(0)[0] if mirrored else red[0]
        cut = 64 - left if mirrored else left  # in the picture as it lies on the disk
        assert float(first) * 128 == pytest.approx(cut + 4, abs=1.5)
        seen.add((left, mirrored))
        assert torch.equal(step(data, epoch).latents, batch.latents)
    assert len(seen) > 6
    assert {mirrored for _, mirrored in seen} == {True, False}


def test_mirrored_pictures_tell_where_they_were_cut(tmp_path: Path) -> None:
    ramp(tmp_path / "1_x/a.png", (131, 64))  # 67 pixels too many: 33 left, 34 right
    data = loaded(options(tmp_path, flip_aug=True))
    seen = {}
    for epoch in range(12):
        batch = step(data, epoch)
        red = batch.latents[0, 0].mean(0)
        seen[bool(red[0] > red[-1])] = batch.geometry[0, 3].item()
    assert seen == {False: 33, True: 34}


def test_colours_shift_a_third_of_the_time() -> None:
    draw = random.Random(0)
    found = [draw_colour(draw) for _ in range(3000)]
    share = sum(shift is not None for shift in found) / len(found)
    assert share == pytest.approx(0.33, abs=0.03)
    gammas = [shift.gamma for shift in found if shift and not shift.hue]
    assert min(gammas) >= 1 - GAMMA
    assert max(gammas) <= 1 + GAMMA
    turned = sum(bool(shift and shift.hue) for shift in found)
    assert turned / len([shift for shift in found if shift]) == pytest.approx(0.5, abs=0.06)


def test_what_a_shift_of_colours_does() -> None:
    red, grey = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (128, 128, 128))
    assert ColourShift(hue=1 / 3).apply(red).getpixel((0, 0))[1] == 255
    assert ColourShift(hue=0.04).apply(grey).getpixel((0, 0)) == (128, 128, 128)
    # Brightness counts from 0 to 1, so that a middle grey moves by a few levels only.
    assert ColourShift(gamma=1.05).apply(grey).getpixel((0, 0)) == (124, 124, 124)
    assert ColourShift(gamma=0.95).apply(grey).getpixel((0, 0)) == (132, 132, 132)


def test_colours_are_drawn_for_each_turn(tmp_path: Path) -> None:
    (tmp_path / "4_x").mkdir()
    Image.new("RGB", (64, 64), (200, 60, 90)).save(tmp_path / "4_x/a.png")
    data = loaded(options(tmp_path, color_aug=True))
    seen = {
        tuple(step(data, epoch, turn).latents[0, :3, 0, 0].tolist())
        for epoch in range(6)
        for turn in range(4)
    }
    assert len(seen) > 4


def test_crops_reach_everywhere() -> None:
    found = place((200, 100), BucketRule(resolution=(64, 64), enabled=False))
    draw = random.Random(1)
    crops = {draw_crop(found, draw).crop for _ in range(2000)}
    assert crops == {(left, 0) for left in range(65)}


# ------------------------------------------------------------------------------------------------- masks


def test_a_mask_is_cut_as_its_picture(tmp_path: Path) -> None:
    """Of a wide picture the sides are cut; a mask squashed to the bucket would keep them."""
    ramp(tmp_path / "set/1_x/a.png", (128, 64))
    (tmp_path / "masks").mkdir()
    mask = Image.new("RGB", (256, 128), "black")
    mask.paste("white", (64, 0, 128, 128))  # the second quarter: the left half of what is trained
    mask.save(tmp_path / "masks/a.png")
    data = options(
        tmp_path / "set", masked_loss=True, conditioning_data_dir=tmp_path / "masks", flip_aug=True
    )
    found = loaded(data)
    for epoch in range(6):
        batch = step(found, epoch)
        red = batch.latents[0, 0].mean(0)
        half = [0.0] * 4 + [1.0] * 4 if red[0] > red[-1] else [1.0] * 4 + [0.0] * 4
        assert batch.mask.shape == (1, 1, 8, 8)
        # At the edge the filter mixes a little.
        assert batch.mask[0, 0].tolist() == pytest.approx([pytest.approx(half, abs=0.08)] * 8)


def test_a_cell_counts_as_much_as_its_pixels_on_the_average(tmp_path: Path) -> None:
    ramp(tmp_path / "1_x/a.png", (64, 64))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 2, 8))
    mask.save(tmp_path / "mask.png")
    (picture,) = scan(options(tmp_path)).pictures
    from dataclasses import replace

    job = LatentJob(picture.path, picture.placement)
    found = latent_mask(replace(picture, mask=tmp_path / "mask.png"), job, (8, 8), alpha=False)
    assert found[0, 0, 0] == pytest.approx(0.25)
    assert found.sum() == pytest.approx(0.25)


def test_transparency_as_mask(tmp_path: Path) -> None:
    ramp(tmp_path / "1_x/a.png", (64, 64), alpha=51)
    ramp(tmp_path / "1_x/b.png", (64, 64))
    data = loaded(options(tmp_path, alpha_mask=True))
    batch = data.micro_batch(Batch((0, (64, 64)), (0, 1), (0, 0)), When(), 1.0)
    assert batch.mask[0, 0].tolist() == pytest.approx([pytest.approx([0.2] * 4 + [1.0] * 4)] * 8)
    assert bool((batch.mask[1] == 1).all())
    assert step(loaded(options(tmp_path)), 0).mask is None


# ------------------------------------------------------------------------------------------------- weights


def test_regularisation_pictures_weigh_less(tmp_path: Path) -> None:
    ramp(tmp_path / "set/1_x/a.png", (64, 64))
    ramp(tmp_path / "reg/1_y/b.png", (64, 64))
    data = loaded(options(tmp_path / "set", reg_data_dir=tmp_path / "reg"), reg_weight=0.25)
    batch = data.micro_batch(Batch((0, (64, 64)), (0, 1), (0, 0)), When(), 0.5)
    assert batch.weights.tolist() == [0.5, 0.125]


def test_captions_know_epoch_and_step(tmp_path: Path) -> None:
    ramp(tmp_path / "1_x/a.png", (64, 64))
    (tmp_path / "1_x/a.txt").write_text("aa, bb, cc, dd")
    data = loaded(options(tmp_path, token_warmup_step=3.0, caption_dropout_every_n_epochs=2))
    batch = Batch((0, (64, 64)), (0,), (0,))
    lengths = [data.micro_batch(batch, When(0, number, 9), 1.0).tokens.ids[0].item() for number in range(4)]
    assert lengths == [2, 6, 10, 14]
    assert data.micro_batch(batch, When(1, 5, 9), 1.0).tokens.ids[0].item() == 0
