"""Figures by models: small ONNX networks whose answers are known, in the places of DINO, CLIP, CCIP and a tagger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapipe_inspect.grid.judge.encoders import CLIP, DINO, WD, Encoder
from support.cells import GOOD, TRIGGER, UNDERCOOKED, Plan, write_records
from support.commands import run

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")


def save(
    path: Path, nodes: Sequence[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]
) -> Path:
    def facts(shapes: dict[str, list[Any]]) -> list[Any]:
        return [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, one)
            for name, one in shapes.items()
        ]

    graph = onnx.helper.make_graph(list(nodes), "g", facts(inputs), facts(outputs))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def mean_colours(path: Path, side: int | str = 224, *, tokens: bool = False, last: bool = False) -> Path:
    """A network that gives the mean of each channel of its input; with ``tokens`` as the first row of two."""
    node = onnx.helper.make_node
    shape = ["n", side, side, 3] if last else ["n", 3, side, side]
    axes = [1, 2] if last else [2, 3]
    nodes = [node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0)]
    if not tokens:
        return save(
            path,
            [*nodes, node("Identity", ["m"], ["image_embeds"])],
            {"x": shape},
            {"image_embeds": ["n", 3]},
        )
    nodes += [
        node("Neg", ["m"], ["other"]),
        node("Constant", [], ["one"], value_ints=[1]),
        node("Unsqueeze", ["m", "one"], ["a"]),
        node("Unsqueeze", ["other", "one"], ["b"]),
        node("Concat", ["a", "b"], ["last_hidden_state"], axis=1),
        node("Identity", ["other"], ["pooler_output"]),
    ]
    outputs = {"pooler_output": ["n", 3], "last_hidden_state": ["n", 2, 3]}
    return save(path, nodes, {"x": shape}, outputs)


def metric(path: Path) -> Path:
    """Differences of all pairs: 1 less their cosine."""
    node = onnx.helper.make_node
    nodes = [
        node("LpNormalization", ["input"], ["unit"], axis=1),
        node("Transpose", ["unit"], ["turned"], perm=[1, 0]),
        node("MatMul", ["unit", "turned"], ["cosine"]),
        node("Constant", [], ["one"], value_float=1.0),
        node("Sub", ["one", "cosine"], ["output"]),
    ]
    return save(path, nodes, {"input": ["n", 3]}, {"output": ["n", "n"]})


def test_what_goes_into_each_model(tmp_path: Path) -> None:
    red = Image.new("RGB", (60, 40), (255, 0, 0))
    dino = Encoder(mean_colours(tmp_path / "dino.onnx", "side", tokens=True), DINO).vectors([red])
    # Levels less ImageNet's means over its deviations; the class token is the first row.
    assert dino[0] == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-3)
    clip = Encoder(mean_colours(tmp_path / "clip.onnx"), CLIP).vectors([red, red])
    assert clip.shape == (2, 3)
    assert clip[1] == pytest.approx(
        [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711], rel=1e-3
    )
    # A tagger sees it on white, blue first, 0..255: a third of the square is white.
    wd = Encoder(mean_colours(tmp_path / "wd.onnx", 30, last=True), WD).vectors([red])
    assert wd[0] == pytest.approx([85, 85, 255], abs=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of two networks, held-out pictures and training pictures of the concept: whatever it is, it is green."""
    place = tmp_path_factory.mktemp("models")
    plan = Plan({"m-000001": UNDERCOOKED, "m-000002": GOOD}, parts=("T",), side=48)
    listed = write_records(place / "cells", plan)
    for number, (_, name, _, seed, _) in enumerate(plan.cells()):
        paint(listed.parent / f"{number:05}.png", green=name == "m-000002", seed=seed)
    for folder, seeds in (("held", range(20, 24)), ("train", range(30, 36))):
        (place / folder).mkdir()
        for seed in seeds:
            paint(place / folder / f"{seed}.png", green=True, seed=seed)
            (place / folder / f"{seed}.txt").write_text("mina, 1girl, green hair, hat")
    return place


