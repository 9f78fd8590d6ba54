"""Which layers of a model take a LoRA, and what the others are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lorapipe_engine.models.families import get_family

# What no LoRA says, or none without --conv-dim, in the order in which it is listed.
CONVOLUTIONS = "layers of residual blocks and samplers"


def is_target(part: str, path: str, *, conv: bool) -> bool:
    """Whether kohya's trainer would train the layer; with ``conv`` residual blocks and samplers too."""
    if part in ("te1", "te2"):
        return re.match(r"text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.", path) is not None
    if part != "unet":
        return False
    return ".attentions." in path or (conv and is_residual(path))


def is_residual(path: str) -> bool:
    """Whether a UNet layer lies in a residual block or a sampler, which take a LoRA with --conv-dim only."""
    return re.match(r"(down|up|mid)_block", path) is not None and ".attentions." not in path


def spare_layers(family: str, part: str, paths: Iterable[str], *, single_file: bool) -> frozenset[int]:
    """Numbers of text encoder layers that a single-file checkpoint has and no program runs (SD 2.x: the last)."""
    spare = get_family(family).spare_text_layers if single_file and part == "te1" else 0
    numbers = {int(m[1]) for path in paths if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", path))}
    return frozenset(sorted(numbers)[-spare:]) if spare else frozenset()


def category(part: str, path: str, kind: str, dims: int) -> str:
    """What a tensor that is no target is called in the report: a plural."""
    if part == "vae":
        return "VAE tensors"
    if kind == "bias":
        return "biases"
    if "embedding" in path and part != "unet":
        return "token and position embeddings"
    if dims < 2:
        return "norms"
    if path == "text_projection":
        return "text projections"
    if part == "unet" and is_residual(path):
        return CONVOLUTIONS
    if path in ("conv_in", "conv_out"):
        return "first and last convolutions"
    if path.startswith(("time_embedding", "add_embedding")):
        return "time and size embeddings"
    return "other tensors"
