"""Weight files for the benchmarks, each made when first asked for and then kept."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MAKER = Path(__file__).with_name("make_weights.py")


@dataclass(frozen=True)
class Files:
    """Files in ``folder``.

    Another process makes them: a command started from a large process would be charged with its memory.
    """

    folder: Path

    def lora(self, family: str, rank: int, conv_rank: int = 0, seed: int = 0) -> Path:
        """A kohya LoRA for "sd1" or "sdxl", fp16, alpha = rank / 2."""
        conv = f"_conv{conv_rank}" if conv_rank else ""
        path = self.folder / f"lora_{family}_{rank}{conv}_{seed}.safetensors"
        return self._made(path, "lora", family, rank, conv_rank, seed)

    def checkpoint(self, family: str) -> Path:
        """A single-file checkpoint, fp16: 2.1 GB for "sd1", 6.9 GB for "sdxl"."""
        return self._made(self.folder / f"checkpoint_{family}.safetensors", "checkpoint", family)

    def unet(self, family: str) -> Path:
        """The UNet of a checkpoint alone, fp16: 5.1 GB for "sdxl"."""
        return self._made(self.folder / f"unet_{family}.safetensors", "unet", family)

    def tuned(self, base: Path) -> Path:
        """A checkpoint with a known change of rank 24 in every layer that is trained."""
        return self._made(base.with_name(f"tuned_{base.name}"), "tuned", base)

    def module(self, lora: Path) -> Path:
        """The first module of a LoRA alone."""
        return self._made(lora.with_name(f"module_of_{lora.name}"), "module", lora)

    def _made(self, path: Path, *words: object) -> Path:
        if not path.exists():
            unfinished = path.with_suffix(".part")
            subprocess.run([sys.executable, MAKER, unfinished, *map(str, words)], check=True)
            unfinished.rename(path)
        return path
