"""Schedule-free optimizers (Defazio et al. 2024): an average of the weights takes the place of a falling rate."""

from __future__ import annotations

from typing import Any

from lorapipe_engine.train.optimizers.kinds import OptimizerKind


def _kind(name: str, path: str, **facts: Any) -> OptimizerKind:
    return OptimizerKind(name=name, path=path, averaged=True, schedule="constant", **facts)


KINDS = (
    _kind("AdamWScheduleFree", "pytorch_optimizer:ScheduleFreeAdamW", rate=3e-4, usual=(1e-5, 1e-2)),
    _kind("RAdamScheduleFree", "pytorch_optimizer:ScheduleFreeRAdam", rate=3e-4, usual=(1e-5, 1e-2)),
    _kind("SGDScheduleFree", "pytorch_optimizer:ScheduleFreeSGD", rate=1.0, usual=None),
)
