"""Scales of files that keep them beside the tensors: diffusers' ``lora_adapter_metadata``.

The value is JSON of PEFT's configuration, every key with the part in front: ``{"unet.r": 16,
"unet.lora_alpha": 8, "unet.rank_pattern": {...}, "unet.alpha_pattern": {...}, "unet.use_rslora": false,
"text_encoder.r": ...}``. Such files have no alpha tensors; readers that do not know the key take a scale of
1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorapipe_engine.errors import InputError

ADAPTER_KEY = "lora_adapter_metadata"


def adapter_scales(metadata: Mapping[str, str], modules: Iterable[str]) -> dict[str, float]:
    """lora_alpha / r of the modules that the configuration covers, by name ("unet.down_blocks.0...").

    Empty for files without such a configuration. Raises InputError for one that cannot be understood.
    """
    if ADAPTER_KEY not in metadata:
        return {}
    try:
        facts = json.loads(metadata[ADAPTER_KEY])
        if not isinstance(facts, dict):
            raise TypeError("not an object")
        return {name: scale for name in modules if (scale := _scale(facts, name)) is not None}
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, re.error) as error:
        raise InputError(f"the metadata {ADAPTER_KEY} cannot be understood ({error})") from error


def _scale(facts: Mapping[str, Any], name: str) -> float | None:
    part, _, path = name.partition(".")
    if f"{part}.r" not in facts:
        return None
    rank = _matching(facts.get(f"{part}.rank_pattern"), path, facts[f"{part}.r"])
    alpha = _matching(facts.get(f"{part}.alpha_pattern"), path, facts.get(f"{part}.lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if facts.get(f"{part}.use_rslora") else float(rank))


def _matching(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the path, or its end after a dot."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default
