"""The demo's figures: what is drawn for them, and how far they can be trusted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from PIL import Image

from lorapipe_demo import recipe
from lorapipe_demo.figures import MERGED, Series, Share, draw_series, plan_series, shares, shown_epochs
from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import TRIGGER, concept_scene, random_person
from lorapipe_demo.weights import Made

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
    series = plan_series(FILES, MADE, 3)
    pictures = [
        (row.base, row.network, row.strength, prompt, seed)
        for row in series.values()
        for prompt, seed in zip(row.prompts, row.seeds, strict=True)
    ]
    assert len(set(pictures)) == len(pictures)
    # Five figures and the check of the merged base; what no figure has: two weights of three epochs, the pictures by
    # which the first two are compared with the last, and the base of those that do not call her.
    compared = recipe.COMPARED_CALLS + 2 * recipe.COMPARED_OTHERS
    assert len(pictures) == 5 * recipe.EXAM_SIZE + MERGED + 2 * 3 + 2 * compared + 4


def test_the_epochs_that_are_shown_end_with_the_last() -> None:
    assert shown_epochs(10, 3) == [3, 6, 10]
    assert shown_epochs(6, 3) == [2, 4, 6]
    assert shown_epochs(2, 3) == [1, 2]
    files = [Path(f"epoch{number}.safetensors") for number in range(1, 11)]
    series = plan_series(files, MADE, 3)
    assert [name for name, row in series.items() if name.startswith("epoch") and row.strength == 1] == [
        "epoch 3",
        "epoch 6",
    ]
    assert series["epoch 6"].network == files[5]
    assert series["epoch 10, weight 1.3"].network == series["calls"].network == files[9]


def test_the_extracted_network_is_drawn_with_on_request() -> None:
    series = plan_series(FILES, Made(Path("small"), Path("merged"), Path("extracted")), 3)
    assert "extracted" not in plan_series(FILES, MADE, 3)
    assert series["extracted"].network == Path("extracted")
    assert series["extracted"].prompts == series["small"].prompts
    assert recipe.FULL.draws_extracted
    assert not recipe.SHORT.draws_extracted


@pytest.mark.slow
def test_the_grid_shows_the_pictures_that_were_judged_and_names_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of stand-ins by which the last epoch is the best."""
    from lorapipe_demo.grid import show_grid

    series = plan_series(FILES, MADE, 3)
    drawn = {name: [stand_in(row, prompt, seed) for prompt, seed in zip(row.prompts, row.seeds, strict=True)]
             for name, row in series.items()}  # fmt: skip
    path = show_grid(series, drawn, 10, tmp_path)
    said = capsys.readouterr().err
    assert "take epoch3, weight 1: encoder" in said
    assert "epoch3, weight 1 goes " in said
    assert len(list((tmp_path / "held-out").rglob("*.png"))) == recipe.HELD_OUT
    assert "not compared, for too few pictures: epoch1, weight 0.7" in said
    assert "needs two seeds" not in said
    with Image.open(path) as sheet:
        assert sheet.width > 4 * 128
        assert sheet.height > 3 * 128
    lines = (tmp_path / "cells" / "grid.jsonl").read_text().splitlines()
    cells = {(cell["file"], cell.get("weight")): cell for cell in map(json.loads, lines)}
    assert set(cells) == {
        ("None", None),
        *((file.stem, weight) for file in FILES for weight in recipe.WEIGHTS),
    }
    with Image.open(tmp_path / "cells" / cells["epoch3", 1.0]["path"]) as picture:
        assert picture.size == (128, 128)
        assert picture.tobytes() == drawn["calls"][0].resize((128, 128)).tobytes()
        assert "<lora:epoch3:1>" in picture.info["parameters"]
    assert "epoch1" in (tmp_path / "grid.html").read_text()


def stand_in(row: Series, prompt: str, seed: int) -> Image.Image:
    """Somebody of the world for each seed; if she is called she shines through, the later the clearer."""
    name = "" if row.network is None else row.network.stem
    epoch = int(name[-1]) if name[-1:].isdigit() else 3 * bool(name)
    draw = random.Random(seed)
    picture, her = (draw_scene(pick(draw), draw) for pick in (random_person, concept_scene))
    share = 0.3 * epoch * min(1.0, row.strength) if TRIGGER in prompt else 0.02 * bool(name)
    return Image.blend(picture, her, share)


@pytest.mark.torch
def test_series_are_drawn_with_the_time_left_and_judged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few pictures by the base itself: she is in none of them."""
    pytest.importorskip("torch")
    from lorapipe_demo import figures
    from lorapipe_demo.judge import Judge

    monkeypatch.setattr(figures, "LINE_EVERY", 0.0)
    whole = plan_series(FILES, MADE, 3)["base"]
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
