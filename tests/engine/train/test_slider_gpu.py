"""Sliders on a CUDA device: captured steps train what plain ones train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from support.called import status_of  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAIRS = """
steps = 6
[[pairs]]
target = "1girl, solo"
positive = "1girl, solo, smile"
negative = "1girl, solo, frown"
"""


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--network_args", "dora_wd=True"),
        ("--network_module", "networks.oft", "--unet_lr", "5e-5"),  # at 1e-3 two plain runs lie 10 % apart
        ("--gradient_checkpointing",),
    ],
)
def test_captured_steps_train_what_plain_ones_train(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    (tmp_path / "pairs.toml").write_text(PAIRS)
    words = "--base demo --resolution 64 --network_dim 4 --max_token_length 75 --output_name net --quiet"
    words += " --network_train_unet_only --save_precision float --train_batch_size 2 --lr_scheduler constant"
    words += f" --mixed_precision no --unet_lr 1e-3 --max_train_steps 24 --slider {tmp_path / 'pairs.toml'}"
    found = []
    for capture in ("off", "auto"):
        out = tmp_path / capture
        asked = (*words.split(), "--step_capture", capture, "--output_dir", out, *more)
        assert status_of(lora_train, *asked) == 0
        said = capfd.readouterr().err
        assert "not captured" not in said
        assert "cannot be captured" not in said
        rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
        found.append(([row["loss/current"] for row in rows], load_file(out / "net.safetensors")))
    (plain, one), (captured, other) = found
    assert captured == pytest.approx(plain, rel=1e-2)
    apart = sum(float((one[key].float() - other[key].float()).square().sum()) for key in one) ** 0.5
    from_zero = [key for key in one if key.endswith(("lora_up.weight", "oft_blocks"))]
    learned = sum(float(one[key].float().square().sum()) for key in from_zero) ** 0.5
    assert apart < 0.05 * learned
