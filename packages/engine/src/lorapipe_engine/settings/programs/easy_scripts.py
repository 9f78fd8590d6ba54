"""Files of LoRA_Easy_Training_Scripts: ``[[subsets]]``, and tables ``NAME_args.args`` and ``NAME_args.dataset_args``.

Folders and what is said of the dataset as a whole are read again, as a dataset file, by
:mod:`lorapipe_engine.datasets.file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, is_nothing
from lorapipe_engine.errors import ConfigError

NAME = "LoRA_Easy_Training_Scripts"
_RENAMED = {"warmup_ratio": "lr_warmup_steps", "batch_size": "train_batch_size"}
# Tables of name = value that become lists of words.
_WORDS = ("network_args", "optimizer_args", "lr_scheduler_args")
# The program's own.
_OWN = frozenset(
    {
        *("sdxl", "save_toml", "save_toml_location", "tag_occurrence", "tag_file_location"),
        *("remove_non_standard_args", "queue", "notes"),
    }
)
_SUBSET_OWN = frozenset({"name"})
_TABLES = ("args", "dataset_args")
# Of dataset_args, those that options of the run have too; the others stand in the dataset file alone.


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    sections = [
        key for key, value in table.items() if isinstance(value, dict) and any(k in value for k in _TABLES)
    ]
    return [*(["subsets"] if isinstance(table.get("subsets"), list) else []), *sections]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a file and what the user should know of it. Raises ConfigError."""
    entries: list[Entry] = []
    for section, content in table.items():
        if section in ("subsets", "train_mode"):
            continue
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {section}: unknown key; {NAME} has tables of options only")
        for name, inside in content.items():
            if name not in _TABLES or not isinstance(inside, dict):
                raise ConfigError(
                    f"{path}: {section}.{name}: unknown key; {NAME} has {' and '.join(_TABLES)} there"
                )
            for key, value in inside.items():
                entries += _entries(key, value, f"{section}.{name}.{key}", path)
    _check_mode(table, path)
    entries += _module(entries)
    if "subsets" in table:
        entries.append(Entry("dataset_config", str(path), "subsets"))
    return [entry for entry in entries if entry.name not in ("fa",)], []


def _check_mode(table: Mapping[str, Any], path: Path) -> None:
    content = table.get("train_mode", {})
    mode = content.get("train_mode", "lora") if isinstance(content, dict) else content
    if mode != "lora":
        raise ConfigError(f"{path}: train_mode: '{mode}' is not trained here; lora-train makes LoRA networks")


def _entries(key: str, value: Any, place: str, path: Path) -> list[Entry]:
    if key in _OWN:
        return []
    if key in _WORDS and isinstance(value, dict):
        words = [f"{name}={_word(item)}" for name, item in value.items() if not is_nothing(item)]
        return [Entry(key, words, place)]
    if isinstance(value, dict):
        raise ConfigError(f"{path}: {place}: must be a value, not a table")
    return [Entry(_RENAMED.get(key, key), value, place)]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _module(entries: list[Entry]) -> list[Entry]:
    """``network_module``, which the program finds by the network's arguments."""
    if any(entry.name == "network_module" for entry in entries):
        return []
    words = [word for entry in entries if entry.name == "network_args" for word in entry.value]
    names = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if any(entry.name == "fa" and entry.value for entry in entries):
        return [Entry("network_module", "networks.lora_fa", "fa")]
    if "algo" in names:
        return [Entry("network_module", "lycoris.kohya", "algo")]
    return [Entry("network_module", "networks.dylora", "unit")] if "unit" in names else []


def dataset_tables(table: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of pictures, in the form of a dataset file: one dataset with its subsets."""
    dataset: dict[str, Any] = {}
    for content in table.values():
        if isinstance(content, dict) and isinstance(content.get("dataset_args"), dict):
            dataset |= content["dataset_args"]
    subsets = [
        {key: value for key, value in row.items() if key not in _SUBSET_OWN} if isinstance(row, dict) else row
        for row in table.get("subsets", [])
    ]
    return {"datasets": [{**dataset, "subsets": subsets}]}
