"""``preprocess.json``: how a model of the timm family wants its pictures, as a list of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.errors import InputError
from lorapipe_tagger.models.adapters import Adapter, Triple
from lorapipe_tagger.settings import Geometry

_WAYS = ("test", "val", "eval", "stages")
_NOTHING_TO_DO = frozenset({"convert_rgb", "maybe_to_tensor", "to_tensor", "to_rgb"})
_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128), "grey": (128, 128, 128)}


def with_settings(adapter: Adapter, path: Path) -> Adapter:
    """The adapter with size, geometry, padding and normalisation of a file. Raises InputError for steps that are not
    known: pictures prepared in another way would get wrong tags.
    """
    try:
        steps = _steps(parse_json(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise InputError(
            f"{path}: is needed to prepare pictures, and cannot be read ({error.strerror})"
        ) from error
    except (NoJson, UnicodeDecodeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no list of steps that is known here ({error})") from error
    try:
        for step in steps:
            adapter = _take(adapter, step)
        adapter = replace(adapter, geometry=_geometry(steps))
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: a step that is not known here ({error})") from error
    if not any(step["type"] == "normalize" for step in steps):
        raise InputError(f"{path}: says nothing of the normalisation of pixels")
    return adapter


def _geometry(steps: Sequence[Mapping[str, Any]]) -> Geometry:
    kinds = {step["type"] for step in steps}
    if "pad_to_size" in kinds:
        return "pad"
    # One number is the shorter side, and the longer one is cut; two numbers are both sides.
    both = any(step["type"] == "resize" and isinstance(step["size"], list) for step in steps)
    return "squash" if both else "crop"


def _steps(config: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(config, dict):
        config = next((config[way] for way in _WAYS if way in config), None)
    if not isinstance(config, list) or not all(isinstance(step, dict) for step in config):
        raise TypeError("'test' with a list of steps is needed")
    return config


def _take(adapter: Adapter, step: Mapping[str, Any]) -> Adapter:
    kind = step["type"]
    if kind in _NOTHING_TO_DO:
        return adapter
    if kind == "normalize":
        mean, std = _triple(step["mean"]), _triple(step["std"])
        if not all(std):
            raise ValueError("a standard deviation of 0")
        return replace(adapter, mean=mean, std=std)
    if kind == "pad_to_size":
        colour = step.get("background_color", "white")
        red, green, blue = _COLOURS[colour] if isinstance(colour, str) else (int(one) for one in colour)
        return replace(adapter, padding=(red, green, blue), size=_side(step["size"]))
    if kind == "resize":
        return replace(adapter, size=_side(step["size"]))
    if kind == "center_crop":
        if _side(step["size"]) != adapter.size:
            raise ValueError(f"{adapter.size} cut to {step['size']}")
        return adapter
    raise ValueError(f"'{kind}'")


def _side(size: Any) -> int:
    numbers = [int(side) for side in (size if isinstance(size, list) else [size])]
    if len(set(numbers)) != 1 or numbers[0] < 1:
        raise ValueError(f"{size} is no square")
    return numbers[0]


def _triple(values: Any) -> Triple:
    """Three numbers of 0..1 as pixels' levels."""
    first, second, third = (float(value) * 255 for value in values)
    return first, second, third
