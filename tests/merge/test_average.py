"""Averages of a run's saves, and one network with block weights in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.delta import dense_delta
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.read import read_module
from lorapipe_merge.networks.average import Average, parse_average
from support.commands import run

EPOCHS = Path(__file__).parents[1] / "data" / "average"


def changes(path: Path) -> dict[str, NDArray[Any]]:
    """Each module's change in float64, by its name."""
    with open_tensors(path) as file:
        modules = describe_network(file).modules.values()
        found = {m.name: dense_delta(read_module(file, m), name=m.name).weight for m in modules}
    return {name: weight for name, weight in found.items() if weight is not None}


def average(kind: str, *words: object, cwd: Path, output: Path) -> dict[str, Any]:
    done = run(
        *("lora-merge", "--networks", *words, "--average", kind, "--save-precision", "fp32", "--json"),
        *("-o", output, "--verify"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.mark.parametrize(("kind", "name"), [("mean", "mean"), ("power:0.2", "power_sigma_rel_0.2")])
def test_average_of_changes(kind: str, name: str, tmp_path: Path) -> None:
    """Exact, the average is that of the products; factors averaged one by one are not."""
    output = tmp_path / "o.safetensors"
    files = sorted(path.name for path in EPOCHS.glob("epoch*"))
    average(kind, *files, "--mode", "concat", cwd=EPOCHS, output=output)
    found = changes(output)
    with open_tensors(EPOCHS / "expected.safetensors") as file:
        wanted = {
            key.removeprefix(f"{name}/"): file.read(key) for key in file.tensors if key.startswith(name)
        }
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert np.allclose(
            found[key], value.reshape(found[key].shape), rtol=0, atol=1e-6 * np.abs(value).max()
        ), key
    if name != "mean":
        theirs = changes(EPOCHS / "musubi_sigma_rel02.safetensors")
        off = max(np.abs(theirs[key] - found[key]).max() / np.abs(found[key]).max() for key in found)
        assert off > 1e-3


def test_average_has_the_ranks_of_the_first(tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    files = sorted(path.name for path in EPOCHS.glob("epoch*"))
    record = average("mean", *files, cwd=EPOCHS, output=output)
    exact, found = {}, changes(output)
    with open_tensors(EPOCHS / files[0]) as file:
        ranks = {name: module.rank for name, module in describe_network(file).modules.items()}
    with open_tensors(EPOCHS / "expected.safetensors") as file:
        for name in found:
            exact[name] = file.read(f"mean/{name}").reshape(found[name].shape)
    assert {row["module"]: row["rank"]["after"] for row in record["ranks"]} == ranks
    lost = np.sqrt(sum(np.square(found[name] - exact[name]).sum() for name in found))
    whole = np.sqrt(sum(np.square(value).sum() for value in exact.values()))
    best = 0.0
    for name, value in exact.items():
        singular = np.linalg.svd(value.reshape(value.shape[0], -1), compute_uv=False)
        best += float(np.square(singular[ranks[name] :]).sum())
    assert lost / whole == pytest.approx(record["error"]["truncation"], rel=1e-3)
    assert lost == pytest.approx(np.sqrt(best), rel=1e-3)


@pytest.mark.parametrize("by", ["metadata", "names"])
def test_order_is_that_of_the_epochs(by: str, tmp_path: Path) -> None:
    """Neither the order of the words nor the time of change matters; ema:0.8 leaves the last epoch a fifth."""
    names = ["run-000010.safetensors", "run-000009.safetensors", "run-000002.safetensors"]
    for number, name in ((1, names[2]), (2, names[1]), (3, names[0])):
        with open_tensors(EPOCHS / f"epoch-{number:06d}.safetensors") as file:
            tensors = {key: encode(file.read(key), "F32") for key in file.tensors}
            write_tensors(tmp_path / name, tensors, file.metadata if by == "metadata" else {})
        os.utime(tmp_path / name, (1000 - number, 1000 - number))
    if by == "metadata":
        shutil.move(tmp_path / names[0], tmp_path / "run.safetensors")  # the last one has no number
        names[0] = "run.safetensors"
    record = average("ema:0.8", *names, "--mode", "concat", cwd=tmp_path, output=tmp_path / "o.safetensors")
    assert [(row["file"], pytest.approx(row["ratio"])) for row in record["networks"]] == [
        (names[2], 0.64),
        (names[1], 0.16),
        (names[0], 0.2),
    ]
    assert any(
        ("ss_epoch" if by == "metadata" else "numbers in their names") in note for note in record["notes"]
    )


@pytest.mark.parametrize("kind", ["mean", "ema:0.9", "power:0.1", "power:0.28"])
@pytest.mark.parametrize("count", [2, 7])
def test_weights_add_up_to_one(kind: str, count: int) -> None:
    weights = parse_average(kind).weights(count)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) > 0


def test_weights_are_those_of_the_formulas() -> None:
    assert Average("ema", 0.8).weights(4) == pytest.approx([0.512, 0.128, 0.16, 0.2])
    assert Average("power", 0.2).weights(3) == pytest.approx([0.0448, 0.2731, 0.6821], abs=1e-4)


@pytest.mark.parametrize("text", ["median", "mean:1", "ema", "ema:1", "ema:nan", "power:0", "power:0.3"])
def test_no_average(text: str) -> None:
    with pytest.raises(ConfigError, match="--average"):
        parse_average(text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["a1.safetensors:0.5", "a2.safetensors", "--average", "mean"],
            "a1.safetensors:0.5: --average gives",
        ),
        (
            ["a1.safetensors", "a2.safetensors", "--average", "mean", "--ratio", "1"],
            "--ratio 1: --average gives",
        ),
        (["a1.safetensors", "b.safetensors", "--average", "ema:0.5"], "nothing tells which of"),
        (["a1.safetensors", "--average", "mean"], "takes two networks or more"),
        (
            ["a1.safetensors", "a2.safetensors", "--average", "mean", "--mode", "concat", "--rank", 2],
            "--mode concat",
        ),
    ],
)
def test_refused(words: list[Any], text: str, tmp_path: Path) -> None:
    for name in ("a1", "a2", "b"):
        with open_tensors(EPOCHS / "epoch-000001.safetensors") as file:
            tensors = {key: encode(file.read(key), "F32") for key in file.tensors}
        write_tensors(tmp_path / f"{name}.safetensors", tensors)
    done = run("lora-merge", "--networks", *words, "-o", "o.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o.safetensors").exists()


