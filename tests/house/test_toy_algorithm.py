"""A new algorithm is two files and a row: a toy one is trained, merged, resized and inspected by the real commands.

The files are ``tests/support/toy_change.py`` and ``toy_training.py``; ``docs/adding-algorithm.md`` is the walk. Nothing
of the packages is touched but the table of algorithms.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.delta import dense_delta  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.bases import resolve_base  # noqa: E402
from lorapipe_engine.networks import algorithms  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402
from lorapipe_engine.nn.attach import Kind, NetworkPlan, attach  # noqa: E402
from lorapipe_engine.nn.base import Size  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.memory.fit import outline_of  # noqa: E402
from lorapipe_engine.train.memory.network import rows_of  # noqa: E402
from lorapipe_engine.train.network.apply import attach_file  # noqa: E402
from lorapipe_engine.train.network.targets import targets_of  # noqa: E402
from lorapipe_inspect.cli import lora_inspect  # noqa: E402
from lorapipe_merge.cli import lora_merge  # noqa: E402
from lorapipe_resize.cli import lora_resize  # noqa: E402
from support import toy_change  # noqa: E402

pytestmark = pytest.mark.torch

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_module networks.toy --network_dim 4 --network_alpha 2 --state_interval 0 --max_train_steps 4 "
    "--lr_scheduler constant --gradient_accumulation_steps 2 "
    "--scale_weight_norms 1 --gradient_checkpointing"
)
RATES = ["--unet_lr", "0.02", "--text_encoder_lr", "0.02"]
OWN = [*RATES, "--network_args", "gain=2.5", "loraplus_lr_ratio=4", "conv_dim=2"]


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """The toy's row stands in the table."""
    patch = pytest.MonkeyPatch()
    patch.setattr(algorithms, "ALGORITHMS", (*algorithms.ALGORITHMS, toy_change.ROW))
    yield
    patch.undo()


def run(command: Any, *words: object) -> int:
    """A command in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        command.main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=2, repeats=2, seed=3)
    return root


@pytest.fixture
def train(data: Path) -> Callable[..., int]:
    return lambda out, *words: run(
        lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *words
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network after four steps."""
    out = tmp_path_factory.mktemp("trained")
    assert run(lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *OWN) == 0
    return out / "net.safetensors"


def changes(path: Path) -> dict[str, Any]:
    """The change of each module, by the engine's reader."""
    with open_tensors(path) as file:
        modules = describe_network(file).modules
        return {
            name: dense_delta({s: file.read(key) for s, key in module.keys.items()}, name=name).weight
            for name, module in modules.items()
        }


def as_one(value: Any) -> Any:
    return value.reshape(value.shape[0], -1)


# ------------------------------------------------------------------------------------------ training


def test_it_trains(trained: Path) -> None:
    with open_tensors(trained) as file:
        network = describe_network(file)
        gains = np.concatenate([file.read(m.keys["toy_gain"]) for m in network.modules.values()])
    assert network.algorithm == "toy"
    assert {m.rank for m in network.modules.values()} == {4, 2}  # conv_dim for the large kernels
    assert {(m.rank, m.alpha) for m in network.modules.values()} == {(4, 2.0), (2, 1.0)}
    assert network.metadata["ss_network_module"] == "networks.toy"
    assert json.loads(network.metadata["ss_network_args"])["gain"] == "2.5"
    assert 0.001 < np.abs(gains - 2.5).max() < 0.5  # it began there and was trained
    norms = [float(np.linalg.norm(change)) for change in changes(trained).values()]
    assert 0.001 < max(norms) <= 1 + 1e-4  # scale_weight_norms
    rows = [json.loads(line) for line in trained.with_name("net.metrics.jsonl").read_text().splitlines()]
    assert rows[0]["norm/change/unet"] > 0
    assert rows[0]["lr/unet plus"] == pytest.approx(0.08)  # LoRA+
    assert max(row["max_norm/keys_scaled"] for row in rows) > 0


