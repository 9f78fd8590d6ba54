"""Files that are no options of lora-train, and of which that can be told: each is refused by its program's name.

Their options mean other things than sd-scripts', so none of them is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import ConfigError

_OWN = "lora-train --suggest FOLDER --base BASE > mine.toml writes a file of its own to put the values in"


@dataclass(frozen=True)
class _Stranger:
    """What a file is, how it is known, and what to do."""

    what: str
    is_one: Callable[[Mapping[str, Any]], bool]
    mend: str = _OWN


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether all keys are there with values of their own; a section of options may be called anything."""
    return lambda table: all(name in table and not isinstance(table[name], dict) for name in names)


def _has_any(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda table: any(name in table for name in names)


_STRANGERS = (
    _Stranger("a file of OneTrainer", _has("training_method", "model_type")),
    _Stranger("a file of ai-toolkit", lambda table: _has("job")(table) and "config" in table),
    _Stranger(
        "a file of SimpleTuner",
        lambda table: (
            any(key.startswith("--") for key in table)
            or ("model_family" in table and "data_backend_config" in table)
        ),
    ),
    _Stranger(
        "a list of SimpleTuner's data",
        _has_any("instance_data_dir", "data_backend_config", "caption_strategy"),
    ),
    _Stranger("a file of sd-webui-train-tools", _has("train_base_model")),
    _Stranger(
        "a file of diffusion-pipe",
        lambda table: _has("dataset")(table) and {"model", "adapter"} <= set(table),
    ),
    _Stranger(
        "a file of musubi-tuner",
        lambda table: _has("dit")(table) or str(table.get("task", "")).startswith(("t2v-", "i2v-")),
        "it trains video models and the like; lora-train trains SD 1.x, 2.x and SDXL",
    ),
    _Stranger(
        "a dataset file",
        lambda table: isinstance(table.get("datasets"), list),
        "give it as --dataset_config",
    ),
    _Stranger(
        "a file of prompts",
        lambda table: (
            set(table) == {"prompt"}
            and isinstance(table["prompt"], dict)
            and bool({"subset", "prompt", "width"} & set(table["prompt"]))
        ),
        "give it as --sample_prompts",
    ),
    _Stranger(
        "a workflow of ComfyUI",
        _has("nodes", "links"),
        "it draws pictures; lora-train reads options of training",
    ),
)
_SCRIPTS = (".sh", ".bat", ".cmd", ".ps1", ".py", ".ipynb")
_SHELL = re.compile(r"(export\s+)?[A-Z][A-Z0-9_]*=")


def refuse_stranger(table: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigError for a file of a program whose options are not read."""
    for row in _STRANGERS:
        if row.is_one(table):
            raise ConfigError(f"{path}: is {row.what}, no options of lora-train; {row.mend}")


def refuse_text(text: str, path: Path) -> None:
    """Raise ConfigError for a text that is neither TOML nor JSON: YAML, variables of a shell, a script."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        raise ConfigError(
            f"{path}: is YAML, as ai-toolkit and SimpleTuner write; lora-train reads TOML and JSON: {_OWN}"
        )
    if suffix in _SCRIPTS:
        raise ConfigError(
            f"{path}: is a script, no file of options; put what stands behind train_network.py in it behind lora-train"
        )
    rows = [row for row in text.splitlines() if row.strip() and not row.startswith("#")]
    if suffix == ".env" or (rows and all(_SHELL.match(row) for row in rows)):
        raise ConfigError(f"{path}: has variables of a shell, as SimpleTuner's config.env; {_OWN}")
