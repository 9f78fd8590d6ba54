"""Files of LoRA_Easy_Training_Scripts: ``[[subsets]]``, and tables ``NAME_args.args`` and ``NAME_args.dataset_args``.

Folders and what is said of the dataset as a whole are read again, as a dataset file, by
:mod:`lorapipe_engine.datasets.file`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry, is_nothing
from lorapipe_engine.command.options import fields_of
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS

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
# How names for the logs are made.
_NAMING = ("log_prefix", "log_prefix_mode", "run_name", "run_name_mode")
_SUBSET_OWN = frozenset({"name"})
_TABLES = ("args", "dataset_args")
# Sections of families that are not trained here.
_OTHER_FAMILIES = ("flux_args", "sd3_args", "anima_args", "lumina_args", "chroma_args", "hunyuan_args")


def marks(table: Mapping[str, Any]) -> list[str]:
    """The keys by which a file of this program is known."""
    sections = [
        key for key, value in table.items() if isinstance(value, dict) and any(k in value for k in _TABLES)
    ]
    return [*(["subsets"] if isinstance(table.get("subsets"), list) else []), *sections]


def read(table: Mapping[str, Any], path: Path) -> tuple[list[Entry], list[str]]:
    """The options of a file and what the user should know of it. Raises ConfigError."""
    entries: list[Entry] = []
    own: list[str] = []
    for section, content in table.items():
        if section in ("subsets", "train_mode"):
            continue
        if section in _OTHER_FAMILIES and content:
            raise ConfigError(
                f"{path}: {section}: of a family that is not trained here; lora-train trains SD 1.x, 2.x and SDXL"
            )
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {section}: unknown key; {NAME} has tables of options only")
        for name, inside in content.items():
            if name not in _TABLES or not isinstance(inside, dict):
                raise ConfigError(
                    f"{path}: {section}.{name}: unknown key; {NAME} has {' and '.join(_TABLES)} there"
                )
            for key, value in inside.items():
                entries += _entries(key, value, f"{section}.{name}.{key}", path)
                if key in _OWN and not is_nothing(value):
                    own.append(key)
    _check_mode(table, path)
    entries += _module(entries)
    if "subsets" in table:
        entries.append(Entry("dataset_config", str(path), "subsets"))
    notes = [f"{', '.join(own)}: the program's own, and nothing here"] if own else []
    return _with_names([entry for entry in entries if entry.name != "fa"]), notes


def _with_names(entries: list[Entry]) -> list[Entry]:
    """The options with the names of the logs made as the program makes them."""
    given = {entry.name: entry for entry in entries if entry.name in (*_NAMING, "output_name")}
    kept = [entry for entry in entries if entry.name not in _NAMING]
    value = {name: entry.value for name, entry in given.items()}
    output = value.get("output_name", "")
    prefix = {"output_name": f"{output}_", "disabled": None}.get(
        str(value.get("log_prefix_mode", "")), value.get("log_prefix")
    )
    run_name = {"output_name": output, "manual": value.get("run_name")}.get(
        str(value.get("run_name_mode", ""))
    )
    for name, made, key in (
        ("log_prefix", prefix, "log_prefix_mode"),
        ("wandb_run_name", run_name, "run_name_mode"),
    ):
        if not is_nothing(made):
            kept.append(Entry(name, made, (given.get(key) or given[name]).key))
    return kept


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


def dataset_tables(table: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What the file says of pictures, in the form of a dataset file: one dataset with its subsets. ``known``: the keys
    of a dataset; others that are options of the run are read as these."""
    dataset: dict[str, Any] = {}
    for content in table.values():
        if isinstance(content, dict) and isinstance(content.get("dataset_args"), dict):
            dataset |= content["dataset_args"]
    options = {field.name for part in PARTS for field in fields_of(part)}
    dataset = {key: value for key, value in dataset.items() if key in known or key not in options}
    subsets = [_subset(row) if isinstance(row, dict) else row for row in table.get("subsets", [])]
    return {"datasets": [{**dataset, "subsets": subsets}]}


def _subset(row: Mapping[str, Any]) -> dict[str, Any]:
    """A subset without the name that the program's window shows, and without the padding of crops that it has not."""
    own = _SUBSET_OWN if row.get("random_crop") else {*_SUBSET_OWN, "random_crop_padding_percent"}
    return {key: value for key, value in row.items() if key not in own}
