"""Put the parts that ``pretrain.py`` left into the demo's one file, with LDM names, in fp16.

python tools/demo_world/export.py PARTS packages/demo/src/lorapipe_demo/assets
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lorapipe_engine.files.dtypes import encode
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.models.families import SD1
from lorapipe_engine.models.keys import text_path, unet_to_ldm, vae_to_ldm

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}
METADATA = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "lorapipe demo",
    "modelspec.description": "A tiny Stable Diffusion of a drawn world, 64 x 64 pixels; see docs/demo-world.md",
    "modelspec.license": "Apache-2.0",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
    "modelspec.encoder_layer": "2",
    "format": "pt",
}


def main() -> None:
    parts, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    count = export(parts, target / "demo.safetensors", METADATA)
    shutil.copy(parts / "judge.safetensors", target / "judge.safetensors")
    shutil.copytree(parts / "tokenizer", target / "tokenizer", dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{count} tensors, {size / 2**20:.1f} MiB in all")


def export(parts: Path, path: Path, metadata: Mapping[str, str]) -> int:
    """Write the one file from the parts in a folder; the number of its tensors."""
    tensors = {}
    for part in ("unet", "vae", "text"):
        with open_tensors(parts / f"{part}.safetensors") as file:
            for name in file.tensors:
                if name.endswith("position_ids"):
                    continue
                tensors[PREFIXES[part] + ldm_name(part, name)] = encode(
                    ldm_shape(part, name, file.read(name)), "F16"
                )
    write_tensors(path, dict(sorted(tensors.items())), dict(metadata), force=True)
    return len(tensors)


def ldm_name(part: str, name: str) -> str:
    """A tensor's name in a single-file checkpoint, without the part's prefix."""
    name_there = {
        "unet": lambda n: unet_to_ldm(n, 2, SD1.plain_up_blocks),
        "vae": lambda n: vae_to_ldm(n, 3),
        "text": text_path,
    }[part](name)
    if name_there is None:
        raise SystemExit(f"no LDM name for {part} {name}")
    return name_there


def ldm_shape(part: str, name: str, value: np.ndarray) -> np.ndarray:
    """LDM keeps the VAE's attention as 1 x 1 convolutions."""
    is_attention = part == "vae" and ".attentions." in name and name.endswith("weight") and value.ndim == 2
    return value[:, :, None, None] if is_attention else value


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    main()
