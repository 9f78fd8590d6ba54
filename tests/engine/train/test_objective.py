"""The objective's options together: what is refused, what a batch's loss is, how norms are held back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import Adapter  # noqa: E402
from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.data.microbatch import MicroBatch  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import Conditioning, Tokens  # noqa: E402
from lorapipe_engine.train.network.weight_norms import NormLimit  # noqa: E402
from lorapipe_engine.train.objective.diffusion import Diffusion, NoiseSchedule, loss_weights  # noqa: E402
from lorapipe_engine.train.step.forward import forward  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "data/weights/f_hash_norm.json"


PREDICTION = {None: None, False: "epsilon", True: "v_prediction"}

# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("loss", "v", "word"),
    [
        (LossSettings(adaptive_noise_scale=0.01), None, "noise_offset"),
        (LossSettings(scale_v_pred_loss_like_noise_pred=True), False, "for v-prediction"),
        (LossSettings(v_pred_like_loss=0.5), True, "for epsilon"),
        (LossSettings(loss_type="huber", huber_c=0.0), None, "above 0"),
    ],
)
def test_options_that_mean_nothing_together(loss: LossSettings, v: bool | None, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as error:
        Diffusion.check(loss, PREDICTION[v])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "v", "word"),
    [
        (LossSettings(min_timestep=500, max_timestep=400), None, "timestep 400 alone"),
        (LossSettings(zero_terminal_snr=True), False, "v-prediction"),
        (LossSettings(loss_type="huber", huber_scale=2.0), None, "huber_scale is not used"),
        (LossSettings(noise_offset=1.0), None, "usual are 0.05"),
    ],
)
def test_options_worth_a_note(loss: LossSettings, v: bool | None, word: str) -> None:
    (note,) = Diffusion.check(loss, PREDICTION[v])
    assert word in note


def test_usual_options_are_silent() -> None:
    assert Diffusion.check(LossSettings(min_snr_gamma=5.0, noise_offset=0.05), "epsilon") == []
    v = LossSettings(zero_terminal_snr=True, scale_v_pred_loss_like_noise_pred=True)
    assert Diffusion.check(v, "v_prediction") == []


# ------------------------------------------------------------------------------------------- a batch's loss


@dataclass
class Halving:
    """A base whose prediction is half of what it is shown."""

    def draw_latents(self, moments: Any, rows: slice, total: int) -> Any:
        mean, deviation = moments.chunk(2, dim=1)
        return (mean + deviation * torch.randn(total, *mean.shape[1:], device=mean.device)[rows]) * 0.18215

    @property
    def text(self) -> Any:
        return self

    def encode(self, tokens: Any) -> Conditioning:
        return Conditioning(torch.zeros(1), None)

    def predict(self, noisy: Any, timesteps: Any, conditioning: Any, geometry: Any) -> Any:
        return noisy / 2


def loss_in(batch: MicroBatch, options: LossSettings) -> Any:
    """The loss of a batch, as a step has it."""
    prediction = PREDICTION[bool(options.v_parameterization)] or ""
    objective = Diffusion(options, prediction, batch.latents.device)
    made = forward(cast(Family, Halving()), objective, batch)
    return (made.losses * made.noised.weights * batch.weights).mean()


def loss_of(
    objective: LossSettings, weights: list[float] | None = None, mask: Any = None, seed: int = 0
) -> float:
    """The loss of two pictures of deviation 0."""
    torch.manual_seed(seed)
    latents = torch.cat([torch.full((2, 4, 8, 8), 3.0), torch.zeros(2, 4, 8, 8)], dim=1)
    batch = MicroBatch(latents, Tokens(()), torch.tensor(weights or [1.0, 1.0]), mask=mask)
    return float(loss_in(batch, objective))


def test_sample_weights_are_those_of_regularisation() -> None:
    both, first, second = (loss_of(LossSettings(), w) for w in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0]))
    assert both == pytest.approx(first + second)
    assert loss_of(LossSettings(), [1.0, 0.25]) == pytest.approx(first + second / 4)


def test_a_mask_counts_its_share_and_is_not_renormalised() -> None:
    left = torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1
    whole = loss_of(LossSettings())
    parts = loss_of(LossSettings(), mask=left) + loss_of(LossSettings(), mask=1 - left)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert loss_of(LossSettings(), mask=torch.full((2, 1, 8, 8), 0.5)) == pytest.approx(whole / 2, rel=1e-5)


def test_weights_apply_at_the_drawn_timestep() -> None:
    plain = LossSettings(min_timestep=20, max_timestep=20)
    snr = LossSettings(min_timestep=20, max_timestep=20, min_snr_gamma=5.0)
    weight = loss_weights(torch.tensor([20]), NoiseSchedule.stable_diffusion(), snr, predicts_v=False).item()
    assert weight < 0.5
    assert loss_of(snr) == pytest.approx(loss_of(plain) * weight, rel=1e-5)


@pytest.mark.parametrize(
    "option",
    [
        {"v_parameterization": True},
        {"zero_terminal_snr": True},
        {"min_snr_gamma": 1e-3},
        {"debiased_estimation_loss": True},
        {"v_parameterization": True, "scale_v_pred_loss_like_noise_pred": True},
        {"v_pred_like_loss": 1.0},
        {"noise_offset": 0.1},
        {"noise_offset": 0.1, "noise_offset_random_strength": True},
        {"noise_offset": 0.1, "adaptive_noise_scale": 0.2},
        {"multires_noise_iterations": 4},
        {"ip_noise_gamma": 0.3},
        {"ip_noise_gamma": 0.3, "ip_noise_gamma_random_strength": True},
        {"loss_type": "l1"},
        {"loss_type": "huber"},
        {"loss_type": "smooth_l1", "huber_schedule": "exponential"},
        {"loss_type": "huber", "huber_schedule": "constant", "huber_scale": 2.0},
        {"min_timestep": 900},
        {"max_timestep": 50},
    ],
    ids=lambda option: " ".join(option),
)
def test_every_option_changes_the_loss(option: dict[str, Any]) -> None:
    loss = loss_of(LossSettings(**option))
    assert torch.isfinite(torch.tensor(loss))
    simpler = {name: value for name, value in option.items() if value is not True or len(option) == 1}
    others = [LossSettings()] + ([LossSettings(**simpler)] if 0 < len(simpler) < len(option) else [])
    assert all(abs(loss - loss_of(other)) > 1e-6 for other in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "option",
    [
        {"min_snr_gamma": 5.0, "noise_offset": 0.1, "noise_offset_random_strength": True},
        {"v_parameterization": True, "zero_terminal_snr": True, "ip_noise_gamma": 0.1},
        {"loss_type": "huber", "huber_schedule": "exponential"},
        {"loss_type": "smooth_l1"},
        {"multires_noise_iterations": 4},
    ],
    ids=lambda option: " ".join(option),
)
def test_nothing_waits_for_the_device(option: dict[str, Any]) -> None:
    latents = torch.rand(2, 8, 8, 8, device="cuda")
    batch = MicroBatch(
        latents, Tokens(()), torch.ones(2, device="cuda"), mask=torch.rand(2, 1, 8, 8, device="cuda")
    )
    objective = Diffusion(LossSettings(**option), PREDICTION["v_parameterization" in option] or "", "cuda")
    family = cast(Family, Halving())
    forward(family, objective, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward(family, objective, batch).losses.mean()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------------------------- limits to the norms


def golden_network() -> tuple[dict[str, Adapter], dict[str, Any]]:
    """The adapters of the reference data, each on a frozen layer of its shape."""
    golden = json.loads(GOLDEN.read_text())["max_norm"]
    adapters: dict[str, Adapter] = {}
    for name in ("m0", "m1", "m2"):
        values = {
            role: torch.tensor(row["data"]).view(row["shape"])
            for role in ("lora_down.weight", "lora_up.weight", "alpha")
            if (row := golden["before"][f"{name}.{role}"])
        }
        down, up = values["lora_down.weight"], values["lora_up.weight"]
        if down.dim() == 2:
            base: Any = torch.nn.Linear(down.shape[1], up.shape[0])
        else:
            base = torch.nn.Conv2d(down.shape[1], up.shape[0], down.shape[2:], padding=down.shape[2] // 2)
        adapter = Lora(base, len(down), float(values["alpha"]))
        with torch.no_grad():
            adapter.lora_down.copy_(down)
            adapter.lora_up.copy_(up)
        adapters[name] = adapter
    return adapters, golden


def test_norms_are_limited_as_in_the_reference() -> None:
    adapters, golden = golden_network()
    scaled, mean, highest = NormLimit(adapters, golden["limit"]).apply().tolist()
    assert scaled == golden["keys_scaled"]
    assert mean == pytest.approx(golden["mean_norm"], rel=1e-5)
    assert highest == pytest.approx(golden["max_norm"], rel=1e-5)
    for name, adapter in adapters.items():
        for role, found in adapter.file_tensors().items():
            expected = torch.tensor(golden["after"][f"{name}.{role}"])
            torch.testing.assert_close(found.detach().flatten(), expected.flatten(), rtol=1e-5, atol=1e-7)


def test_norms_of_many_modules_are_limited_one_by_one() -> None:
    torch.manual_seed(0)
    root = torch.nn.Sequential(*[torch.nn.Linear(24, 40) for _ in range(4)], torch.nn.Linear(40, 24))
    targets = [Target("unet", f"m{index}", module) for index, module in enumerate(root)]
    network = attach([root], targets, NetworkPlan(rank=4, alpha=2.0))
    with torch.no_grad():
        for index, adapter in enumerate(network.adapters.values()):
            cast(Lora, adapter).lora_up.normal_(std=0.05 * (index + 1))
    before = {name: adapter.delta().norm().item() for name, adapter in network.adapters.items()}
    limit = sorted(before.values())[2]
    figures = NormLimit(network.adapters, limit).apply()
    assert figures[0] == 2
    for name, adapter in network.adapters.items():
        assert adapter.delta().norm().item() == pytest.approx(min(before[name], limit), rel=1e-5)
    # The parameters are still views of the flat buffer, so the optimizer goes on from the limited values.
    group = network.groups["unet"]
    assert all(
        torch.equal(parameter.flatten(), group.parameter.detach()[offset : offset + parameter.numel()])
        for parameter, offset in zip(group.parameters, group.offsets, strict=True)
    )


def test_an_untrained_network_has_no_norm() -> None:
    network = attach(
        [root := torch.nn.Sequential(torch.nn.Linear(4, 4))],
        [Target("unet", "m", root[0])],
        NetworkPlan(rank=2, alpha=1.0),
    )
    assert NormLimit(network.adapters, 1.0).apply().tolist() == [0, 0, 0]


def test_a_limit_that_is_none() -> None:
    with pytest.raises(ConfigError, match="scale_weight_norms"):
        NormLimit({}, -1.0)
