"""The demo's figures: what is drawn for them, and how far they can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("PIL")
from PIL import Image

from lorapipe_demo import recipe
from lorapipe_demo.figures import MERGED, Share, draw_grid_page, draw_series, plan_series, shares
from lorapipe_demo.made import Made

FILES = [Path(f"epoch{number}.safetensors") for number in (1, 2, 3)]
MADE = Made(Path("small"), Path("merged"))


@pytest.mark.parametrize(
    ("seen", "count", "low", "high"),
    [
        # scipy.stats.binomtest(seen, count).proportion_ci(), which is Clopper and Pearson's
        (39, 40, 0.868414, 0.999367),
        (40, 40, 0.911903, 1.0),
        (0, 40, 0.0, 0.088097),
        (20, 40, 0.338018, 0.661982),
        (1, 3, 0.008404, 0.905701),
    ],
)
def test_intervals(seen: int, count: int, low: float, high: float) -> None:
    assert Share(seen, count).interval == pytest.approx((low, high), abs=1e-6)


def test_how_a_share_is_said() -> None:
    assert str(Share(39, 40)) == "97.5 % (interval 87 to 100)"
    assert str(Share(0, 40)) == "0.0 % (interval 0 to 9)"


def test_no_picture_is_drawn_twice() -> None:
    series = plan_series(FILES, MADE)
    pictures = [
        (row.base, row.network, prompt, seed)
        for row in series.values()
        for prompt, seed in zip(row.prompts, row.seeds, strict=True)
    ]
    assert len(set(pictures)) == len(pictures)
    columns = len(FILES) + 1
    # Five figures, the check of the merged base, and of the grid what no figure has.
    assert len(pictures) == 5 * recipe.EXAM_SIZE + MERGED + 3 + 7 * (columns - 2)


def test_a_grid_of_every_second_epoch_ends_with_the_last() -> None:
    files = [Path(f"epoch{number}.safetensors") for number in range(1, 11)]
    series = plan_series(files, MADE, grid_every=2)
    assert [name for name in series if name.startswith("epoch")] == [
        "epoch 2",
        "epoch 4",
        "epoch 6",
        "epoch 8",
    ]
    assert series["epoch 4"].network == files[3]
    assert series["calls"].network == files[9]


def test_the_extracted_network_is_drawn_with_on_request() -> None:
    series = plan_series(FILES, Made(Path("small"), Path("merged"), Path("extracted")))
    assert "extracted" not in plan_series(FILES, MADE)
    assert series["extracted"].network == Path("extracted")
    assert series["extracted"].prompts == series["small"].prompts
    assert recipe.FULL.draws_extracted
    assert not recipe.SHORT.draws_extracted


def test_the_grid_shows_the_pictures_that_were_judged() -> None:
    """Every picture in a colour of its own, found again on the page where it belongs."""
    series = plan_series(FILES, MADE)
    colours: dict[tuple[int, int, int], tuple[str, int]] = {}
    drawn: dict[str, list[Image.Image]] = {}
    for name, row in series.items():
        drawn[name] = []
        for place in range(len(row.prompts)):
            number = len(colours)
            colour = (number, 255 - number, 7)
            colours[colour] = (name, place)
            drawn[name].append(Image.new("RGB", (64, 64), colour))
    page = draw_grid_page(series, drawn, {"a figure": Share(1, 2)}, len(FILES))
    found = [
        [colours.get(page.getpixel((190 + 118 * column + 56, 30 + 118 * row + 56))) for column in range(4)]  # type: ignore[call-overload]
        for row in range(7)
    ]
    assert found[0] == [("base", 0), ("epoch 1", 0), ("epoch 2", 0), ("calls", 0)]
    assert found[3] == [("base", 3), ("epoch 1", 3), ("epoch 2", 3), ("calls", 3)]
    assert found[4] == [("grid base", 0), ("epoch 1", 4), ("epoch 2", 4), ("silent", 0)]
    assert found[6] == [("grid base", 2), ("epoch 1", 6), ("epoch 2", 6), ("others", 1)]
    for name in ("grid base", "epoch 1"):
        first = 4 if name == "grid base" else 0
        for place, prompt in enumerate(series[name].prompts):
            column = found[first + place][3]
            assert column is not None
            assert series[column[0]].prompts[column[1]] == prompt
            assert series[column[0]].seeds[column[1]] == series[name].seeds[place]


@pytest.mark.torch
def test_series_are_drawn_with_the_time_left_and_judged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few pictures by the base itself: she is in none of them."""
    pytest.importorskip("torch")
    from lorapipe_demo import figures
    from lorapipe_demo.judge import Judge

    monkeypatch.setattr(figures, "LINE_EVERY", 0.0)
    whole = plan_series(FILES, MADE)["base"]
    row = figures.Series(whole.prompts[:3], whole.seeds[:3])
    drawn = draw_series({"base": row}, "cpu", steps=2)
    assert [picture.size for picture in drawn["base"]] == [(64, 64)] * 3
    assert capsys.readouterr().err.startswith("drawing: 1 of 3 pictures, ")
    all_drawn = dict.fromkeys(("base", "calls", "silent", "others", "small"), drawn["base"])
    assert {str(share) for share in shares(all_drawn, Judge.load()).values()} == {"0.0 % (interval 0 to 71)"}


@pytest.mark.torch
def test_a_network_in_the_weights_draws_the_same_and_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import numpy as np

    from lorapipe_demo.sampling import Painter
    from lorapipe_engine.files.tensorfile import write_tensors
    from lorapipe_engine.models.bases import demo_base
    from lorapipe_engine.nn.attach import NetworkPlan, Target, attach, detach

    painter = Painter(demo_base(), "cpu", steps=3)
    family = painter.family
    targets = [
        Target(part, family.lora_name(part, path), module)
        for part, path, module in family.target_modules(True)
    ]
    network = attach(family.parts.values(), targets, NetworkPlan(rank=4, alpha=4, conv_rank=2))
    torch.manual_seed(0)
    for adapter in network.adapters.values():
        torch.nn.init.normal_(adapter.get_parameter("lora_up"), std=0.05)
    detach(family.parts.values())
    path = tmp_path / "network.safetensors"
    write_tensors(path, {key: tensor.numpy() for key, tensor in network.file_tensors().items()})
    before = {name: value.clone() for name, value in family.denoiser.state_dict().items()}

    def draw(with_network: bool, **more: bool) -> np.ndarray:
        pictures = painter.draw(["1girl, smile"] * 2, path if with_network else None, **more)
        return np.stack([np.asarray(picture, np.int16) for picture in pictures])

    beside, inside = draw(True), draw(True, in_weights=True)
    assert np.abs(beside - inside).max() <= 1
    assert np.abs(beside - draw(False)).max() > 20
    assert all(torch.equal(value, before[name]) for name, value in family.denoiser.state_dict().items())