def test_it_resumes_bit_for_bit(
    train: Callable[..., int], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapipe_engine.train import loop

    real, count = loop.take_step, 0

    def step(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        assert train(tmp_path, *OWN) == 130
    assert (tmp_path / "net.state").exists()
    assert train(tmp_path, *OWN) == 0
    with open_tensors(tmp_path / "net.safetensors") as again, open_tensors(trained) as calm:
        assert list(again.tensors) == list(calm.tensors)
        assert all(again.raw(name) == calm.raw(name) for name in calm.tensors)


def test_it_starts_from_its_file_and_from_no_other(
    train: Callable[..., int], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = ["--unet_lr", "1e-12", "--text_encoder_lr", "1e-12", "--max_train_steps", "1"]
    assert train(tmp_path / "a", "--network_weights", trained, "--dim_from_weights", *still) == 0
    before, after = changes(trained), changes(tmp_path / "a" / "net.safetensors")
    assert before.keys() == after.keys()
    for name, change in before.items():
        np.testing.assert_allclose(after[name], change, rtol=1e-4, atol=1e-7)
    plain = ["--network_module", "networks.lora", "--network_weights", trained]
    assert train(tmp_path / "b", *plain, *still) == 2
    assert (
        "is a toy, this network another; give --dim_from_weights" in capsys.readouterr().err.splitlines()[-1]
    )


def test_its_own_arguments_are_checked(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, told in {
        "gain=no": "gain takes a number above 0, not 'no'",
        "gian=2": "did you mean 'gain'?",
    }.items():
        assert train(tmp_path, "--network_args", word) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]


def test_it_is_planned_and_drawn_with(trained: Path) -> None:
    family = open_family(load_base(resolve_base("demo")))
    layers = {
        family.lora_name(p, path): tuple(module.weight.shape)
        for p, path, module in family.target_modules(conv=True)
    }
    network = attach_file(family, trained, 0.5)
    before = changes(trained)
    assert network.adapters.keys() == before.keys()
    assert {adapter.multiplier for adapter in network.adapters.values()} == {0.5}
    for name, adapter in network.adapters.items():
        np.testing.assert_allclose(
            as_one(adapter.delta().detach()), as_one(before[name]), rtol=1e-4, atol=1e-7
        )
        counted = type(adapter).count(layers[name], Size(adapter.rank, adapter.alpha), {})
        assert counted == sum(p.numel() for p in adapter.parameters() if p.requires_grad)


def test_the_memory_plan_counts_it() -> None:
    outline = outline_of(resolve_base("demo"), torch.bfloat16)
    plan = NetworkPlan(rank=4, alpha=2, conv_rank=2, kind=Kind("toy"))
    rows = rows_of(outline, targets_of(outline, conv=True), plan)
    network = attach(outline.parts.values(), targets_of(outline, conv=True), plan)
    assert sum(row.trained for row in rows) == sum(g.parameter.numel() for g in network.groups.values())
    # Its own forward keeps what it reads, and rank activations in half precision.
    assert all(row.keeps.reads and row.keeps.each > 0 for row in rows)


# ------------------------------------------------------------------------------------------ files


def test_it_is_merged_into_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.safetensors"
    assert run(lora_merge, "demo", f"{trained}:0.5", "-o", merged, "--save_precision", "float") == 0
    base = resolve_base("demo")
    assert isinstance(base, Path)
    plain, other = (
        open_family(load_base(source, tokenizer_dir=base.parent / "tokenizer")) for source in (base, merged)
    )
    own = {plain.lora_name(p, path): module.weight for p, path, module in plain.target_modules(conv=True)}
    theirs = {other.lora_name(p, path): module.weight for p, path, module in other.target_modules(conv=True)}
    seen = changes(trained)
    assert seen
    for name, change in seen.items():
        wanted = as_one(own[name].detach()).double().numpy() + 0.5 * as_one(change)
        np.testing.assert_allclose(as_one(theirs[name].detach()).numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_it_is_added_to_another_network(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sum.safetensors"
    words = ["--networks", f"{trained}:0.5", f"{trained}:0.25", "-o", out, "--save_precision", "float"]
    assert run(lora_merge, *words) == 0
    assert "toy modules become plain LoRA" in capsys.readouterr().err
    with open_tensors(out) as file:
        assert describe_network(file).algorithm == "locon"
    before, after = changes(trained), changes(out)
    assert before.keys() == after.keys()
    for name, change in before.items():
        np.testing.assert_allclose(as_one(after[name]), 0.75 * as_one(change), rtol=1e-3, atol=1e-6)


def test_it_is_resized(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    assert run(lora_resize, trained, "-o", out, "--new-rank", 2, "--save_precision", "float") == 0
    assert "toy modules are now plain LoRA" in capsys.readouterr().err
    before, after = changes(trained), changes(out)
    for name, change in before.items():
        left, sigma, right = np.linalg.svd(as_one(change), full_matrices=False)
        nearest = (left[:, :2] * sigma[:2]) @ right[:2]
        np.testing.assert_allclose(as_one(after[name]), nearest, rtol=1e-3, atol=1e-5)


def test_it_is_inspected(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = changes(trained)

    def told(*words: object) -> str:
        assert run(lora_inspect, *words) == 0, words
        return str(capfd.readouterr().out)

    capfd.readouterr()
    assert told("keys", "--modules", trained).count("toy") >= len(before)
    assert json.loads(told("zeros", "--json", trained))["algo"] == "toy"
    norms = json.loads(told("norms", "--json", trained))["modules"]
    for name, change in before.items():
        assert norms[name]["fro"] == pytest.approx(float(np.linalg.norm(change)), rel=1e-3, abs=1e-7)
    ranks = json.loads(told("ranks", "--json", trained))
    assert ranks["algo"] == "toy"
    assert "cannot be used" not in told("check", trained)
    out = tmp_path / "delta.safetensors"
    told("delta", trained, "-o", out, "--save-precision", "fp32")
    with open_tensors(out) as file:
        assert len(file.tensors) == len(before)
        for name, change in before.items():
            np.testing.assert_allclose(as_one(file.read(name)), as_one(change), rtol=1e-4, atol=1e-6)


def test_dead_and_broken_modules_are_seen(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(trained)
    names = sorted({key.partition(".")[0] for key in tensors if key.startswith("lora_unet")})
    tensors[f"{names[0]}.toy_left"].zero_()
    tensors[f"{names[1]}.toy_right"][0].zero_()
    save_file(tensors, tmp_path / "dead.safetensors")
    del tensors[f"{names[2]}.toy_right"]
    save_file(tensors, tmp_path / "broken.safetensors")
    assert run(lora_inspect, "zeros", tmp_path / "dead.safetensors") == 1
    told = capfd.readouterr().out
    assert names[0] in told
    assert "1 module unexpectedly dead" in told
    run(lora_inspect, "check", tmp_path / "dead.safetensors")
    assert "1 dead rank in 1 module" in capfd.readouterr().out
    assert run(lora_inspect, "check", tmp_path / "broken.safetensors") == 1
    assert f"{names[2]} lacks toy_right" in capfd.readouterr().out
    for command in ((lora_resize, "--new-rank", 2), (lora_merge, "demo")):
        assert run(*command, tmp_path / "broken.safetensors", "-o", tmp_path / "x.safetensors") != 0
        line = capfd.readouterr().err.splitlines()[-1]
        assert "toy_right is missing" in line
    assert not (tmp_path / "x.safetensors").exists()


def test_the_light_file_needs_no_torch() -> None:
    code = "import support.toy_change, sys; print('torch' in sys.modules)"
    tests = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
