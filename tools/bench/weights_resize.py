"""lora-resize as in the guide: at most rank 32, 0.9 of the Frobenius norm, bf16."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files

OPTIONS = (
    "--save_precision",
    "bf16",
    "--new_rank",
    "32",
    "--dynamic_method",
    "sv_fro",
    "--dynamic_param",
    "0.9",
)


def jobs(files: Files, work: Path) -> list[Job]:
    """SD 1.5 at dim 64, the same with convolutions, SDXL at dim 32."""
    tool = shutil.which("lora-resize", path=str(Path(sys.executable).parent)) or "lora-resize"
    output = work / "resized.safetensors"
    rows = (
        ("resize SD1.5 dim 64, 264 modules", files.lora("sd1", 64), 2.0, 200),
        ("resize SD1.5 dim 64 + conv 32, 350 modules", files.lora("sd1", 64, 32), 2.2, 200),
        ("resize SDXL dim 32, 986 modules", files.lora("sdxl", 32), 3.0, 350),
    )
    return [
        Job(
            name=name,
            command=(tool, str(source), "-o", str(output), *OPTIONS),
            copied=source,
            outputs=(output,),
            goal_seconds=seconds,
            goal_megabytes=megabytes,
            peer=_peer(source, output),
        )
        for name, source, seconds, megabytes in rows
    ]


def _peer(source: Path, output: Path) -> tuple[str, ...]:
    paths = ("--model", str(source), "--save_to", str(output), "--device", "cpu")
    return ("networks/resize_lora.py", *paths, *OPTIONS)
