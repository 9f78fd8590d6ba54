"""Training that goes on from a LoRA file, and networks merged into the base before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.models.bases import resolve_base  # noqa: E402
from lorapipe_engine.settings import NetworkSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.network.files.start_from import merge_into_base  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--max_train_steps 1 --lr_scheduler constant"
)
# Rates at which a step changes nothing that matters.
STILL = ["--unet_lr", "1e-12", "--text_encoder_lr", "1e-12"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=2)


def run(data: Path, out: Path, *more: str) -> int:
    return status_of(lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *more)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of rank 4 and alpha 1 with a convolution's rank of 2, after a coarse step."""
    out = tmp_path_factory.mktemp("first")
    rates = ["--unet_lr", "0.05", "--text_encoder_lr", "0.05"]
    more = ["--network_dim", "4", "--network_alpha", "1", "--network_args", "conv_dim=2", "conv_alpha=0.5"]
    assert run(data, out, *more, *rates) == 0
    return out / "net.safetensors"


def deltas(path: Path) -> dict[str, Any]:
    """Each module's change, as any reader computes it from the file."""
    tensors = load_file(path)
    found = {}
    for name in {key.partition(".")[0] for key in tensors}:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        found[name] = float(tensors[f"{name}.alpha"]) / len(down) * (up.flatten(1) @ down.flatten(1))
    return found


