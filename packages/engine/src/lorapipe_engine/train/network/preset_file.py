"""LyCORIS' preset files: which layers are trained, by class and by name, and with which algorithm.

A layer is chosen where it lies in a module of a class that ``unet_target_module`` or ``text_encoder_target_module``
names, or where its path matches a pattern of ``..._target_name``. ``module_algo_map`` says by class, ``name_algo_map``
by pattern, what such layers have instead of the run's own; a pattern counts before a class, an inner class before an
outer one. Patterns are regular expressions that match from the start of the path, with ``use_fnmatch`` of shells.

Classes and paths are those of diffusers and transformers, or those of the model's first code (LDM, SGM, OpenCLIP). A
pattern is held against a checkpoint's paths only where it has a word of them, since ``.*out`` would fit all of
``output_blocks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.command.documents import parse_toml, read_text
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
from lorapipe_engine.train.families.base import Family, TargetModule

_LISTS = (
    "unet_target_module",
    "unet_target_name",
    "text_encoder_target_module",
    "text_encoder_target_name",
    "exclude_name",
)
_MAPS = ("module_algo_map", "name_algo_map")
_FLAGS = ("enable_conv", "use_fnmatch")


@dataclass(frozen=True)
class PresetFile:
    """A preset file as it was read; ``changes`` are the arguments of a class or a pattern, by name, as texts."""

    path: Path
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    by_name: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    enable_conv: bool = True
    use_fnmatch: bool = False

    @property
    def maps(self) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
        """The tables of classes and patterns, by the file's names."""
        return {"module_algo_map": self.by_class, "name_algo_map": self.by_name}

    def matches(self, pattern: str, paths: Iterable[str]) -> bool:
        """Whether a pattern fits one of these paths."""
        if self.use_fnmatch:
            return any(fnmatchcase(path, pattern) for path in paths)
        return any(re.match(pattern, path) for path in paths)


@dataclass(frozen=True)
class _Place:
    """Where a layer lies: its paths in the module tree, in a checkpoint with and without the part's prefix, and the
    names of the classes around it from the root on, those of the model's first code too."""

    paths: tuple[str, ...]
    in_checkpoint: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """A layer, and what a class or a pattern of the file says of it: ``by``, None where none does."""

    row: TargetModule
    changes: Mapping[str, str]
    by: str | None = None


def is_preset_file(preset: str) -> bool:
    """Whether a value of ``preset`` is a file, not a name."""
    return preset.lower().endswith(".toml") or "/" in preset or "\\" in preset


def read_preset_file(path: Path) -> PresetFile:
    """Read a preset file. Raises ConfigError or InputError naming the file and what is wrong in it."""
    table = parse_toml(read_text(path, what="preset"), f"preset: {path}")
    known = (*_LISTS, *_MAPS, *_FLAGS)
    for name in table:
        if name not in known:
            told = nearest(name, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"preset: {path}: '{name}' is not known{told}")
    preset = PresetFile(
        path,
        {name: _texts(path, name, table[name]) for name in _LISTS if name in table},
        _map(path, "module_algo_map", table),
        _map(path, "name_algo_map", table),
        _flag(path, "enable_conv", table, True),
        _flag(path, "use_fnmatch", table, False),
    )
    for pattern in (
        *preset.by_name,
        *(text for name, row in preset.lists.items() if name.endswith("_name") for text in row),
    ):
        try:
            preset.matches(pattern, [""])
        except re.error as error:
            raise ConfigError(f"preset: {path}: '{pattern}' is no pattern: {error}") from error
    if not any(preset.lists.get(name) for name in _LISTS[:4]):
        raise ConfigError(f"preset: {path}: names no class and no layer to train ({', '.join(_LISTS[:4])})")
    return preset


