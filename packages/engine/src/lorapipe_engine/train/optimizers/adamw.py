"""AdamW (Loshchilov & Hutter 2019) and its 8-bit forms (Dettmers et al. 2022): two rates, 1e-4 for the UNet."""

from __future__ import annotations

from lorapipe_engine.train.optimizers.kinds import OptimizerKind

BITSANDBYTES = "pip install bitsandbytes"

KINDS = (
    OptimizerKind(
        name="AdamW",
        path="torch.optim:AdamW",
        always={"weight_decay": 0.01},
        extra={"fused": True},
        on_cuda={"capturable": True},
        tensor_rate=True,
    ),
    OptimizerKind(name="AdamW8bit", path="bitsandbytes.optim:AdamW8bit", install=BITSANDBYTES),
    OptimizerKind(name="PagedAdamW8bit", path="bitsandbytes.optim:PagedAdamW8bit", install=BITSANDBYTES),
    OptimizerKind(name="PagedAdamW", path="bitsandbytes.optim:PagedAdamW", install=BITSANDBYTES),
    OptimizerKind(name="PagedAdamW32bit", path="bitsandbytes.optim:PagedAdamW32bit", install=BITSANDBYTES),
    OptimizerKind(name="AdEMAMix8bit", path="bitsandbytes.optim:AdEMAMix8bit", install=BITSANDBYTES),
)
