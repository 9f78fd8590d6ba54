"""Diffusers folders: which files hold a component's weights, and what its configuration says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorapipe_engine.command.documents import MOST_JSON, parse_json, read_text
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.tensorfile import open_tensors, quote

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp32", ".fp16", ".bf16", ".non_ema")
_SHARD = re.compile(r"-\d+-of-0*(\d+)\.")


def weight_files(folder: Path) -> list[Path]:
    """The files with a component's weights: one file, or its shards. Empty if there are none.

    Full precision goes before variants such as ``.fp16``, safetensors before pickles. Raises InputError where
    an index names shards that are not there.
    """
    for suffix in ("safetensors", "bin"):
        for variant in _VARIANTS:
            for stem in _STEMS:
                whole = folder / f"{stem}{variant}.{suffix}"
                if whole.is_file():
                    return [whole]
                index = folder / f"{stem}.{suffix}.index{variant}.json"
                if index.is_file():
                    return _shards(index)
    return []


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file. Raises InputError if it is broken."""
    if not os.path.lexists(path):
        return {}
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: is no regular file")
    try:
        config = parse_json(read_text(path, MOST_JSON), str(path))
    except ConfigError as error:
        raise InputError(str(error)) from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: a JSON object is needed")
    return config


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder's scheduler; empty if there is none. Raises InputError if it is broken."""
    return read_config(folder / "scheduler" / "scheduler_config.json")


def hints(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What a configuration says about facts that tensors cannot tell."""
    return {name: config[name] for name in names if config.get(name) is not None}


def _shards(index: Path) -> list[Path]:
    weights = read_config(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise InputError(f"{index}: no weight_map")
    paths = []
    for name in sorted(set(weights.values())):
        path = index.parent / name
        # The index is data: it may name files of its own folder only.
        if Path(name).name != name or not path.is_file():
            raise InputError(f"{index}: the shard {name!r} is not in its folder")
        paths.append(path)
    _check_shards(index, weights, paths)
    return paths


def _check_shards(index: Path, weights: Mapping[str, str], paths: Sequence[Path]) -> None:
    """Raise InputError where the shards are not what the index says: of a model in pieces of two downloads or saves
    nobody would miss the layers that are gone.
    """
    numbered = [match for path in paths if (match := _SHARD.search(path.name))]
    count = max((int(match[1]) for match in numbered), default=0)
    if numbered and len(numbered) < count:
        raise InputError(
            f"{index}: names {len(numbered)} of {count} shards, so a part of the model is missing"
        )
    for path in paths:
        if path.suffix != ".safetensors":  # a pickle is read only once
            continue
        with open_tensors(path) as file:
            lost = [key for key, name in weights.items() if name == path.name and key not in file.tensors]
            twice = [key for key in file.tensors if weights.get(key, path.name) != path.name]
        for keys, what in ((lost, "which lacks it"), (twice, "and another shard has it too")):
            if keys:
                shown = quote(keys[0])[1:-1]
                raise InputError(
                    f"{index}: the shard of {shown} is {weights[keys[0]]}, {what}; the files are not of one download"
                )
