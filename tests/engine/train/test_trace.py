"""A trace holds all that is needed to compute a step again, with diffusers' and transformers' modules alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors import safe_open  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.keys import lora_name  # noqa: E402

_SPEC = importlib.util.spec_from_file_location("tiny_bases", Path(__file__).with_name("tiny.py"))
LARGEST_ERROR = 1e-4


def tiny_bases() -> Any:
    if "tiny_bases" not in sys.modules:
        assert _SPEC
        assert _SPEC.loader
        module = importlib.util.module_from_spec(_SPEC)
        sys.modules["tiny_bases"] = module
        _SPEC.loader.exec_module(module)
    return sys.modules["tiny_bases"]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


# -------------------------------------------------------------------------------- the reader


def with_network(
    module: nn.Module, part: str, family: str, factors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The module's weights with the network's change added, W + alpha / rank · up · down; names of what was changed."""
    changed, used = {}, []
    for name, weight in module.named_parameters():
        if not name.endswith(".weight"):
            continue
        try:
            lora = lora_name(family, part, name.removesuffix(".weight"))
        except KeyError:
            continue
        if f"{lora}.lora_up.weight" not in factors:
            continue
        up, down = factors[f"{lora}.lora_up.weight"], factors[f"{lora}.lora_down.weight"]
        scale = factors[f"{lora}.alpha"] / down.shape[0]
        changed[name] = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        used.append(lora)
    return changed, used


def text_states(
    tiny: Any, trace: Mapping[str, Tensor], n: int, clip_skip: int, weights: list[Any]
) -> tuple[Any, Any]:
    """The text states of captions of up to 75 tokens, and the pooled state of the last encoder that has one."""
    found, pooled = [], None
    for index, (encoder, changed) in enumerate(zip(tiny.text_encoders, weights, strict=True), start=1):
        ids = trace[f"{n}.input_ids.te{index}"][:, 0]
        out = torch.func.functional_call(encoder, changed, (ids,), {"output_hidden_states": True})
        if tiny.family == "sdxl":
            found.append(out.hidden_states[-2])
            pooled = getattr(out, "text_embeds", pooled)
        else:
            inner = getattr(encoder, "text_model", encoder)
            found.append(inner.final_layer_norm(out.hidden_states[-clip_skip]))
    return torch.cat(found, dim=-1), pooled


def compute_again(tiny: Any, trace: Mapping[str, Tensor], clip_skip: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the traced step."""
    factors = {
        name.removeprefix("network."): tensor.clone().requires_grad_(not name.endswith(".alpha"))
        for name, tensor in trace.items()
        if name.startswith("network.")
    }
    parts = {f"te{index}": encoder for index, encoder in enumerate(tiny.text_encoders, start=1)}
    seen: list[str] = []
    total = 0.0
    n = 0
    while f"{n}.latents" in trace:
        changes = {}
        for part, module in {**parts, "unet": tiny.unet}.items():
            changes[part], used = with_network(module, part, tiny.family, factors)
            seen += used
        hidden, pooled = text_states(tiny, trace, n, clip_skip, [changes[part] for part in parts])
        extra = {}
        if tiny.family == "sdxl":
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": trace[f"{n}.size_ids"]}}
        noisy, timesteps = trace[f"{n}.noisy_latents"], trace[f"{n}.timesteps"]
        out = torch.func.functional_call(tiny.unet, changes["unet"], (noisy, timesteps, hidden), extra)
        losses = (out.sample - trace[f"{n}.target"]).square().mean(dim=(1, 2, 3))
        loss = (losses * trace[f"{n}.loss_weights"]).mean()
        loss.backward()
        total += float(loss.detach())
        n += 1
    assert set(seen) == {name.split(".")[0] for name in factors}
    return total, {name: tensor.grad for name, tensor in factors.items() if tensor.grad is not None}


# -------------------------------------------------------------------------------- tests


@pytest.mark.parametrize(("family", "v_prediction"), [("sd1", False), ("sd2", True), ("sdxl", False)])
def test_loss_and_gradients_can_be_computed_again(family: str, v_prediction: bool, tmp_path: Path) -> None:
    bases = tiny_bases()
    tiny = bases.build(family)
    bases.save_checkpoint(tiny, tmp_path / "base.safetensors")
    draw_concept(tmp_path / "data", "mirelune", pictures=4, repeats=2, seed=1)
    words = "--resolution 64 --train_batch_size 2 --gradient_accumulation_steps 2 --max_train_steps 3 --network_dim 4 "
    words += "--network_alpha 2 --network_args conv_dim=2 --learning_rate 1e-3 --lr_scheduler constant --device cpu "
    words += "--max_token_length 75 --noise_offset 0.1 --min_snr_gamma 5 --trace_steps 0,2 --quiet"
    folders = ["--base", tmp_path / "base.safetensors", "--train_data_dir", tmp_path / "data"]
    folders += ["--output_dir", tmp_path / "out"]
    more = ["--v_parameterization"] if v_prediction else []
    with pytest.raises(SystemExit) as stop:
        lora_train.main([*map(str, folders), *words.split(), *more])
    assert stop.value.code == 0
    for step in (0, 2):
        trace, metadata = read(tmp_path / "out" / "trace" / f"step-{step:06d}.safetensors")
        assert metadata["step"] == str(step)
        assert all(Path(name).is_file() for name in json.loads(metadata["0.files"]))
        loss, gradients = compute_again(tiny, trace, clip_skip=2 if family == "sd1" else 1)
        assert loss == pytest.approx(float(trace["loss"]), rel=LARGEST_ERROR)
        traced = {name.removeprefix("grad."): t for name, t in trace.items() if name.startswith("grad.")}
        assert traced
        largest = max(float(tensor.abs().max()) for tensor in traced.values())
        for name, tensor in traced.items():
            again = gradients.get(name, torch.zeros_like(tensor))
            error = (again.reshape(tensor.shape) - tensor).abs().max()
            assert float(error) <= LARGEST_ERROR * max(float(tensor.abs().max()), 1e-3 * largest), name


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
