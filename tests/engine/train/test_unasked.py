"""What a run takes where nothing is said, as the well-known guide has it; and what that costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.command.options import build_settings  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.families import get_family  # noqa: E402
from lorapipe_engine.nn.attach import attach  # noqa: E402
from lorapipe_engine.settings import PARTS, NetworkSettings, TrainSettings, with_base_defaults  # noqa: E402
from lorapipe_engine.train.network.arguments import network_plan, read_network_args  # noqa: E402
from lorapipe_engine.train.network.choice import choose_layers  # noqa: E402
from lorapipe_engine.train.plan import choose_precision  # noqa: E402

from .test_families import real_family  # noqa: E402

pytestmark = pytest.mark.torch


def train(*words: object, home: Path) -> subprocess.CompletedProcess[str]:
    code = "from lorapipe_engine.cli import train_main; train_main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which only the base, the pictures and a length are said, where it was started."""
    home = tmp_path_factory.mktemp("home")
    draw_concept(home / "dataset", TRIGGER, pictures=2, repeats=1, seed=3)
    done = train("dataset", "--base", "demo", "--max_train_epochs", 3, home=home)
    assert done.returncode == 0, done.stderr
    names = ("last-000001", "last-000002", "last")
    assert done.stdout.splitlines() == [f"output/{name}.safetensors" for name in names]
    return home / "output"


def test_a_run_of_which_nothing_is_said(bare: Path) -> None:
    with open_tensors(bare / "last.safetensors") as file:
        metadata = file.metadata
        dtypes = {info.dtype for name, info in file.tensors.items() if not name.endswith(".alpha")}
        names = set(file.tensors)
    assert dtypes == {"F16"}  # it was computed in float32
    assert (metadata["ss_network_dim"], float(metadata["ss_network_alpha"])) == ("64", 64.0)
    assert not any("_conv1" in name or "_conv2" in name for name in names)
    assert (metadata["ss_clip_skip"], metadata["ss_max_token_length"], metadata["ss_seed"]) == (
        "2",
        "225",
        "42",
    )
    assert metadata["ss_min_snr_gamma"] == "5.0"
    assert (metadata["ss_noise_offset"], metadata["ss_multires_noise_iterations"]) == ("None", "None")
    assert metadata["ss_gradient_checkpointing"] == "False"
    assert metadata["ss_optimizer"].startswith("torch.optim.adamw.AdamW(")
    assert metadata["ss_lr_scheduler"] == "cosine"
    assert (float(metadata["ss_unet_lr"]), float(metadata["ss_text_encoder_lr"])) == (1e-4, 5e-5)
    assert metadata["ss_enable_bucket"] == "True"
    assert metadata["ss_max_bucket_reso"] == "1536"
    assert (metadata["ss_shuffle_caption"], metadata["ss_keep_tokens"]) == ("False", "0")
    assert len(list((bare / "logs").rglob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    ("family", "prediction", "rank", "clip_skip", "gamma"),
    [
        ("sd1", "epsilon", 64, 2, 5.0),
        ("sd1", "v_prediction", 64, 2, None),
        ("sd2", "v_prediction", 64, None, None),
        ("sdxl", "epsilon", 32, None, 5.0),
    ],
)
def test_what_each_base_is_trained_with(
    family: str, prediction: str, rank: int, clip_skip: int | None, gamma: float | None
) -> None:
    model, data, network, optimizer, loss, run = build_settings(PARTS, {})[0]
    said = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    assert (data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps) == (256, 1536, 64)
    found = with_base_defaults(said, get_family(family), prediction, None)
    assert (found.network.network_dim, found.network.network_alpha) == (rank, float(rank))
    assert (found.model.clip_skip, found.loss.min_snr_gamma) == (clip_skip, gamma)


def test_precision_goes_by_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of the 3000 series on have bf16; those of the 10 series have it by emulation alone, which is no help."""
    for has, wanted in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert choose_precision(None, torch.device("cuda")) == wanted
    assert choose_precision(None, torch.device("cpu")) == "no"


@pytest.mark.slow
def test_a_step_costs_three_quarters_of_a_full_one_and_768_pixels_cost_2_8_times_512() -> None:
    """Counted operations of SD 1.5's UNet, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    def operations(rank: int, side: int = 512) -> int:
        """Of a step with a LoRA of this rank, with rank 0 of one that trains the UNet itself."""
        family = real_family("sd15")
        unet: Any = family.denoiser
        unet.requires_grad_(not rank)
        if rank:
            settings = NetworkSettings(network_dim=rank, network_alpha=float(rank))
            args = read_network_args(settings)
            choice = choose_layers(network_plan(settings, args), args, family, ["unet"])
            attach([unet], choice.targets, choice.plan)
        with torch.device("meta"):
            latents = torch.zeros(1, 4, side // 8, side // 8)
            text, time = torch.zeros(1, 77, 768), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            unet(latents, time, text).sample.sum().backward()
        return int(counter.get_total_flops())

    whole, trained = operations(0), operations(32)
    assert trained / whole == pytest.approx(0.74, abs=0.01)
    assert operations(64) / whole == pytest.approx(0.77, abs=0.01)
    assert operations(32, side=768) / trained == pytest.approx(2.83, abs=0.06)
