"""Stochastic gradient descent with momentum. LoRA gradients are small, so its rates are large."""

from __future__ import annotations

from lorapipe_engine.train.optimizers.adamw import BITSANDBYTES
from lorapipe_engine.train.optimizers.kinds import OptimizerKind

KINDS = (
    OptimizerKind(
        name="SGDNesterov",
        path="torch.optim:SGD",
        rate=1e-2,
        usual=None,
        always={"momentum": 0.9, "nesterov": True},
        extra={"fused": True},
        tensor_rate=True,
    ),
    OptimizerKind(
        name="SGDNesterov8bit",
        path="bitsandbytes.optim:SGD8bit",
        rate=1e-2,
        usual=None,
        always={"momentum": 0.9},
        ignored=("nesterov",),
        note="bitsandbytes has no Nesterov momentum; plain momentum is used",
        install=BITSANDBYTES,
    ),
)
