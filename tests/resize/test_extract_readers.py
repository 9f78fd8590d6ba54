"""Extracted files in diffusers' own loader: every module is there and does what the file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.keys import lora_name  # noqa: E402
from support import tiny  # noqa: E402
from support.diffusers_reader import load_into, pipeline  # noqa: E402


def tune(modules: Any, seed: int) -> None:
    """Change every linear layer and convolution by a rank of its own, 1 to 5."""
    generator = torch.Generator().manual_seed(seed)
    for root in (modules.unet, *modules.text_encoders):
        for number, layer in enumerate(
            m for m in root.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
        ):
            flat = layer.weight.view(layer.weight.shape[0], -1)
            rank = 1 + number % 5
            left = torch.randn(flat.shape[0], rank, generator=generator)
            flat += 0.02 * left @ torch.randn(rank, flat.shape[1], generator=generator)


def loaded(pipe: Any, family: str) -> dict[str, Any]:
    """Kohya's name of every layer with a LoRA -> the change that PEFT makes to it, (o, n) float64."""
    found = {}
    parts = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
    for attribute, part in parts.items():
        for path, layer in getattr(pipe, attribute, torch.nn.Module()).named_modules():
            if hasattr(layer, "get_delta_weight"):
                change = layer.get_delta_weight("default_0").detach().double().numpy()
                found[lora_name(family, part, path)] = change.reshape(change.shape[0], -1)
    return found


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("conv", [False, True], ids=["", "conv"])
def test_diffusers_applies_every_module_in_full(
    family: str, conv: bool, extract: Any, tmp_path: Path, caplog: Any
) -> None:
    # diffusers counts SDXL's blocks by their layers, so there have to be as many as in the real one.
    layers = 2 if family == "sdxl" else 1
    tuned = tiny.build(family, layers=layers, linear=family != "sd1")
    tune(tuned, 3)
    folder = tiny.save_folder(tuned, tmp_path / "tuned")
    plain = tiny.build(family, layers=layers, linear=family != "sd1")
    base = (
        tiny.save_folder(plain, tmp_path / "base")
        if layers == 2
        else tiny.save_checkpoint(plain, tmp_path / "base.safetensors")
    )
    output = tmp_path / "lora.safetensors"
    words = ("--dim", 8, "--method", "sv_fro", "--param", 0.999, *(("--conv-dim", 8) if conv else ()))
    done = extract(folder, base, "-o", output, *words, "--save-precision", "float", "--json", "--verify")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["error"]["whole"] < 0.06
    assert len({row["rank"] for row in record["modules"]}) > 2

    pipe = pipeline(plain.unet, plain.vae, plain.text_encoders)
    load_into(pipe, output, caplog)
    theirs = loaded(pipe, family)
    assert set(theirs) == {row["module"] for row in record["modules"]}
    with open_tensors(output) as file:
        for name, change in theirs.items():
            up, down = (file.read(f"{name}.lora_{side}.weight").astype(np.float64) for side in ("up", "down"))
            scale = float(file.read(f"{name}.alpha")) / down.shape[0]
            ours = up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1) * scale
            assert np.linalg.norm(change - ours) <= 1e-3 * np.linalg.norm(ours), name


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_folders_and_single_files_give_the_same(family: str, extract: Any, tmp_path: Path) -> None:
    tuned, plain = (tiny.build(family, linear=family != "sd1") for _ in range(2))
    tune(tuned, 4)
    folders = [tiny.save_folder(m, tmp_path / name) for m, name in ((tuned, "t"), (plain, "b"))]
    files = [
        tiny.save_checkpoint(m, tmp_path / name) for m, name in ((tuned, "t.safetensors"), (plain, "b.ckpt"))
    ]
    outputs = []
    for number, (one, two) in enumerate(
        [(folders[0], folders[1]), (files[0], files[1]), (files[0], folders[1])]
    ):
        output = tmp_path / f"{number}.safetensors"
        done = extract(
            one, two, "-o", output, "--dim", 6, "--conv-dim", 3, "--json", "--save-precision", "float"
        )
        assert done.code == 0, done.err
        with open_tensors(output) as file:
            outputs.append({key: file.read(key) for key in file.tensors})
    assert set(outputs[0]) == set(outputs[1]) == set(outputs[2])
    for key, value in outputs[0].items():
        for other in outputs[1:]:
            assert value.shape == other[key].shape
            if not key.endswith("alpha"):
                assert np.allclose(np.abs(value), np.abs(other[key]), atol=1e-4)


def test_a_bare_unet_of_diffusers_is_compared_too(extract: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tuned, plain = tiny.build("sd1"), tiny.build("sd1")
    tune(tuned, 5)
    unet = tmp_path / "unet.safetensors"
    save_file({key: value.contiguous() for key, value in tuned.unet.state_dict().items()}, unet)
    base = tiny.save_checkpoint(plain, tmp_path / "base.safetensors")
    whole = tiny.save_checkpoint(tuned, tmp_path / "tuned.safetensors")
    bare, other = (json.loads(extract(path, base, "-n", "--json").out) for path in (unet, whole))
    assert bare["modules"] == [row for row in other["modules"] if row["module"].startswith("lora_unet_")]
    assert any("nothing of the text encoder" in note for note in bare["notes"])
