"""Network files of a plan: found by path, pattern and folder, or by the name that a prompt calls them by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from glob import has_magic
from itertools import takewhile
from pathlib import Path

from lorapipe_engine.command.records import find_files
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.networks.read import PEFT_FILES, network_path
from lorapipe_engine.sampling.values import PLACES

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
NO_NETWORK = "None"  # A1111's word for an empty slot
_TOGETHER = re.compile(r"\s+\+\s+")
_DIGITS = re.compile(r"(\d+)")
MOST_STRENGTH = 1000.0


@dataclass(frozen=True)
class NetworkFile:
    """A network's file and the name that prompts and labels have for it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Loaded:
    """A network in a picture, with the strengths of text encoder and UNet; ``from_prompt``: a tag asked for it."""

    file: NetworkFile
    te: float = 1.0
    unet: float = 1.0
    from_prompt: bool = False


def expand_files(text: str, where: str) -> list[Path]:
    """The network files that a path, a folder or a pattern stands for, in natural order.

    Raises InputError where there is none.
    """
    path = Path(text).expanduser()
    if path.exists():
        return _files_of(path)
    if has_magic(text):
        fixed = list(takewhile(lambda part: not has_magic(part), path.parts))
        matches = Path(*fixed).glob("/".join(path.parts[len(fixed) :]))
        files = [path for path in matches if path.is_file() and path.suffix.lower() in SUFFIXES]
        if files:
            return sorted(files, key=_natural)
        raise InputError(f"{where}: {text} matches no network file")
    raise InputError(f"{where}: {text}: no such file or folder")


def split_together(text: str) -> list[str]:
    """The files of ``a.safetensors + b.safetensors``, which stand in one picture together; one where such a file is."""
    return [text] if Path(text).expanduser().exists() else _TOGETHER.split(text)


def parse_strength(word: str, where: str) -> tuple[str, float]:
    """``FILE:0.8`` as its file and strength, 1 without one. Raises ConfigError for a strength that is no number."""
    path, colon, text = word.rpartition(":")
    if not colon or Path(word).expanduser().exists() or not path or "/" in text or "\\" in text:
        return word, 1.0
    return path, check_strength(text, where)


def check_strength(value: str | float, where: str) -> float:
    """A strength, rounded to 8 places. Raises ConfigError."""
    try:
        number = float(value) if str(value).isascii() and "_" not in str(value) else float("nan")
    except ValueError:
        number = float("nan")
    if not abs(number) <= MOST_STRENGTH:
        raise ConfigError(f"{where}: '{value}' is no strength; a number of at most {MOST_STRENGTH:g} is")
    return round(number, PLACES)


class Shelf:
    """The networks that a plan knows by name: those of its axes and options, and all of some folders.

    A name is the file's without its ending; where two files have one name, or a file's name stands for no network,
    folders are put before it.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._paths: dict[Path, Path] = {}  # as they were given, by where they lead
        for folder in folders:
            for path in find_files(folder, SUFFIXES, recursive=True):
                self.add(path)

    def add(self, path: Path) -> None:
        """Put a file among the known ones."""
        self._paths.setdefault(path.resolve(), path)

    def file(self, path: Path) -> NetworkFile:
        """The file with the shortest name that no other has; ask after all have been added."""
        given, where = self._paths[path.resolve()], path.resolve()
        for depth in range(1, len(where.parts) + 1):
            name = _name(where, depth)
            if not _means_none(name) and sum(_name(known, depth) == name for known in self._paths) == 1:
                return NetworkFile(given, name)
        return NetworkFile(given, _name(where, len(where.parts)))

    def find(self, name: str, where: str) -> NetworkFile:
        """The network that a prompt calls ``name``: its file's name, or the end of its path, without the ending.

        Raises ConfigError for an unknown name, with the nearest, and for one that two files have.
        """
        paths = [given for where, given in self._paths.items() if _is_called(where, name)]
        if len(paths) == 1:
            return self.file(paths[0]) if _means_none(name) else NetworkFile(paths[0], name)
        if paths:
            raise ConfigError(
                f"{where}: <lora:{name}> may be {paths[0]} or {paths[1]}; write more of the path"
            )
        known = {_name(path) for path in self._paths}
        close = get_close_matches(name, known, 1)
        hint = f", did you mean '{close[0]}'?" if close else "; --lora-dir names the folder that it is in"
        raise ConfigError(f"{where}: <lora:{name}>: there is no such network{hint}")


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / "adapter_config.json").exists():
        return [network_path(path)]
    files = sorted(find_files(path, SUFFIXES), key=_natural)
    if not files:
        raise InputError(f"{path}: has no network file ({', '.join(SUFFIXES)})")
    return files


def _natural(path: Path) -> tuple[str, list[str | int]]:
    """Numbers in names by their value. The last epoch, whose name has no number, comes behind the others, for a dot
    comes behind a dash.
    """
    parts = _DIGITS.split(path.name)
    return str(path.parent), [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _name(path: Path, depth: int = 1) -> str:
    """The last ``depth`` parts of a path without its ending; an adapter's file is called as its folder."""
    whole = path.parent if path.name in PEFT_FILES else path.with_suffix("")
    return "/".join(whole.parts[-depth:])


def _means_none(name: str) -> bool:
    """Whether a label of this name would be that of a picture without a network."""
    return name.casefold() == NO_NETWORK.casefold()


def _is_called(path: Path, name: str) -> bool:
    return _name(path, name.count("/") + 1) == name
