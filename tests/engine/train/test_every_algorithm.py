"""Every algorithm through the commands: trained, stopped and gone on with, saved, merged, inspected, resized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.networks.algorithms import asked_algorithm  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402
from lorapipe_engine.networks.metadata import parse_metadata  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.network.files.apply import attach_file  # noqa: E402
from lorapipe_inspect.cli import lora_inspect  # noqa: E402
from lorapipe_merge.cli import lora_merge  # noqa: E402
from lorapipe_resize.cli import lora_resize  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import stopped_after  # noqa: E402
from support.tiny import build, save_checkpoint  # noqa: E402

pytestmark = pytest.mark.torch

FIXED = (
    "--resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_dim 4 --network_alpha 2 --lr_scheduler constant --state_interval 0 "
    "--gradient_accumulation_steps 2 --gradient_checkpointing --ema_decay 0.5"
)
# The first of two steps holds the network to the base too.
HELD = (
    f"--preserve trigger={TRIGGER} every=2 --validation_split 0.5 --validate_every_n_steps 1 --early_stop 9"
)
# What is learned from, beside the recipe.
WAYS = {
    "pictures": f"{HELD} --timestep_sampling logit_normal",
    "flow": f"{HELD} --flow_model --timestep_sampling shift --discrete_flow_shift 2",
    "slider": "--slider pairs.toml",
}
PAIRS = """
steps = 3
[[pairs]]
target = "1girl"
positive = "1girl, smile"
"""
BASE = "base/tiny.safetensors"
RATES = ["--unet_lr", "0.02", "--text_encoder_lr", "0.02", "--max_train_steps", "2"]
LYCORIS = ["--network_module", "lycoris.kohya", "--network_args"]


def lycoris(algo: str, *words: str) -> list[str]:
    return [*LYCORIS, f"algo={algo}", *words]


LIMIT = ["--scale_weight_norms", "2"]


# What is asked for, and the algorithms of the file's modules.
KINDS: dict[str, tuple[list[str], set[str]]] = {
    "locon": (["--network_module", "locon.locon_kohya"], {"lora"}),
    "tucker": (["--network_args", "conv_dim=2", "use_tucker=True", "rs_lora=True", *LIMIT], {"lora"}),
    "scalar": (lycoris("locon", "preset=attn-mlp", "use_scalar=True", "rank_dropout=0.1"), {"lora"}),
    "dora": (["--network_args", "dora_wd=True", "conv_dim=2", "loraplus_lr_ratio=2", *LIMIT], {"lora"}),
    "dora_out": (lycoris("lokr", "preset=attn-only", "dora_wd=True", "wd_on_output=True"), {"lokr"}),
    "loha": (lycoris("loha", "preset=attn-mlp", "dora_wd=True"), {"loha"}),
    "dylora": (["--network_module", "networks.dylora", "--network_args", "unit=2"], {"lora"}),
    "lora_fa": (["--algorithm", "lora_fa", *LIMIT], {"lora"}),
    "full": (
        lycoris("full", "preset=full", "train_norm=True", "module_dropout=0.1") + LIMIT,
        {"full", "norm"},
    ),
    "norm": (["--network_args", "train_norm=True"], {"lora", "norm"}),
    "ia3": (["--algorithm", "ia3", "--network_args", "module_dropout=0.1"], {"ia3"}),
    "oft": (["--algorithm", "oft", "--network_args", "rescaled=True", *LIMIT], {"oft"}),
    "kohya_oft": (["--network_module", "networks.oft", "--network_alpha", "0.001"], {"oft"}),
    "boft": (["--algorithm", "boft", "--network_args", "block_size=8", "constraint=0.1"], {"boft"}),
}


# The others take as long each, and are alike.
QUICK = ("dora", "full", "oft")
EVERY = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
OTHER_WAYS = [
    (kind, way) if kind == "dora" else pytest.param(kind, way, marks=pytest.mark.slow)
    for kind in KINDS
    for way in ("flow", "slider")
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and pairs to learn from, and a base with few layers to learn on."""
    root = draw_data(tmp_path_factory, pictures=2, repeats=2)
    (root / "pairs.toml").write_text(PAIRS)
    save_checkpoint(build("sd1"), root / BASE)
    return root


