"""LoHa and LoKr through ``lora-train``: trained, stopped and gone on with, started from, merged into the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402

pytestmark = pytest.mark.torch

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_dim 3 --network_alpha 2 --lr_scheduler constant --state_interval 0 --scale_weight_norms 2"
)
RATES = ["--unet_lr", "0.02", "--text_encoder_lr", "0.02"]
STILL = ["--unet_lr", "1e-12", "--text_encoder_lr", "1e-12", "--max_train_steps", "1"]
KINDS = {
    "loha": [
        "--network_module",
        "networks.loha",
        "--network_args",
        "conv_dim=2",
        "use_tucker=True",
        "rank_dropout=0.1",
    ],
    "lokr": [
        "--network_module",
        "networks.lokr",
        "--network_args",
        "conv_dim=2",
        "factor=4",
        "loraplus_lr_ratio=2",
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=2, repeats=1, seed=3)
    return root


def run(data: Path, out: Path, *more: object) -> int:
    words = [*FIXED.split(), "--train_data_dir", data, "--output_dir", out, *more]
    with pytest.raises(SystemExit) as end:
        lora_train.main([str(word) for word in words])
    return int(end.value.code or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_goes_on_and_is_as_strong_in_the_base(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapipe_engine.train import loop

    four = [*KINDS[kind], *RATES, "--max_train_steps", "4"]
    assert run(data, tmp_path / "calm", *four) == 0
    calm = tmp_path / "calm" / "net.safetensors"
    with open_tensors(calm) as file:
        network = describe_network(file)
    assert (network.algorithm, network.metadata["ss_network_module"]) == (kind, f"networks.{kind}")
    assert ("tucker" in network.variants) == (kind == "loha")

    real, count = loop.take_step, 0

    def step(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        assert run(data, tmp_path / "stopped", *four) == 130
    assert run(data, tmp_path / "stopped", *four) == 0
    one, other = load_file(calm), load_file(tmp_path / "stopped" / "net.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)

    # The first loss is the same with the network merged into the base, and with the network itself.
    losses = []
    starts = {
        "base": ["--base_weights", calm],
        "file": [*KINDS[kind][:2], "--network_weights", calm, "--dim_from_weights"],
    }
    for name, more in starts.items():
        assert run(data, tmp_path / name, *more, *STILL) == 0
        losses.append(json.loads((tmp_path / name / "net.metrics.jsonl").read_text())["loss/current"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--network_module", "networks.loha", "--network_dropout", "0.1"],
            "network_dropout: means nothing for loha",
        ),
        (
            ["--network_module", "networks.lokr", "--network_args", "factor=0"],
            "factor takes a whole number of 1 or more",
        ),
        (
            ["--network_module", "networks.lokr", "--network_args", "full_matrx=1"],
            "did you mean 'full_matrix'?",
        ),
        (["--network_module", "networks.loha", "--network_args", "factor=2"], "'factor' is not known"),
        (
            ["--network_module", "networks.lora", "--network_args", "use_tucker=maybe"],
            "'use_tucker' is not known",
        ),
        (
            ["--network_module", "networks.loha", "--network_args", "use_tucker=maybe"],
            "use_tucker takes True or False",
        ),
    ],
)
def test_what_an_algorithm_does_not_know_is_refused(
    words: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, *words, "--max_train_steps", "1") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
