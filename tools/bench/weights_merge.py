"""lora-merge into checkpoints: 2.1 GB of SD 1.5 and 6.9 GB of SDXL, fp16."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from measuring import Job
from weights_files import Files

GOAL_RATIO, GOAL_MEGABYTES = 2.5, 450


def jobs(files: Files, work: Path) -> list[Job]:
    """A network of usual size into each; beside cp of the checkpoint."""
    tool = shutil.which("lora-merge", path=str(Path(sys.executable).parent)) or "lora-merge"
    output = work / "merged.safetensors"
    rows = (
        ("merge dim 64 into SD1.5, 2.1 GB", "sd1", files.lora("sd1", 64), "networks/merge_lora.py"),
        ("merge dim 64 + conv 32 into SD1.5", "sd1", files.lora("sd1", 64, 32), "networks/merge_lora.py"),
        ("merge dim 32 into SDXL, 6.9 GB", "sdxl", files.lora("sdxl", 32), "networks/sdxl_merge_lora.py"),
    )
    return [
        Job(
            name=name,
            command=(tool, str(files.checkpoint(family)), f"{network}:0.8", "-o", str(output), "-q"),
            copied=files.checkpoint(family),
            outputs=(output,),
            goal_ratio=GOAL_RATIO,
            goal_megabytes=GOAL_MEGABYTES,
            peer=_peer(script, files.checkpoint(family), network, output),
        )
        for name, family, network, script in rows
    ]


def _peer(script: str, base: Path, network: Path, output: Path) -> tuple[str, ...]:
    paths = ("--sd_model", str(base), "--models", str(network), "--save_to", str(output))
    return (script, *paths, "--ratios", "0.8", "--save_precision", "fp16")