def train(data: Path, out: Path, *words: object, way: str = "pictures") -> int:
    own = WAYS[way].replace("pairs.toml", str(data / "pairs.toml")).split()
    own += ["--base", str(data / BASE)]
    own += [] if way == "slider" else ["--train_data_dir", str(data)]
    return status_of(lora_train, *FIXED.split(), *own, "--output_dir", out, *words)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The network of a kind after two steps, made once for each way."""
    made: dict[tuple[str, str], Path] = {}

    def of(kind: str, way: str = "pictures") -> Path:
        if (kind, way) not in made:
            out = tmp_path_factory.mktemp(kind)
            assert train(data, out, *KINDS[kind][0], *RATES, way=way) == 0
            made[kind, way] = out / "net.safetensors"
        return made[kind, way]

    return of


def go_on(kind: str, way: str, trained: Any, data: Path, out: Path) -> None:
    """Train, stop after the first step, go on: all that is saved in the end is that of the run that was not stopped."""
    calm, words = trained(kind, way), KINDS[kind][0]
    with stopped_after(1):
        assert train(data, out, *words, *RATES, way=way) == 130
    assert train(data, out, *words, *RATES, way=way) == 0
    kinds = ("", "-ema") if way == "slider" else ("", "-ema", "-best", "-best-ema")
    for name in (f"net{one}.safetensors" for one in kinds):
        one, other = load_file(calm.with_name(name)), load_file(out / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize(("kind", "way"), OTHER_WAYS)
def test_flow_and_sliders_go_on_bit_for_bit(
    kind: str, way: str, trained: Any, data: Path, tmp_path: Path
) -> None:
    go_on(kind, way, trained, data, tmp_path)
    tensors = load_file(trained(kind, way))
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(not torch.equal(tensor, load_file(trained(kind))[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("kind", EVERY)
def test_it_is_trained_and_goes_on_bit_for_bit(kind: str, trained: Any, data: Path, tmp_path: Path) -> None:
    calm, (words, algorithms) = trained(kind), KINDS[kind]
    with open_tensors(calm) as file:
        network = describe_network(file)
        arguments = json.loads(network.metadata["ss_network_args"])
    assert {module.algorithm for module in network.modules.values()} == algorithms
    assert {module.part for module in network.modules.values()} >= {"unet", "te1"}
    if "--algorithm" in words and kind != "lora_fa":
        assert (network.metadata["ss_network_module"], arguments["algo"]) == ("lycoris.kohya", kind)
    go_on(kind, "pictures", trained, data, tmp_path)


@pytest.mark.parametrize("kind", EVERY)
def test_it_is_merged_inspected_and_resized(
    kind: str, trained: Any, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, merged, small = trained(kind), tmp_path / "merged.safetensors", tmp_path / "small.safetensors"
    base = data / BASE
    assert status_of(lora_merge, base, path, "-o", merged, "--save_precision", "float", "--verify") == 0
    assert status_of(lora_inspect, "check", path) == 0, capfd.readouterr().out
    assert "cannot be used" not in capfd.readouterr().out
    if not KINDS[kind][1] & {"ia3", "oft", "boft"}:
        assert status_of(lora_resize, path, "-o", small, "--new-rank", "2") == 0
        with open_tensors(path) as one, open_tensors(small) as other:
            assert describe_network(one).modules.keys() == describe_network(other).modules.keys()
    # Merged into the base and beside it, the prediction is the same.
    answers = []
    for source in (base, merged):
        family = open_family(load_base(source, tokenizer_dir=base.parent / "tokenizer"))
        if source is base:
            attach_file(family, path)
        torch.manual_seed(0)
        noisy = torch.randn(2, family.latent_channels, 8, 8)
        tokens = family.text.tokenize([TRIGGER, "a scene"])
        with torch.no_grad():
            text = family.text.encode(tokens)
            answers.append(family.predict(noisy, torch.tensor([300, 700]), text))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", EVERY)
def test_it_is_trained_on_from_its_file(kind: str, trained: Any, data: Path, tmp_path: Path) -> None:
    path, words = trained(kind), KINDS[kind][0]
    still = ["--unet_lr", "1e-12", "--text_encoder_lr", "1e-12", "--max_train_steps", "1"]
    more = ["--network_weights", path, "--dim_from_weights"]
    assert train(data, tmp_path, *words, *more, *still) == 0
    one, other = load_file(path), load_file(tmp_path / "net.safetensors")
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-7)


SAID = {
    "dora": ("networks.lora", {"dora_wd": "True"}),
    "loha": ("lycoris.kohya", {"algo": "loha", "dora_wd": "True"}),
    "dora_out": ("lycoris.kohya", {"algo": "lokr", "dora_wd": "True", "wd_on_output": "True"}),
    "dylora": ("networks.lora", {}),
    "full": ("lycoris.kohya", {"algo": "full"}),
    "ia3": ("lycoris.kohya", {"algo": "ia3"}),
    "oft": ("lycoris.kohya", {"algo": "diag-oft", "rescaled": "True"}),
    "boft": ("lycoris.kohya", {"algo": "boft"}),
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in SAID])
def test_its_file_trained_on_by_no_name_says_what_it_is(
    kind: str, trained: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trained(kind)
    capsys.readouterr()
    more = ["--network_weights", path, "--dim_from_weights", "--network_dim", "2", "--network_alpha", "0.01"]
    assert train(data, tmp_path, *more, "--max_train_steps", "1", "--learning_rate", "1e-4") == 0
    told = capsys.readouterr().err
    with open_tensors(tmp_path / "net.safetensors") as file:
        metadata = parse_metadata(file.metadata)
    module, arguments = SAID[kind]
    with open_tensors(path) as file:
        before = parse_metadata(file.metadata)
    own = metadata["ss_network_args"]
    assert (metadata["ss_network_module"], {name: own.get(name) for name in arguments}) == (module, arguments)
    # What else is said is what the file said.
    rest = {name: value for name, value in own.items() if name not in arguments}
    assert rest == {name: before["ss_network_args"][name] for name in rest}
    if algorithm := asked_algorithm(None, module, [f"{name}={value}" for name, value in arguments.items()]):
        assert ("network of rank" in told) is algorithm.has_rank
        if algorithm.scaled:
            assert metadata["ss_network_dim"] == before["ss_network_dim"]
        if not algorithm.has_rank:
            assert "scales every change" not in told
