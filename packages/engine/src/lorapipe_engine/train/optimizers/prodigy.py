"""Prodigy (Mishchenko & Defazio 2023): D-Adaptation that grows faster; ``learning_rate`` stays 1."""

from __future__ import annotations

from lorapipe_engine.train.optimizers.dadaptation import IGNORED, RENAMED
from lorapipe_engine.train.optimizers.kinds import OptimizerKind

KINDS = (
    OptimizerKind(
        name="Prodigy",
        path="pytorch_optimizer:Prodigy",
        rate=1.0,
        usual=(0.1, 5.0),
        text_share=1.0,
        one_rate=True,
        schedule="constant",
        guide={
            "decouple": True,
            "weight_decay": 0.01,
            "d_coef": 2.0,
            "use_bias_correction": True,
            "safeguard_warmup": True,
        },
        renamed=RENAMED,
        ignored=(*IGNORED, "slice_p"),
    ),
    OptimizerKind(
        name="ProdigyPlusScheduleFree",
        path="prodigyplus:ProdigyPlusScheduleFree",
        rate=1.0,
        usual=(0.1, 5.0),
        text_share=1.0,
        averaged=True,
        schedule="constant",
        by_tensor=True,
        install="pip install prodigy-plus-schedule-free",
    ),
)
