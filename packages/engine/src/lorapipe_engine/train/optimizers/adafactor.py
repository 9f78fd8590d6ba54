"""Adafactor (Shazeer & Stern 2018): second moments as rows and columns, so almost no memory.

With ``relative_step=True``, its default, it sets its own rate from the step's number.
"""

from __future__ import annotations

from lorapipe_engine.train.optimizers.kinds import OptimizerKind

KINDS = (
    OptimizerKind(
        name="AdaFactor",
        path="transformers.optimization:Adafactor",
        rate=1e-3,
        usual=(1e-5, 1e-2),
        schedule="constant_with_warmup",
        by_tensor=True,
    ),
)