def choose(preset: PresetFile, family: Family, layers: Iterable[TargetModule]) -> list[Chosen]:
    """The layers that the file chooses, in their order. Raises ConfigError where there is none."""
    chosen: list[Chosen] = []
    for row, place in _places(family, layers):
        side = "text_encoder" if is_text(row.part) else "unet"
        wanted = any(name in place.classes for name in preset.lists.get(f"{side}_target_module", ()))
        wanted |= any(_fits(preset, p, place, family) for p in preset.lists.get(f"{side}_target_name", ()))
        out = any(_fits(preset, p, place, family) for p in preset.lists.get("exclude_name", ()))
        large = isinstance(row.module, nn.Conv2d) and max(row.module.kernel_size) > 1
        if not wanted or out or (large and not preset.enable_conv):
            continue
        named = ((p, changes) for p, changes in preset.by_name.items() if _fits(preset, p, place, family))
        inner = ((n, preset.by_class[n]) for n in reversed(place.classes) if n in preset.by_class)
        by, changes = next(chain(named, inner), (None, {}))
        chosen.append(Chosen(row, changes, by))
    if not chosen:
        names = ", ".join(text for name in _LISTS[:4] for text in preset.lists.get(name, ()))
        raise ConfigError(
            f"preset: {preset.path}: none of its classes and patterns fits a layer of this model: {names}"
        )
    return chosen


def spare(preset: PresetFile, family: Family, layers: Iterable[TargetModule]) -> list[str]:
    """Classes and patterns of the file that fit no layer of the model, each once."""
    places = [(is_text(row.part), place) for row, place in _places(family, layers)]
    missing: list[str] = []
    for name, texts in (*preset.lists.items(), *((name, [*rows]) for name, rows in preset.maps.items())):
        side = None if name not in _LISTS[:4] else name.startswith("text_encoder")
        here = [place for of_text, place in places if side is None or of_text == side]
        for text in texts:
            if name.endswith("_module") or name == "module_algo_map":
                fits = any(text in place.classes for place in here)
            else:
                fits = any(_fits(preset, text, place, family) for place in here)
            if not fits:
                missing.append(text)
    return list(dict.fromkeys(missing))


def unused(preset: PresetFile, rows: Iterable[Chosen]) -> list[str]:
    """Classes and patterns of the maps that count for no chosen layer, since an earlier one does or none is chosen."""
    used = {row.by for row in rows}
    return [text for texts in preset.maps.values() for text in texts if text not in used]


def _fits(preset: PresetFile, pattern: str, place: _Place, family: Family) -> bool:
    paths = place.paths
    if family.facts.names.speaks_checkpoint(pattern):
        paths += place.in_checkpoint
    return preset.matches(pattern, paths)


def _places(family: Family, layers: Iterable[TargetModule]) -> Iterator[tuple[TargetModule, _Place]]:
    roots = family.parts.items()
    inside = {id(module): (path, root) for _, root in roots for path, module in root.named_modules()}
    names = family.facts.names
    first: dict[str, list[str]] = {}
    for old, new in names.classes.items():
        first.setdefault(new, []).append(old)
    depth = getattr(getattr(family.denoiser, "config", None), "layers_per_block", 2)
    for row in layers:
        path, root = inside[id(row.module)]
        stored = (
            names.in_checkpoint(family.facts, row.part, row.path, depth) if isinstance(depth, int) else None
        )
        prefix = family.facts.checkpoint_prefixes[row.part]
        yield (
            row,
            _Place(
                tuple(dict.fromkeys((path, row.path))),
                () if stored is None else (stored, prefix + stored),
                tuple(name for own in _classes(root, path) for name in (own, *first.get(own, ()))),
            ),
        )


def _classes(root: nn.Module, path: str) -> list[str]:
    """Names of the classes from the root down to a layer."""
    names, module = [type(root).__name__], root
    for piece in path.split(".") if path else ():
        module = getattr(module, piece)
        names.append(type(module).__name__)
    return names


def _texts(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"preset: {path}: {name} takes a list of texts")
    return tuple(value)


def _map(path: Path, name: str, table: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    value = table.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        raise ConfigError(f"preset: {path}: {name} takes a table for each class or pattern")
    return {key: {n: str(v) for n, v in row.items()} for key, row in value.items()}


def _flag(path: Path, name: str, table: Mapping[str, Any], default: bool) -> bool:
    value = table.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"preset: {path}: {name} takes true or false")
    return value