def test_goes_on_at_the_strength_of_the_file(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sd-scripts keeps the new network's scale (4 / 4 here) beside the file's alpha: its file is then 4 times off."""
    more = ["--network_dim", "4", "--network_alpha", "4", "--network_args", "conv_dim=2", "conv_alpha=2"]
    assert run(data, tmp_path, *more, *STILL, "--network_weights", str(trained)) == 0
    before, after = deltas(trained), deltas(tmp_path / "net.safetensors")
    assert before.keys() == after.keys()
    assert max(float(change.abs().max()) for change in before.values()) > 1e-3
    for name, change in before.items():
        torch.testing.assert_close(after[name], change, rtol=1e-4, atol=1e-7)
    assert f"network_weights: {len(before)} modules from" in capsys.readouterr().err


def test_ranks_and_alphas_from_the_file(trained: Path, data: Path, tmp_path: Path) -> None:
    """Ranks that differ, and a module without alpha, which then is the rank; dropouts and LoRA+ stay."""
    tensors = load_file(trained)
    names = sorted({key.partition(".")[0] for key in tensors})
    short, bare = names[0], names[-1]
    tensors[f"{short}.lora_down.weight"] = tensors[f"{short}.lora_down.weight"][:1].clone()
    tensors[f"{short}.lora_up.weight"] = tensors[f"{short}.lora_up.weight"][:, :1].clone()
    del tensors[f"{bare}.alpha"]
    mixed = tmp_path / "mixed.safetensors"
    save_file(tensors, mixed)
    words = ["--network_args", "rank_dropout=0.5", "loraplus_lr_ratio=4"]
    more = ["--network_weights", str(mixed), "--dim_from_weights", *words, *STILL]
    assert run(data, tmp_path, *more) == 0
    result = load_file(tmp_path / "net.safetensors")
    assert {key for key in result if not key.endswith("alpha")} == {
        k for k in tensors if not k.endswith("alpha")
    }
    for key, tensor in tensors.items():
        assert result[key].shape == tensor.shape, key
        torch.testing.assert_close(result[key].float(), tensor.float(), rtol=1e-4, atol=1e-7)
    assert float(result[f"{bare}.alpha"]) == len(tensors[f"{bare}.lora_down.weight"])
    rows = [json.loads(line) for line in (tmp_path / "net.metrics.jsonl").read_text().splitlines()]
    assert rows[0]["lr/unet plus"] == pytest.approx(4e-12)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "1.0")


def test_modules_that_fit_nowhere_are_told(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--network_dim", "4", "--network_weights", str(trained), *STILL]
    assert run(data, tmp_path, *more) == 0
    told = capsys.readouterr().err
    assert "modules of the file are not in this network, first" in told
    assert "--dim_from_weights takes all" in told


def told_of(path: Path) -> list[str]:
    """What a file's metadata say of its network."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return [metadata[f"ss_network_{name}"] for name in ("module", "dim", "alpha", "args")]


FROM_FILE = ["--dim_from_weights", "--network_weights"]
LYCORIS = ["--network_module", "lycoris.kohya", "--network_args"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--algorithm", "loha"], "is of the algorithm lora, not loha; leave algorithm"),
        ([*LYCORIS, "algo=lokr", "preset=attn-only", "factor=4"], "not lokr; leave network_module"),
    ],
)
def test_another_algorithm_than_the_file_has_is_refused(
    more: list[str],
    told: str,
    trained: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(data, tmp_path, *FROM_FILE, str(trained), *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lora-train: error: dim_from_weights: ")
    assert told in error
    assert error.endswith("out, or leave --dim_from_weights out")
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_the_file_has_otherwise_is_noted_and_not_recorded(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "conv_dim=2",
        "conv_alpha=4",
        "rs_lora=True",
        "use_scalar=True",
        "dora_wd=True",
        "train_norm=False",
    ]
    more = ["--network_dim", "99", "--network_args", *words, *STILL]
    assert run(data, tmp_path, *FROM_FILE, str(trained), *more) == 0
    told = capsys.readouterr().err
    idle = "conv_alpha=4, rs_lora=True, dora_wd=True, network_dim=99"
    assert f"alphas, so these do nothing: {idle}; leave them out, or leave --dim_from_weights out" in told
    assert told_of(tmp_path / "net.safetensors") == [
        "networks.lora",
        "4",
        "1.0",
        json.dumps({"use_scalar": "True", "conv_alpha": "0.5", "conv_dim": "2"}),
    ]
    scalars = len(deltas(trained))  # one for each module is trained beside the file's values
    values = sum(tensor.numel() for key, tensor in load_file(trained).items() if not key.endswith("alpha"))
    assert f"{scalars} modules, {values + scalars:,} values" in told


def test_options_that_agree_with_the_file_are_fine(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        "--network_dim",
        "4",
        "--network_alpha",
        "1",
        *LYCORIS,
        "algo=locon",
        "conv_dim=2",
        "conv_alpha=0.5",
    ]
    assert run(data, tmp_path, *FROM_FILE, str(trained), *more, *STILL) == 0
    assert "dim_from_weights" not in capsys.readouterr().err
    told = told_of(tmp_path / "net.safetensors")
    assert told[:3] == ["lycoris.kohya", "4", "1.0"]


def test_whole_matrices_have_no_rank_to_tell(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--algorithm", "lokr", "--network_args", "factor=4", "preset=attn-only"]
    assert run(data, tmp_path / "a", *words, "--network_dim", "1000", *STILL) == 0
    first, bare = tmp_path / "a" / "net.safetensors", tmp_path / "bare.safetensors"
    save_file(load_file(first), bare)
    for path, dim in ((first, "1000"), (bare, "None")):
        assert run(data, tmp_path / path.stem, *FROM_FILE, str(path), *words, *STILL) == 0
        assert told_of(tmp_path / path.stem / "net.safetensors")[:2] == ["lycoris.kohya", dim]
    assert "network of LoKr: 104 modules" in capsys.readouterr().err
    more = [*FROM_FILE, str(bare), "--algorithm", "lokr", "--network_args", "factor=8"]
    assert run(data, tmp_path / "c", *more, *STILL) == 0
    assert "so this does nothing: factor=8; leave it out" in capsys.readouterr().err
    more = [*FROM_FILE, str(bare), "--network_dropout", "0.1", "--network_args", "module_dropout=0.1"]
    assert run(data, tmp_path / "d", *more, *STILL) == 0
    assert "so this does nothing: network_dropout=0.1; leave it out" in capsys.readouterr().err
    assert "factor" not in told_of(tmp_path / "c" / "net.safetensors")[3]


def test_what_the_new_file_lacks_is_told(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text modules where the UNet alone is trained, a layer that the model has not, a tensor of no module."""
    tensors = load_file(trained)
    module = next(key for key in tensors if key.startswith("lora_unet_down")).partition(".")[0]
    odd = "lora_unet_down_blocks_9_attentions_0_proj_in"
    tensors |= {f"{odd}.lora_down.weight": torch.ones(2, 32), f"{odd}.lora_up.weight": torch.ones(32, 2)}
    tensors[f"{module}.strange"] = torch.ones(2)
    save_file(tensors, tmp_path / "odd.safetensors")
    start = ["--network_weights", str(tmp_path / "odd.safetensors"), *STILL]
    for more in (["--dim_from_weights", "--network_train_unet_only"], ["--network_dim", "4"]):
        assert run(data, tmp_path, *start, *more, "--overwrite") == 0
        told = capsys.readouterr().err
        assert f"note: 2 modules or tensors fit nowhere, first '{odd}'" in told
        is_left = "--dim_from_weights" not in more
        assert ("--dim_from_weights takes all" in told) == is_left
        assert ("modules of the file are of a part that is not trained" in told) != is_left


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--network_dim", "8", "--network_weights", "FILE"], "--dim_from_weights, or --network_dim 4"),
        (["--dim_from_weights"], "so give that file too"),
        (["--network_weights", "missing.safetensors"], "missing.safetensors"),
        (["--base_weights_multiplier", "0.5"], "1 numbers for 0 base_weights"),
        (["--network_weights", "BASE"], "not a LoRA"),
    ],
)
def test_odd_starts_are_one_line(
    more: list[str], told: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FILE": str(trained), "BASE": str(resolve_base("demo"))}
    assert run(data, tmp_path, *(places.get(word, word) for word in more)) == 2
    error = capsys.readouterr().err.splitlines()
    assert told in error[-1]
    assert error[-1].startswith("lora-train: error: ")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "none of its modules fits"),
        ("lora_unet_input_blocks_4_1_proj_in", ("does not fit the model's layer", "its change has shape")),
    ],
)
def test_a_file_of_another_model(
    name: str, told: str | tuple[str, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {f"{name}.lora_down.weight": torch.ones(2, 640), f"{name}.lora_up.weight": torch.ones(640, 2)}
    save_file(odd, tmp_path / "xl.safetensors")
    for index, option in enumerate(("--network_weights", "--base_weights")):
        assert run(data, tmp_path, option, str(tmp_path / "xl.safetensors")) == 2
        want = told if isinstance(told, str) else told[index]
        assert want in capsys.readouterr().err.splitlines()[-1]


def test_base_weights_change_the_base(trained: Path) -> None:
    plain, merged = (open_family(load_base(resolve_base("demo"))) for _ in range(2))
    settings = NetworkSettings(base_weights=(trained, trained), base_weights_multiplier=(0.5,))
    notes = merge_into_base(settings, merged)
    assert ["at 0.5 (" in notes[0], "at 1 (" in notes[1], "fit nowhere" in "".join(notes)] == [
        True,
        True,
        False,
    ]
    changes = deltas(trained)
    seen = 0
    others = {(part, path): module for part, path, module in merged.target_modules(conv=True)}
    for part, path, module in plain.target_modules(conv=True):
        change = changes[plain.lora_name(part, path)].reshape(module.weight.shape)
        want = module.weight + 1.5 * change
        torch.testing.assert_close(others[part, path].weight, want, rtol=1e-5, atol=1e-6)
        seen += 1
    assert seen == len(changes)


def one_layer(family: Any) -> tuple[str, Any]:
    """A linear layer of the UNet without a bias: its path and itself."""
    rows = family.target_modules(conv=False)
    return next((path, layer) for part, path, layer in rows if part == "unet" and path.endswith("attn1.to_q"))


def test_base_weights_of_a_peft_folder(tmp_path: Path) -> None:
    """r 2, lora_alpha 6: three times the product of the factors; a tensor of no module is told."""
    plain, merged = (open_family(load_base(resolve_base("demo"))) for _ in range(2))
    path, layer = one_layer(plain)
    down, up = torch.randn(2, layer.weight.shape[1]), torch.randn(len(layer.weight), 2)
    name = f"base_model.model.{path}"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, "foo.bar": torch.ones(2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    notes = merge_into_base(NetworkSettings(base_weights=(tmp_path,)), merged)
    want = layer.weight + 3 * up @ down
    torch.testing.assert_close(one_layer(merged)[1].weight, want, rtol=1e-4, atol=1e-5)
    assert "(1 modules); note: 1 modules or tensors fit nowhere, first 'foo.bar'" in notes[0]


@pytest.mark.parametrize(
    ("names", "more", "text"),
    [
        (("base_model.model.{path}",), (), "PEFT's tensors without their strengths"),
        (("{kohya}", "unet.{path}"), (), "names one layer twice"),
        (("{kohya}",), ("diff_b",), "changes a bias, which its layer has not"),
        (("{kohya}",), ("scale",), "scale changes what its module does"),
        (("{kohya}", "lora_te2_text_model_encoder_layers_0_mlp_fc1"), (), "mixes names of"),
    ],
)
def test_base_weights_that_are_not_understood(
    names: tuple[str, ...], more: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    family = open_family(load_base(resolve_base("demo")))
    path, layer = one_layer(family)
    rows, columns = layer.weight.shape
    file = tmp_path / "odd.safetensors"
    tensors = {}
    for name in names:
        whole = name.format(path=path, kohya=family.lora_name("unet", path))
        ends = ("lora_A", "lora_B") if "." in whole else ("lora_down", "lora_up")
        tensors[f"{whole}.{ends[0]}.weight"] = torch.ones(2, columns)
        tensors[f"{whole}.{ends[1]}.weight"] = torch.ones(rows, 2)
        tensors |= {f"{whole}.{suffix}": torch.ones(rows) for suffix in more}
    save_file(tensors, file)
    with pytest.raises(InputError, match=text) as caught:
        merge_into_base(NetworkSettings(base_weights=(file,)), family)
    assert str(caught.value).startswith("base_weights: ")
    assert "odd.safetensors" in str(caught.value)


def test_base_weights_on_the_command_line(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first loss is that of the merged base: training on with the file itself gives the same one."""
    losses = []
    for name, more in {
        "base": ["--base_weights", str(trained), "--network_dim", "2"],
        "file": ["--network_weights", str(trained), "--dim_from_weights"],
    }.items():
        assert run(data, tmp_path / name, *more, *STILL) == 0
        losses.append(json.loads((tmp_path / name / "net.metrics.jsonl").read_text())["loss/current"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "merged into the base at 1" in capsys.readouterr().err
