"""A trace holds all that is needed to compute a step again, with diffusers' and transformers' modules alone."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors import safe_open  # noqa: E402
from torch import Tensor  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from support import full_bases  # noqa: E402
from support import recompute_trace as reader  # noqa: E402
from support import tiny as bases  # noqa: E402

HERE = Path(__file__).parent
FULL = "LORAPIPE_FULL_MODELS"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def traced(base: Path, folder: Path, *more: str) -> list[Path]:
    """The traces of the first and the last of three steps with dropouts off and everything else on."""
    draw_concept(folder / "data", "mirelune", pictures=4, repeats=2, seed=1)
    words = "--resolution 64 --train_batch_size 2 --gradient_accumulation_steps 2 --max_train_steps 3 --network_dim 4 "
    words += "--network_alpha 3 --network_args conv_dim=2 --learning_rate 1e-3 --lr_scheduler constant --device cpu "
    words += "--max_token_length 75 --noise_offset 0.1 --min_snr_gamma 5 --trace_steps 0,2 --quiet"
    places = ["--base", base, "--train_data_dir", folder / "data", "--output_dir", folder / "out"]
    with pytest.raises(SystemExit) as stop:
        lora_train.main([*map(str, places), *words.split(), *more])
    assert stop.value.code == 0
    return [folder / "out" / "trace" / f"step-{step:06d}.safetensors" for step in (0, 2)]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_loss_and_gradients_can_be_computed_again(family: str, tmp_path: Path) -> None:
    tiny = bases.build(family)
    bases.save_checkpoint(tiny, tmp_path / "base.safetensors")
    skip = 2 if family == "sd1" else 1
    for path in traced(tmp_path / "base.safetensors", tmp_path, *v_prediction(family)):
        trace, metadata = read(path)
        assert metadata["step"] == str(int(path.stem[-6:]))
        assert all(Path(name).is_file() for name in json.loads(metadata["0.files"]))
        found = reader.compare(reader.Base(tiny.unet, tiny.text_encoders), trace, skip)
        assert found.gradients > 100
        assert found.largest <= reader.LIMIT, found


def v_prediction(family: str) -> list[str]:
    return ["--v_parameterization"] if family.startswith("sd2") else []


def test_the_reader_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the docs say it: a trace and a diffusers folder, on the command line; and a trace that was tampered with."""
    from safetensors.torch import save_file

    base = bases.save_folder(bases.build("sdxl"), tmp_path / "base")
    path = traced(base, tmp_path)[1]
    assert in_command_line(path, "--base", base) == 0
    assert "agrees" in capsys.readouterr().out
    trace, _ = read(path)
    key = next(name for name in trace if name.startswith("grad.lora_unet") and "input_blocks" in name)
    trace[key] = trace[key] * 1.01
    save_file(trace, tmp_path / "odd.safetensors")
    assert in_command_line(tmp_path / "odd.safetensors", "--base", base) == 1
    assert "DIFFERS" in capsys.readouterr().out


def in_command_line(*words: object) -> int:
    before, sys.argv = sys.argv, ["recompute_trace.py", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as stop:
            reader.main()
    finally:
        sys.argv = before
    return int(stop.value.code or 0)


@pytest.mark.slow
@pytest.mark.skipif(
    FULL not in os.environ, reason=f"{FULL} names the architectures to try, of sd15,sd21,sdxl"
)
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_published_architectures(name: str, tmp_path: Path) -> None:
    """Needs up to 16 GB of memory and 7 GB of disk (SDXL); see docs/training.md."""
    if name not in os.environ[FULL].split(","):
        pytest.skip(f"{FULL} does not name it")
    base = full_bases.save_full(name, tmp_path / "base")
    paths = traced(base, tmp_path, *v_prediction(name))
    gc.collect()
    modules = reader.read_base(base)
    for path in paths:
        found = reader.compare(modules, read(path)[0], 2 if name == "sd15" else 1)
        print(f"{name}: {path.name}: {found}")
        assert found.largest <= reader.LIMIT, found


def test_prediction_target_and_noise_fit_together(tmp_path: Path) -> None:
    """ε-prediction: the target is the noise, and x_t = √ᾱ x + √(1-ᾱ) ε."""
    draw_concept(tmp_path / "data", "mirelune", pictures=2, repeats=1, seed=1)
    words = (
        "--base demo --resolution 64 --max_train_steps 1 --network_dim 2 --device cpu --trace_steps 0 --quiet"
    )
    folders = ["--train_data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    folders += ["--trace_dir", str(tmp_path / "elsewhere")]
    with pytest.raises(SystemExit):
        lora_train.main([*words.split(), *folders])
    trace, _ = read(tmp_path / "elsewhere" / "step-000000.safetensors")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)[trace["0.timesteps"]].float().view(-1, 1, 1, 1)
    mixed = alpha.sqrt() * trace["0.latents"] + (1 - alpha).sqrt() * trace["0.noise"]
    torch.testing.assert_close(trace["0.noisy_latents"], mixed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trace["0.target"], trace["0.noise"])
    difference = (trace["0.prediction"] - trace["0.target"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(trace["0.losses"], difference)