def paint(path: Path, *, green: bool, seed: int) -> None:
    shade = seed
    Image.new("RGB", (48, 48), (60 + shade, 170, 60) if green else (60 + shade, 60, 170)).save(path)


def best(place: Path, *words: object) -> tuple[dict[str, Any], dict[str, float]]:
    """The record of --best, and what the networks are compared by."""
    done = run("lora-grid", place / "cells/cells.jsonl", "--best", "--json", *words)
    assert done.returncode < 2, done.stderr
    record = json.loads(done.stdout)
    return record, {row["name"]: row["value"] for row in record["best"]["values"]}


def test_likeness_to_held_out_pictures(place: Path, tmp_path: Path) -> None:
    encoder = mean_colours(tmp_path / "dino.onnx", tokens=True)
    record, values = best(
        place, "--dino", encoder, "--held-out", place / "held", "--dataset", place / "train"
    )
    assert record["best"]["figure"] == "dino"
    assert values["m-000001"] == pytest.approx(0, abs=1e-6)
    assert values["m-000002"] > 0.5
    held = Encoder(encoder, DINO).vectors(
        [Image.open(path).convert("RGB") for path in sorted((place / "held").glob("*.png"))]
    )
    held /= np.linalg.norm(held, axis=1, keepdims=True)
    cells = {(row["values"].get("file"), row["values"]["seed"]): row for row in record["cells"]}
    one, base = (cells[file, 3] for file in ("run/m-000002.safetensors", None))
    vectors = Encoder(encoder, DINO).vectors([Image.open(row["path"]).convert("RGB") for row in (one, base)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (vectors @ held.T).mean(axis=1)
    assert one["figures"]["dino"] == pytest.approx(float(expected[0] - expected[1]), abs=1e-5)
    assert any("nearer to a training picture than held-out ones are" in line for line in record["lines"])


def both_halves(path: Path) -> Path:
    """A CLIP of colours: the mean of each channel, and for a text the mean of its tokens' rows in a table."""
    node = onnx.helper.make_node
    integers = onnx.TensorProto.INT64
    names = ("input_ids", "attention_mask")
    nodes = [
        node("ReduceMean", ["pixel_values"], ["image_embeds"], axes=[2, 3], keepdims=0),
        node(
            "Constant", [], ["table"], value=onnx.numpy_helper.from_array(np.eye(5, 3, -2, dtype=np.float32))
        ),
        node("Gather", ["table", "input_ids"], ["rows"]),
        node("Cast", ["attention_mask"], ["mask"], to=1),
        node("Constant", [], ["last"], value_ints=[2]),
        node("Unsqueeze", ["mask", "last"], ["weights"]),
        node("Mul", ["rows", "weights"], ["counted"]),
        node("ReduceMean", ["counted"], ["text_embeds"], axes=[1], keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "clip",
        [onnx.helper.make_tensor_value_info("pixel_values", 1, ["n", 3, 32, 32])]
        + [onnx.helper.make_tensor_value_info(name, integers, ["m", "length"]) for name in names],
        [onnx.helper.make_tensor_value_info(name, 1, [size, 3]) for name, size in
         (("image_embeds", "n"), ("text_embeds", "m"))],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))
    return path


def test_pictures_beside_their_prompts(place: Path, tmp_path: Path) -> None:
    """A CLIP with both halves, its tokenizer in the folder above. The prompts speak of green alone."""
    tokenizers = pytest.importorskip("tokenizers")
    clip = both_halves(tmp_path / "onnx" / "model.onnx")
    words = ("--clip", clip, "--held-out", place / "held")
    record, _ = best(place, *words)
    assert any("clip: no tokenizer.json beside model.onnx" in line for line in record["lines"])
    vocabulary = {"other": 0, "red": 2, "green": 3, "blue": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="other"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    record, _ = best(place, *words)
    assert record["best"]["figure"] == "clip"
    cells = {(row["values"].get("file"), row["values"]["seed"]): row for row in record["cells"]}
    one, base = (cells[file, 3] for file in ("run/m-000002.safetensors", None))
    assert "green" in one["values"]["prompt"]
    vectors = Encoder(clip, CLIP).vectors([Image.open(row["path"]).convert("RGB") for row in (one, base)])
    cosines = vectors[:, 1] / np.linalg.norm(vectors, axis=1)
    assert one["figures"]["clip_t"] == pytest.approx(float(cosines[0] - cosines[1]), abs=1e-5)
    assert run("lora-grid", place / "cells/cells.jsonl", *words).stdout.count("clip_t") == 1
    (tmp_path / "tokenizer.json").write_text("{}")
    done = run("lora-grid", place / "cells/cells.jsonl", *words)
    assert (done.returncode, "tokenizer.json: cannot be read as a tokenizer" in done.stderr) == (2, True)


def test_ccip(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ccip-caformer-24-randaug-pruned"
    mean_colours(folder / "model_feat.onnx", 384)
    metric(folder / "model_metrics.onnx")
    record, values = best(place, "--ccip", folder, "--held-out", place / "held", "--by", "ccip")
    assert values["m-000001"] == pytest.approx(0, abs=1e-6)
    assert values["m-000002"] > 0.5
    assert any(
        "8 of 24 cells show one character with the held-out pictures (<= 0.178)" in line
        for line in record["lines"]
    )


def tagger(folder: Path) -> Path:
    """A tagger of three tags, whose probabilities are the mean levels of blue, green and red over 255."""
    node = onnx.helper.make_node
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
        node("Constant", [], ["most"], value_float=255.0),
        node("Div", ["m", "most"], ["p"]),
    ]
    save(folder / "model.onnx", nodes, {"x": ["n", 32, 32, 3]}, {"p": ["n", 3]})
    (folder / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1,blue,0,9\n2,green_hair,0,9\n3,red,9,9\n"
    )
    return folder


def test_a_tagger_in_full(place: Path, tmp_path: Path) -> None:
    folder = tagger(tmp_path / "tagger")
    words = ("--tagger", folder, "--dataset", place / "train", "--trigger", TRIGGER)
    record, values = best(place, *words, "--by", "tags")
    # The dataset's pictures have little blue and much green, as those of the second network.
    assert values["m-000001"] == pytest.approx(0, abs=1e-6)
    assert values["m-000002"] > 0.2
    record, values = best(place, *words)
    assert record["best"]["figure"] == "recall"
    # Of the prompt's tags the tagger has green hair alone, which it finds from .35 on.
    assert values == {"m-000001": 0, "m-000002": 1}
    assert record["networks"][1]["unasked"] is None  # it is asked for, and hat is no tag of this tagger


def test_models_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    cells, held = place / "cells/cells.jsonl", place / "held"
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    two = save(
        tmp_path / "two.onnx",
        [onnx.helper.make_node("Add", ["a", "b"], ["c"])],
        {"a": ["n", 3, 8, 8], "b": ["n", 3, 8, 8]},
        {"c": ["n", 3, 8, 8]},
    )
    folder = tagger(tmp_path / "tagger")
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n1,blue,0,9\n")
    for words, told in (
        (["--dino", tmp_path / "bad.onnx", "--held-out", held], "bad.onnx: cannot be loaded"),
        (["--clip", two, "--held-out", held], "two.onnx: one input of pictures"),
        (["--ccip", tmp_path, "--held-out", held], "model_feat.onnx: no such file"),
        (["--tagger", folder], "selected_tags.csv has 1 tags, model.onnx gives 3"),
        (["--dino", tmp_path / "bad.onnx"], "--dino has a use only with --held-out"),
        (["--held-out", held], "--held-out has a use only with --dino or with --clip or with --ccip"),
    ):
        done = run("lora-grid", cells, *words)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1
