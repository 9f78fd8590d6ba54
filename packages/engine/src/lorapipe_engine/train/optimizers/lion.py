"""Lion (Chen et al. 2023): every step moves each weight by the rate itself, so the rate is a tenth of Adam's."""

from __future__ import annotations

from lorapipe_engine.train.optimizers.adamw import BITSANDBYTES
from lorapipe_engine.train.optimizers.kinds import OptimizerKind

USUAL = (1e-7, 2e-4)

KINDS = (
    OptimizerKind(name="Lion", path="pytorch_optimizer:Lion", rate=1e-5, usual=USUAL),
    OptimizerKind(
        name="Lion8bit", path="bitsandbytes.optim:Lion8bit", rate=1e-5, usual=USUAL, install=BITSANDBYTES
    ),
    OptimizerKind(
        name="PagedLion8bit",
        path="bitsandbytes.optim:PagedLion8bit",
        rate=1e-5,
        usual=USUAL,
        install=BITSANDBYTES,
    ),
)
