"""D-Adaptation (Defazio & Mishchenko 2023): finds the rate by itself; ``learning_rate`` is a factor of it, about 1.

The ones of pytorch_optimizer give the original package's results and wait for the device once a step; three that
it lacks, or that diverge there, come from the original package.
"""

from __future__ import annotations

from typing import Any

from lorapipe_engine.train.optimizers.kinds import OptimizerKind

ORIGINAL = "pip install dadaptation"
RENAMED = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
IGNORED = ("log_every", "fsdp_in_use")


def _kind(name: str, path: str, **facts: Any) -> OptimizerKind:
    ported = path.startswith("pytorch_optimizer")
    return OptimizerKind(
        name=name,
        path=path,
        rate=1.0,
        usual=(0.1, 5.0),
        text_share=1.0,
        one_rate=True,
        schedule="constant",
        renamed=RENAMED if ported else {},
        ignored=IGNORED if ported else (),
        **facts,
    )


PREPRINT = "dadaptation.experimental:DAdaptAdamPreprint"
# What the guide gives for DAdaptAdam; the older form has the same arguments.
GUIDE = {"decouple": True, "weight_decay": 0.01, "betas": (0.9, 0.99)}

KINDS = (
    _kind("DAdaptation", PREPRINT, install=ORIGINAL, guide=GUIDE),
    _kind("DAdaptAdamPreprint", PREPRINT, install=ORIGINAL, guide=GUIDE),
    _kind("DAdaptAdam", "pytorch_optimizer:DAdaptAdam", guide=GUIDE),
    # Where pytorch_optimizer's defaults differ from the original package's, these are the latter.
    _kind("DAdaptAdaGrad", "pytorch_optimizer:DAdaptAdaGrad", always={"eps": 1e-6}),
    _kind(
        "DAdaptLion",
        "pytorch_optimizer:DAdaptLion",
        always={"betas": (0.9, 0.99), "weight_decouple": True},
    ),
    _kind("DAdaptSGD", "pytorch_optimizer:DAdaptSGD", always={"momentum": 0.0}),
    _kind("DAdaptAdan", "dadaptation:DAdaptAdan", install=ORIGINAL),
    _kind("DAdaptAdanIP", "dadaptation.experimental:DAdaptAdanIP", install=ORIGINAL),
)
