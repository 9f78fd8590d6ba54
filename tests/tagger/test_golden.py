"""Every kind of picture, read, prepared, scored and captioned as the reference says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_tagger.captions.shape import Shape, caption_tags
from lorapipe_tagger.models.adapters import choose_adapter
from lorapipe_tagger.models.labels import read_labels
from lorapipe_tagger.scoring.picture import PictureError, Preparation, Resampling, read_picture
from lorapipe_tagger.scoring.select import Rules, Selector
from lorapipe_tagger.scoring.session import Network

DATA = Path(__file__).parents[1] / "data" / "tagger"
EXPECTED = json.loads((DATA / "pictures" / "expected.json").read_text(encoding="utf-8"))
TOLERANCE = EXPECTED["tolerance"]
GOOD = [row for row in EXPECTED["images"] if row["ok"]]
BROKEN = [row["file"] for row in EXPECTED["images"] if not row["ok"]]


def name_of(row: dict[str, Any]) -> str:
    return str(row["file"])


@pytest.fixture(scope="module", params=["model", "model_batch1"])
def network(request: pytest.FixtureRequest) -> Network:
    adapter, model, labels = choose_adapter(DATA / request.param)
    return Network(model, adapter, "cpu", len(read_labels(labels)))


@pytest.mark.parametrize("resampling", ["bicubic", "kohya"])
@pytest.mark.parametrize("row", GOOD, ids=name_of)
def test_pixels(row: dict[str, Any], resampling: Resampling) -> None:
    if resampling == "kohya":
        pytest.importorskip("cv2")
    wanted = row["wanted_bicubic" if resampling == "bicubic" else "wanted_kohya_resample"]
    picture = read_picture(DATA / "pictures" / row["file"], [Preparation(resampling=resampling)])
    assert list(picture.size) == row["upright_size"]
    pixels = picture.pixels[0].astype(float)
    assert pixels.shape == (448, 448, 3)
    assert np.abs(pixels.mean((0, 1)) - wanted["mean_bgr"]).max() <= TOLERANCE["mean_bgr"]
    for pixel in wanted["pixels"]:
        assert np.abs(pixels[pixel["y"], pixel["x"]] - pixel["bgr"]).max() <= TOLERANCE["pixel_bgr"]


@pytest.mark.parametrize("row", GOOD, ids=name_of)
def test_scores_tags_and_captions(row: dict[str, Any], network: Network) -> None:
    labels = read_labels(DATA / "model" / "selected_tags.csv")
    pixels = read_picture(DATA / "pictures" / row["file"], [Preparation()]).pixels[0]
    scores = network.scores([pixels])[0]
    for name, score in zip(labels.names, scores, strict=True):
        assert abs(row["prob_bicubic"][name] - score) <= TOLERANCE["prob"], name
    for key, wanted in row["tags"].items():
        _, general, _, character = key.split()
        rules = Rules(thresholds={"general": float(general), "character": float(character)})
        selection = Selector(labels, rules).select(scores)
        for category in ("general", "character"):
            assert {t.name for t in selection.tags if t.category == category} == set(wanted[category])
        assert max(selection.ratings, key=selection.ratings.__getitem__) == wanted["rating"]
        assert ", ".join(caption_tags(selection, Shape())) == wanted["caption_spaces"]
        assert ", ".join(caption_tags(selection, Shape(characters="mixed"))) == wanted["caption_by_score"]
        raw = Shape(order="model", spaces=False)
        assert ", ".join(caption_tags(selection, raw)) == wanted["caption_model_order_raw"]


@pytest.mark.slow
def test_batches_give_what_single_pictures_give(network: Network) -> None:
    pictures = [read_picture(DATA / "pictures" / row["file"], [Preparation()]).pixels[0] for row in GOOD]
    together = network.scores(pictures)
    for picture, scores in zip(pictures, together, strict=True):
        np.testing.assert_allclose(network.scores([picture])[0], scores, atol=1e-6)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_named(name: str) -> None:
    with pytest.raises(PictureError, match=r"empty file|not a picture|broken picture"):
        read_picture(DATA / "pictures" / name, [Preparation()])
