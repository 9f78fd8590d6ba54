"""Gradients are clipped alike, by a pass of their own or by the optimizer's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.nn.attach import NetworkPlan, Target, attach, detach  # noqa: E402
from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.data.microbatch import MicroBatch  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.loop import update  # noqa: E402
from lorapipe_engine.train.step.forward import seed_step  # noqa: E402
from lorapipe_engine.train.step.step import Stepper  # noqa: E402
from support import tiny  # noqa: E402

pytestmark = pytest.mark.torch

LIMIT = 1e-3
Made = Callable[[list[Any]], Any]


class OwnStep(torch.optim.AdamW):  # type: ignore[misc,name-defined]
    """Says all that torch's own says, and knows nothing of the number that gradients are to be divided by."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    tiny.save_checkpoint(tiny.build("sd1"), path)
    return open_family(load_base(path, dtype=torch.float32), dtype=torch.float32, max_token_length=75)


def trained(family: Family, make: Made, limit: float) -> tuple[Any, float]:
    """What three steps make of a network's values, and the norm of the last gradients before they were clipped."""
    targets = [
        Target(part, family.lora_name(part, path), module) for part, path, module in family.target_modules()
    ]
    torch.manual_seed(1)
    network = attach(family.parts.values(), targets, NetworkPlan(rank=2, alpha=2.0))
    try:
        start = torch.cat([group.parameter.detach().clone() for group in network.groups.values()])
        optimizer = make(
            [
                {"params": [group.parameter], "part": part, "name": group.ranges[0].group.name}
                for part, group in network.groups.items()
            ]
        )
        objective = family.objective(LossSettings(), "epsilon")
        stepper = Stepper(
            family, network, optimizer, objective, max_grad_norm=limit, train_text=True, half_precision=False
        )
        tokens = family.text.tokenize(["1girl, solo", "night"])
        torch.manual_seed(7)
        batch = MicroBatch(latents=torch.randn(2, 8, 8, 8).abs(), tokens=tokens, weights=torch.ones(2))
        for number in range(3):
            seed_step(1, number)
            _, norm = update(stepper, [batch])
        end = torch.cat([group.parameter.detach() for group in network.groups.values()])
        return end - start, float(norm)
    finally:
        detach(family.parts.values())


def adam(kind: type, *, fused: bool) -> Made:
    # The step of one with a small eps is as long, however long gradients are.
    return lambda rows: kind(rows, lr=1.0, eps=1.0, weight_decay=0.0, fused=fused)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_fused_and_plain_steps_clip_alike(kind: type, family: Family) -> None:
    plain, norm = trained(family, adam(kind, fused=False), LIMIT)
    fused, same = trained(family, adam(kind, fused=True), LIMIT)
    whole, _ = trained(family, adam(kind, fused=True), 0.0)
    assert same == pytest.approx(norm, rel=1e-5)
    assert norm > 10 * LIMIT
    assert (fused - plain).norm() < 1e-4 * plain.norm()
    assert whole.norm() > 5 * plain.norm()


def test_a_step_that_is_not_torchs_own_gets_clipped_gradients(family: Family) -> None:
    moved, _ = trained(family, lambda rows: OwnStep(rows, lr=1.0, fused=True), LIMIT)
    assert 0.5 * LIMIT < moved.norm() < 3.1 * LIMIT
