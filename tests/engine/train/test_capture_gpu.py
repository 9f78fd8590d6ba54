"""Captured steps on a CUDA device: the same losses as plain ones, and graphs within their budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

sys.path.insert(0, str(Path(__file__).parents[3] / "tools" / "bench"))

from train import WORKLOADS, make_family  # type: ignore[import-not-found]  # noqa: E402

from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.settings import LossSettings, OptimizerSettings  # noqa: E402
from lorapipe_engine.settings.preserve import Preserve  # noqa: E402
from lorapipe_engine.train.data.microbatch import Held, MicroBatch  # noqa: E402
from lorapipe_engine.train.families.text import Tokens  # noqa: E402
from lorapipe_engine.train.loop import accumulate, update  # noqa: E402
from lorapipe_engine.train.optimizers import build_optimizer, check_arguments, rates_of, write_rates  # noqa: E402
from lorapipe_engine.train.results.state import Kept, State, save_state, take_up  # noqa: E402
from lorapipe_engine.train.step.capture import PLAIN_RUNS, StepGraphs  # noqa: E402
from lorapipe_engine.train.step.forward import seed_step  # noqa: E402
from lorapipe_engine.train.step.preserving import Preserving  # noqa: E402
from lorapipe_engine.train.step.speed import speed_up  # noqa: E402
from lorapipe_engine.train.step.step import Stepper  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPES = [(512, 512), (512, 768), (768, 512), (256, 1024), (1024, 256)]


@pytest.fixture(autouse=True)
def all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 keep their digits, which the card's matrix units would drop."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_stepper(
    optimizer: str = "AdamW",
    dtype: Any = torch.bfloat16,
    *,
    capture: bool,
    fused: bool = True,
    checkpointing: bool = False,
) -> Stepper:
    torch.manual_seed(1)
    family = make_family(WORKLOADS["small"], torch.device("cuda"), dtype)
    if checkpointing:
        family.checkpoint_activations(with_draws=False)
    targets = [
        Target(part, family.lora_name(part, path), module) for part, path, module in family.target_modules()
    ]
    network = attach(family.parts.values(), targets, NetworkPlan(rank=4, alpha=4.0))
    network.train()
    arguments = check_arguments(optimizer, ())
    settings = OptimizerSettings(
        optimizer_type=optimizer, learning_rate=1e-3, unet_lr=1e-3, text_encoder_lr=(1e-3,)
    )
    stepper = Stepper(
        family,
        network,
        build_optimizer(optimizer, arguments, network.groups, rates_of(settings, tuple(network.groups))),
        family.objective(LossSettings(min_snr_gamma=5.0), "epsilon"),
        max_grad_norm=1.0,
        train_text=True,
        half_precision=dtype == torch.float16,
    )
    if not fused:
        return stepper
    speed_up(stepper, capture=capture, say=lambda text: pytest.fail(text))
    assert (stepper.graphs is not None) == capture
    return stepper


def batch_of(stepper: Stepper, shape: tuple[int, int], share: float) -> MicroBatch:
    draw = torch.Generator(device="cuda").manual_seed(shape[0] * 1000 + shape[1])
    factor = stepper.family.latent_factor
    latents = torch.randn(2, 8, shape[0] // factor, shape[1] // factor, device="cuda", generator=draw)
    latents[:, 4:] = latents[:, 4:].abs() * 0.1
    ids = torch.randint(0, 49000, (2, 1, 77), device="cuda", generator=draw)
    ids[:, :, -1] = 49407
    return MicroBatch(latents, Tokens((ids,)), torch.full((2,), share, device="cuda"))


def losses(stepper: Stepper, steps: int, accumulation: int, shapes: Sequence[tuple[int, int]]) -> list[float]:
    found = []
    for step in range(steps):
        if stepper.optimizer.param_groups[0]["lr"] is not None:
            write_rates(stepper.optimizer, [1e-3 * (1 - step / steps)] * len(stepper.optimizer.param_groups))
        batches = [
            batch_of(stepper, shapes[(step + index) % len(shapes)], 1 / accumulation)
            for index in range(accumulation)
        ]
        seed_step(5, step)
        loss, norm = update(stepper, batches)
        assert bool(torch.isfinite(norm))
        found.append(float(loss))
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
def test_captured_steps_give_the_losses_of_plain_ones(accumulation: int) -> None:
    plain = losses(make_stepper(dtype=torch.float32, capture=False), 50, accumulation, SHAPES)
    stepper = make_stepper(dtype=torch.float32, capture=True)
    captured = losses(stepper, 50, accumulation, SHAPES)
    assert stepper.graphs is not None
    assert len(stepper.graphs.shapes) == len(SHAPES)
    # Two plain runs of these steps lie up to 7e-6 apart, as the order of some sums is the card's.
    assert captured == pytest.approx(plain, rel=5e-5)
    assert plain[-1] != plain[0]


def test_a_captured_run_that_goes_on_from_a_state_has_the_rates_of_its_steps(tmp_path: Path) -> None:
    def run(stepper: Stepper, first: int, last: int) -> list[float]:
        found = []
        for step in range(first, last):
            write_rates(stepper.optimizer, [1e-3 * (1 - step / 24)] * len(stepper.optimizer.param_groups))
            seed_step(5, step)
            loss, _ = update(stepper, [batch_of(stepper, SHAPES[0], 1.0)])
            found.append(float(loss))
        return found

    def kept(stepper: Stepper) -> Kept:
        return Kept(stepper.network, stepper.optimizer, stepper.scaler, None)

    whole = run(make_stepper(dtype=torch.float32, capture=True), 0, 24)
    begun = make_stepper(dtype=torch.float32, capture=True)
    losses_of_both = run(begun, 0, 8)
    save_state(tmp_path / "net.state", State(began=0.0), kept(begun), {})
    going_on = make_stepper(dtype=torch.float32, capture=True)
    take_up(tmp_path / "net.state", {}, kept(going_on))
    losses_of_both += run(going_on, 8, 24)
    assert losses_of_both == pytest.approx(whole, rel=5e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_captured_steps_in_bf16_follow_plain_ones(accumulation: int) -> None:
    plain = losses(make_stepper(capture=False), 50, accumulation, SHAPES)
    stepper = make_stepper(capture=True)
    captured = losses(stepper, 50, accumulation, SHAPES)
    assert stepper.graphs is not None
    assert len(stepper.graphs.shapes) == len(SHAPES)
    # Two plain runs of 50 steps lie up to 5e-4 apart, seldom 3e-3 at some late step: their roundings drift apart.
    assert captured[:20] == pytest.approx(plain[:20], rel=2e-3)
    assert captured == pytest.approx(plain, rel=5e-3)
    assert mean(captured) == pytest.approx(mean(plain), rel=1e-3)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_captured_steps_that_hold_to_the_base_follow_plain_ones(accumulation: int, apart: bool) -> None:
    """At one step in two: a shape has a graph with the term and one without."""
    both = []
    for capture in (False, True):
        stepper = make_stepper(dtype=torch.float32, capture=capture)
        stepper.preserving = Preserving(
            Preserve(captions=("",), every=2, te=0.5),
            stepper.family,
            stepper.network,
            stepper.objective,
            apart=apart,
            train_text=True,
        )
        rows = []
        for step in range(20):
            batches = [batch_of(stepper, SHAPES[0], 1 / accumulation) for _ in range(accumulation)]
            if stepper.preserving.is_at(step):
                tokens = Tokens(tuple(ids.flip(0) for ids in batches[0].tokens.ids))
                batches = [replace(batch, held=Held(batch.weights, tokens)) for batch in batches]
            seed_step(5, step)
            write_rates(stepper.optimizer, [1e-3] * len(stepper.optimizer.param_groups))
            rows += update(stepper, batches)[0].reshape(-1).tolist()
        both.append(rows)
        if capture:
            assert stepper.graphs is not None
            assert len(stepper.graphs.shapes) == 2
    assert len(both[0]) == 40  # of each step the loss and the term, which is 0 where it does not take part
    assert both[0][3::4] == [0.0] * 10
    assert both[1] == pytest.approx(both[0], rel=1e-3, abs=1e-6)
    assert both[0][-2] > 0


@pytest.mark.parametrize("optimizer", ["Lion", "SGD", "Prodigy", "DAdaptAdam", "AdamW8bit"])
def test_other_optimizers_step_outside_of_the_graph_or_in_it(optimizer: str) -> None:
    if optimizer in ("Lion", "Prodigy", "DAdaptAdam"):
        pytest.importorskip("pytorch_optimizer")
    if optimizer == "AdamW8bit":
        pytest.importorskip("bitsandbytes")
    plain = losses(make_stepper(optimizer, capture=False), 20, 1, SHAPES[:2])
    stepper = make_stepper(optimizer, capture=True)
    captured = losses(stepper, 20, 1, SHAPES[:2])
    assert stepper.graphs is not None
    assert len(stepper.graphs.shapes) == 2
    assert captured == pytest.approx(plain, rel=5e-3)


def test_half_precision_is_captured_with_its_scaler() -> None:
    plain = losses(make_stepper(dtype=torch.float16, capture=False), 20, 1, SHAPES[:2])
    stepper = make_stepper(dtype=torch.float16, capture=True)
    assert losses(stepper, 20, 1, SHAPES[:2]) == pytest.approx(plain, rel=5e-3)
    assert stepper.graphs is not None
    assert stepper.graphs.shapes


def test_a_step_that_cannot_be_captured_trains_on_as_a_plain_one() -> None:
    plain = losses(make_stepper(dtype=torch.float32, capture=False), 8, 1, SHAPES[:1])
    stepper, told = make_stepper(dtype=torch.float32, capture=True), []
    stepper.graphs = StepGraphs(told.append)
    forward = stepper.family.parts["unet"].forward

    def waits(*args: Any, **more: Any) -> Any:
        torch.randn(3, device="cuda").sum().item()  # draws, and waits for the card
        return forward(*args, **more)

    stepper.family.parts["unet"].forward = waits
    draws = torch.cuda.get_rng_state()
    found = losses(stepper, 8, 1, SHAPES[:1])
    assert not stepper.graphs.shapes
    assert len(told) == 1
    assert "operation not permitted when stream is capturing" in told[0]
    assert found[0] == pytest.approx(plain[0], rel=1e-3)
    assert all(0 < loss < 10 for loss in found)
    torch.cuda.set_rng_state(draws)
    torch.randn(3, device="cuda")  # whoever draws next in this process is not in a graph that failed
    # The next network of the process is captured again.
    assert losses(make_stepper(dtype=torch.float32, capture=True), 8, 1, SHAPES[:1]) == pytest.approx(
        plain, rel=5e-5
    )


def test_a_shape_seen_twice_runs_uncaptured() -> None:
    stepper = make_stepper(capture=True)
    losses(stepper, PLAIN_RUNS, 1, SHAPES[:1])
    assert stepper.graphs is not None
    assert not stepper.graphs.shapes
    losses(stepper, 1, 1, SHAPES[:1])
    assert len(stepper.graphs.shapes) == 1


def test_graphs_over_the_budget_go_the_least_recently_used_first() -> None:
    stepper = make_stepper(capture=True)
    stepper.graphs = StepGraphs(pytest.fail, budget=0)
    growing = [(512, 512), (512, 1024), (1024, 1024)]  # each needs more of the shared pool than those before
    for shape in growing:
        losses(stepper, PLAIN_RUNS + 1, 1, [shape])
    kept = [key[0][0][2:] for key in stepper.graphs.shapes]
    factor = stepper.family.latent_factor
    assert kept[-1] == (1024 // factor, 1024 // factor)
    assert (512 // factor, 512 // factor) not in kept


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-3), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_fused_step_gives_the_gradients_of_an_unfused_one(
    dtype: Any, close: float, checkpointing: bool
) -> None:
    found = []
    for fused in (True, False):
        stepper = make_stepper(dtype=dtype, capture=False, fused=fused, checkpointing=checkpointing and fused)
        torch.manual_seed(3)
        with torch.no_grad():
            for adapter in stepper.network.adapters.values():
                adapter.lora_up.normal_(std=0.05)
        seed_step(5, 0)
        loss = accumulate(stepper, [batch_of(stepper, SHAPES[0], 1.0)])
        found.append((float(loss), {part: group.grad for part, group in stepper.network.groups.items()}))
    (loss, grads), (own_loss, own_grads) = found
    assert loss == pytest.approx(own_loss, rel=close / 10)
    for part, grad in own_grads.items():
        assert float((grads[part] - grad).norm() / grad.norm()) < close, part


def test_fused_and_captured_steps_train_as_the_blocks_own_way_does() -> None:
    own = losses(make_stepper(dtype=torch.float32, capture=False, fused=False), 50, 1, SHAPES)
    fused = losses(make_stepper(dtype=torch.float32, capture=True), 50, 1, SHAPES)
    assert fused == pytest.approx(own, rel=2e-3)
