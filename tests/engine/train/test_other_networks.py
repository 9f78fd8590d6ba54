"""LoHa and LoKr through ``lora-train``: trained, stopped and gone on with, started from, merged into the base."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402
from lorapipe_engine.settings import NetworkSettings  # noqa: E402
from lorapipe_engine.train.network.arguments import network_plan, read_network_args  # noqa: E402
from lorapipe_engine.train.network.targets import targets_of, with_kinds  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import stopped_after  # noqa: E402

from .test_families import real_family  # noqa: E402

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
    return draw_data(tmp_path_factory, pictures=2)


def run(data: Path, out: Path, *more: object) -> int:
    return status_of(lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *more)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_goes_on_and_is_as_strong_in_the_base(kind: str, data: Path, tmp_path: Path) -> None:
    four = [*KINDS[kind], *RATES, "--max_train_steps", "4"]
    assert run(data, tmp_path / "calm", *four) == 0
    calm = tmp_path / "calm" / "net.safetensors"
    with open_tensors(calm) as file:
        network = describe_network(file)
    assert (network.algorithm, network.metadata["ss_network_module"]) == (kind, f"networks.{kind}")
    assert ("tucker" in network.variants) == (kind == "loha")

    with stopped_after(2):
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


# Modules of UNet and text encoders in the published models, as LyCORIS has them on meta tensors.
COUNTS = {
    "full": ((282, 72), (792, 264)),
    "full-lin": ((230, 72), (752, 264)),
    "attn-mlp": ((192, 72), (722, 264)),
    "attn-only": ((128, 48), (560, 176)),
    "unet-only": ((282, 0), (792, 0)),
    "unet-transformer-only": ((192, 0), (722, 0)),
    "unet-convblock-only": ((88, 0), (68, 0)),
}


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_modules_of_the_reference(preset: str) -> None:
    for arch, wanted in zip(("sd15", "sdxl"), COUNTS[preset], strict=True):
        targets = targets_of(real_family(arch), conv=False, preset=preset)
        unet = sum(target.part == "unet" for target in targets)
        assert (unet, len(targets) - unet) == wanted
        assert len({target.name for target in targets}) == len(targets)


@pytest.mark.parametrize(("arch", "blocks", "layers"), [("sd15", 16, 12), ("sdxl", 70, 12 + 32)])
def test_the_preset_ia3_scales_inputs_of_the_second_layers(arch: str, blocks: int, layers: int) -> None:
    settings = NetworkSettings(network_module="lycoris.kohya", network_args=("algo=ia3", "preset=ia3"))
    targets = targets_of(real_family(arch), conv=False, preset="ia3")
    plan = with_kinds(network_plan(settings, read_network_args(settings)), "ia3", targets)
    on_input = {name for name, kind in plan.kinds.items() if kind.options["train_on_input"]}
    ends = Counter(target.name.split("_", 5)[-1][-6:] for target in targets if target.name in on_input)
    assert set(ends) == {"_net_2", "lp_fc2"}
    assert len(targets) == blocks * 5 + layers * 3
    assert len(on_input) == blocks + layers


LYCORIS = {
    "lora": ("lora", {"preset=attn-mlp", "bypass_mode=True", "train_norm=False"}),
    "locon": ("lora", {"conv_dim=2", "use_tucker=False"}),
    "loha": ("loha", {"preset=full-lin", "use_cp=False"}),
    "lokr": ("lokr", {"preset=unet-convblock-only", "factor=4", "rank_dropout=0", "dora_wd=False"}),
    "ia3": ("ia3", {"preset=ia3"}),
}


@pytest.mark.parametrize("algo", LYCORIS)
def test_lycoris_words_train(
    algo: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, more = LYCORIS[algo]
    words = ["--network_module", "lycoris.kohya", "--network_args", f"algo={algo}", *sorted(more)]
    assert run(data, tmp_path, *words, *RATES, "--max_train_steps", "2") == 0
    told = capsys.readouterr().err
    assert ("network_args: bypass_mode changes nothing here" in told) == (algo == "lora")
    with open_tensors(tmp_path / "net.safetensors") as file:
        network = describe_network(file)
    assert {module.algorithm for module in network.modules.values()} == {name}
    assert network.metadata["ss_network_module"] == "lycoris.kohya"
    assert ("lora_unet_conv_in" in network.modules) == (algo in ("locon", "lokr"))  # "full" is the default
    kernels = {module.rank for module in network.modules.values() if module.kernel}
    assert kernels == ({2} if algo == "locon" else set())  # LoKr stores its kernels flattened
    # It can be gone on with, and drawn with.
    start = ["--network_module", "lycoris.kohya", "--network_args", f"algo={algo}"]
    again = ["--network_weights", tmp_path / "net.safetensors", "--dim_from_weights", *STILL]
    assert run(data, tmp_path / "again", *start, *again) == 0
    one, other = load_file(tmp_path / "net.safetensors"), load_file(tmp_path / "again" / "net.safetensors")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-7)


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
            ["--network_module", "networks.lora_fa", "--network_args", "use_tucker=True"],
            "'use_tucker' is not known",
        ),
        (
            ["--network_module", "networks.loha", "--network_args", "use_tucker=maybe"],
            "use_tucker takes True or False",
        ),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "algo=glora"],
            "algo=glora is not trained here",
        ),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "preset=attn"],
            "preset 'attn' is not known",
        ),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "train_norm=perhaps"],
            "train_norm takes True or False",
        ),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "algo=loha", "factr=1"],
            "'factr' is not known",
        ),
        (["--algorithm", "lohka"], "algorithm: 'lohka' is not trained here, did you mean 'loha'?"),
        (
            ["--algorithm", "loha", "--network_module", "networks.lokr"],
            "says it too; leave one of the two out",
        ),
        (
            ["--network_module", "networks.dylora", "--network_args", "unit=2"],
            "unit 2 does not divide the rank 3",
        ),
        (["--network_module", "networks.oft", "--network_dim", "7"], "7 blocks do not divide a layer of"),
        (["--algorithm", "boft"], "outputs needs blocks of"),
        (["--network_module", "lycoris.kohia"], "did you mean 'lycoris.kohya'?"),
    ],
)
def test_what_an_algorithm_does_not_know_is_refused(
    words: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, *words, "--max_train_steps", "1") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--algorithm", "ia3", "--network_args", "loraplus_lr_ratio=4"], "what is trained has one rate"),
        (
            ["--network_train_unet_only", "--network_args", "loraplus_text_encoder_lr_ratio=4"],
            "no such part is trained",
        ),
    ],
)
def test_a_ratio_of_lora_plus_without_use_is_noted(
    words: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, *words, *STILL) == 0
    name = words[-1].partition("=")[0]
    assert f"note: network_args: {name} does nothing: {told}" in capsys.readouterr().err
