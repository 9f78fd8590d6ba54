"""lora-inspect zeros, beside sd-scripts' check_lora_weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files


def jobs(files: Files, work: Path) -> list[Job]:
    """SD 1.5 at dim 64, SDXL at dim 32."""
    del work
    tool = shutil.which("lora-inspect", path=str(Path(sys.executable).parent)) or "lora-inspect"
    rows = (
        ("zeros SD1.5 dim 64, 528 tensors", files.lora("sd1", 64), 0.30, 100),
        ("zeros SDXL dim 32, 1972 tensors", files.lora("sdxl", 32), 0.60, 100),
    )
    return [
        Job(
            name=name,
            command=(tool, "zeros", str(source)),
            copied=source,
            goal_seconds=seconds,
            goal_megabytes=megabytes,
            peer=("networks/check_lora_weights.py", str(source)),
        )
        for name, source, seconds, megabytes in rows
    ]
