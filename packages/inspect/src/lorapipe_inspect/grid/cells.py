"""The cells of a grid: pictures with the values that each was made with, out of records or of the pictures' own
parameters.

What a record says overrides what stands in its picture. Values are numbers or texts under the names of axes: ``file``,
``weight`` (or ``unet`` and ``te`` where they differ), ``seed``, ``prompt``, ``negative``, ``cfg``, ``steps``,
``sampler``, ``schedule``, ``eta``, ``size``, ``clip_skip``, ``base``, ``vae``. A record may have axes of its own in an
object ``axes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from lorapipe_engine.command.records import STREAM, Record, find_files, read_list, read_records
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.parameters import parameters_of
from lorapipe_engine.sampling.infotext import Infotext, read_infotext
from lorapipe_engine.sampling.prompts.tags import Tag, split_known_tags

Value = str | float

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LISTS = (".jsonl", ".ndjson")
# Names of axes in records, and in the last line of parameters.
FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "file": ("file", "network", "lora"),
        "weight": ("weight", "strength"),
        "unet": ("unet", "unet_weight"),
        "te": ("te", "te_weight", "text_encoder_weight"),
        "trigger": ("trigger",),
        "base": ("base", "Model"),
        "vae": ("vae", "VAE"),
        "prompt": ("prompt",),
        "negative": ("negative", "negative_prompt"),
        "seed": ("seed", "Seed"),
        "cfg": ("cfg", "cfg_scale", "CFG scale"),
        "steps": ("steps", "Steps"),
        "sampler": ("sampler", "Sampler"),
        "schedule": ("schedule", "Schedule type"),
        "eta": ("eta", "Eta"),
        "denoising": ("denoising", "Denoising strength"),
        "size": ("size", "Size"),
        "clip_skip": ("clip_skip", "Clip skip"),
    }
)
NUMBERS = frozenset(
    {"weight", "unet", "te", "seed", "cfg", "steps", "eta", "denoising", "clip_skip", "epoch", "rank"}
)
NETWORK = ("file", "weight", "unet", "te")
_NO_FILE = ("", "None", "none")
_TEXTS = ("infotext", "parameters")
MOST_AXES = 12


@dataclass(frozen=True)
class Cell:
    """A picture and how it was made. ``values`` has no ``file`` where the base made it alone.

    ``data``: the fields of its record, such as a tagger's scores. ``declared``: the axes that its record names.
    ``error``: why there is no picture. ``tags``: the networks of its prompt, until :func:`find_cells` has put them
    among the values.
    """

    path: Path
    values: Mapping[str, Value]
    infotext: str
    data: Mapping[str, Any]
    declared: tuple[str, ...] = ()
    error: str | None = None
    tags: tuple[Tag, ...] | None = None


def find_cells(words: Sequence[str], stdin: BinaryIO | None = None) -> list[Cell]:
    """The cells that words name: records, pictures, folders of pictures, lists of records (``.jsonl``), or ``-``.

    A picture that cannot be read is a cell with an error. Raises InputError where nothing can be laid out.
    """
    cells = [_cell(record) for record in _records(words, stdin)]
    if not cells:
        raise InputError("no cells: the list is empty")
    return _each_once(_with_networks(cells))


def _each_once(cells: Sequence[Cell]) -> list[Cell]:
    """Cells without those that are the same picture with the same values: a base has one record for each weight."""
    first_cells: dict[tuple[Path, frozenset[tuple[str, Value]]], Cell] = {}
    for cell in cells:
        first_cells.setdefault((cell.path, frozenset(cell.values.items())), cell)
    return list(first_cells.values())


def _records(words: Sequence[str], stdin: BinaryIO | None) -> Iterator[Record]:
    for word in words or (STREAM,):
        path = Path(word)
        if word == STREAM:
            for record in read_records([STREAM], stdin):
                yield from _expanded(record)
        elif path.suffix.lower() in LISTS:
            try:
                with path.open("rb") as file:
                    for record in read_list(file, str(path)):
                        yield from _expanded(_beside(record, path.parent))
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            yield from _expanded(Record(path))


def _beside(record: Record, folder: Path) -> Record:
    """A record of a list: its picture where the path says, else beside the list, which may have been moved with it."""
    if record.path.is_absolute() or record.path.exists() or not (folder / record.path).exists():
        return record
    return Record(folder / record.path, record.data)


def _expanded(record: Record) -> Iterator[Record]:
    if not record.path.is_dir():
        yield record
        return
    paths = find_files(record.path, SUFFIXES)
    if not paths:
        raise InputError(f"{record.path}: has no {', '.join(SUFFIXES)} files")
    yield from (Record(path, record.data) for path in paths)


# -------------------------------------------------------------------------------- one cell


def _cell(record: Record) -> Cell:
    data = record.data
    text = next((data[name] for name in _TEXTS if isinstance(data.get(name), str)), "")
    error = str(data["error"]) if data.get("error") else None
    if error is None:
        stored, error = _stored(record.path)
        text = text or stored
    info = read_infotext(text)
    axes = data.get("axes")
    own = axes if isinstance(axes, Mapping) else {}
    values = {**_from_infotext(info), **_from_fields(data)}
    values |= {
        plain_name(str(name)): value for name, raw in own.items() if (value := _value(raw)) is not None
    }
    tags: tuple[Tag, ...] | None = split_known_tags(info.prompt)[1]
    if isinstance(values.get("prompt"), str):
        values["prompt"], in_prompt = split_known_tags(str(values["prompt"]))
        tags = in_prompt if "prompt" in data or "prompt" in own else tags
    if "file" in data or "file" in map(plain_name, map(str, own)) or any(name in data for name in NETWORK):
        tags = None  # the record says it itself
    for name, value in values.items():
        if isinstance(value, int | float) or name.split(" ")[0] in NUMBERS:
            values[name] = _number(value)
    return Cell(
        record.path,
        values,
        text,
        data,
        declared=tuple(plain_name(str(name)) for name in list(own)[:MOST_AXES]),
        error=error,
        tags=tags,
    )


def _stored(path: Path) -> tuple[str, str | None]:
    """The parameters in a picture, and why it cannot be read."""
    try:
        return parameters_of(path) or "", None
    except FileNotFoundError:
        return "", "there is no such file"
    except Exception as error:  # Pillow raises whatever its readers meet
        return "", _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, ValueError) and not isinstance(error, SyntaxError):
        return str(error) or "no picture that can be read"
    return "no picture that can be read"


def _from_infotext(info: Infotext) -> dict[str, Value]:
    values: dict[str, Value] = {
        name: text
        for name, keys in FIELDS.items()
        for key in keys
        if key[0].isupper() and (text := info.written(key)) is not None
    }
    # As the extension for additional networks writes its slots.
    model = info.written("AddNet Model 1")
    if model:
        values["file"] = model
        weights = [info.pairs.get(f"AddNet Weight {part} 1", "1") for part in "AB"]
        values |= (
            {"weight": weights[0]} if weights[0] == weights[1] else {"unet": weights[0], "te": weights[1]}
        )
    # A prompt of nothing but networks is none, as that of the base beside it.
    if split_known_tags(info.prompt)[0]:
        values["prompt"] = info.prompt
    if info.negative:
        values["negative"] = info.negative
    return values


def _from_fields(data: Mapping[str, Any]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, keys in FIELDS.items():
        raw = next((data[key] for key in keys if key in data), None)
        value = _value(raw)
        if value is None and name == "file" and any(key in data for key in keys):
            value = _NO_FILE[0]
        if value is not None:
            values[name] = value
    return values


def _value(raw: Any) -> Value | None:
    """A value of a record: a number or a text; a pair of numbers is a size."""
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, int | float | str):
        return raw
    if isinstance(raw, list) and len(raw) == 2 and all(isinstance(side, int) for side in raw):
        return f"{raw[0]}x{raw[1]}"
    return None


def _number(value: Value) -> Value:
    """A number where the text is one; whole ones as int, so that 7 and 7.0 are one value."""
    try:
        number = float(value)
    except ValueError:
        return value
    if number != number or number in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, int):
        return value
    return int(number) if number == int(number) and abs(number) < 2**53 else round(number, 8)


def plain_name(name: str) -> str:
    """The name of an axis, whichever of its spellings is used: ``CFG Scale`` and ``cfg`` are one."""
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    for known, spellings in FIELDS.items():
        if folded in {spelling.lower().replace(" ", "_") for spelling in (known, *spellings)}:
            return known
    return {"checkpoint_name": "base", "te_weight": "te", "schedule_type": "schedule"}.get(folded, folded)


# -------------------------------------------------------------------------------- networks of prompts


def _with_networks(cells: Sequence[Cell]) -> list[Cell]:
    """Put the networks of the prompts among the values. Those that all cells share at one strength are left out, where
    others are left in some cell: they belong to what is compared on both sides.
    """
    tagged = [cell.tags for cell in cells if cell.tags is not None]
    shared = Counter(tag for tags in tagged for tag in set(tags))
    common = {tag for tag, count in shared.items() if count == len(cells)}
    if all(set(tags) <= common for tags in tagged):
        common = set()
    return _alike_strengths([_with_tags(cell, common) for cell in cells])


def _alike_strengths(cells: list[Cell]) -> list[Cell]:
    """Where some cell has strengths of its own for the parts, give every cell ``unet`` and ``te`` for ``weight``."""
    if not any("unet" in cell.values or "te" in cell.values for cell in cells):
        return cells
    changed = []
    for cell in cells:
        values = dict(cell.values)
        weight = values.pop("weight", None)
        if weight is not None:
            values = {"unet": weight, "te": weight, **values}
        changed.append(replace(cell, values=values))
    return changed


def _with_tags(cell: Cell, common: set[Tag]) -> Cell:
    values = dict(cell.values)
    for place, tag in enumerate([tag for tag in cell.tags or () if tag not in common], 1):
        end = f" {place}" if place > 1 else ""
        # A tag is a network, whatever it is called.
        values[f"file{end}"] = f"lora:{tag.name}" if tag.name in _NO_FILE else tag.name
        if tag.te == tag.unet:
            values[f"weight{end}"] = _number(tag.te)
        else:
            values |= {f"te{end}": _number(tag.te), f"unet{end}": _number(tag.unet)}
    if not _has_network(values):
        values = {name: value for name, value in values.items() if name.split(" ")[0] not in NETWORK}
    return replace(cell, values=values, tags=None)


def _has_network(values: Mapping[str, Value]) -> bool:
    """Whether a network is named, or a strength of one that is not. lora-sample and A1111 call the base None."""
    files = [values[name] for name in values if name.split(" ")[0] == "file"]
    return any(file not in _NO_FILE for file in files) or (not files and any(_strengths(values)))


def _strengths(values: Mapping[str, Value]) -> list[Value]:
    return [values[name] for name in values if name.split(" ")[0] in NETWORK and name.split(" ")[0] != "file"]


def is_base(values: Mapping[str, Value]) -> bool:
    """Whether no network has a part in a picture: none is named, or all strengths are zero."""
    strengths = _strengths(values)
    return not _has_network(values) or (bool(strengths) and not any(strengths))