NETWORKS = Path(__file__).parents[1] / "data" / "networks"


def saves_of(algorithm: str, folder: Path) -> list[str]:
    """Two saves of a network of this algorithm."""
    with open_tensors(NETWORKS / f"{algorithm}.safetensors") as file:
        own = [key for key in file.tensors if key.startswith(("lora_unet_", "oft_unet_"))]
        tensors = {key: encode(file.read(key), "F32") for key in own}
    names = [f"{algorithm}-{number}.safetensors" for number in (1, 2)]
    for name in names:
        write_tensors(folder / name, tensors)
    return names


@pytest.mark.parametrize("algorithm", ["ia3_in", "ia3_out", "diag_oft", "dora_out"])
def test_what_no_rank_helps_is_not_told_to_give_one(algorithm: str, tmp_path: Path) -> None:
    names = saves_of(algorithm, tmp_path)
    done = run("lora-merge", "--networks", *names, "--average", "mean", "-o", "o.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be added to other networks; merge such a network into a checkpoint" in done.stderr
    assert "--new-rank" not in done.stderr


@pytest.mark.parametrize("algorithm", ["loha", "full", "norm"])
def test_what_is_advised_where_no_rank_is_known_works(algorithm: str, tmp_path: Path) -> None:
    names = saves_of(algorithm, tmp_path)
    words = ["lora-merge", "--networks", *names, "--average", "mean"]
    done = run(*words, "-o", "o.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "give --new-rank N, or --mode concat" in done.stderr
    for number, advised in enumerate((["--new-rank", 2], ["--mode", "concat"])):
        done = run(*words, *advised, "-o", f"{number}.safetensors", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_network_with_block_weights_in_it(tmp_path: Path) -> None:
    source = EPOCHS / "epoch-000001.safetensors"
    old = changes(source)
    words = ["--networks", source, "--blocks", "IN01=0.5,TE=0", "--save-precision", "fp32", "--verify"]
    done = run("lora-merge", *words, "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert "note: left out, in blocks that weigh 0: 1 module\n" in done.stderr
    new = changes(tmp_path / "o.safetensors")
    assert new.keys() == {name for name in old if not name.startswith("lora_te")}
    for name, value in new.items():
        assert np.allclose(value, 0.5 * old[name], rtol=1e-5, atol=1e-9), name
    done = run(
        "lora-merge",
        "--networks",
        source,
        "--blocks",
        "BASE=0,IN01=0,REST=0",
        "-o",
        tmp_path / "p.safetensors",
    )
    assert done.returncode == 2
    assert "leaves nothing" in done.stderr
