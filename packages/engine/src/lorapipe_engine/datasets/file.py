"""The dataset file (``--dataset_config``): sd-scripts' TOML or JSON of general, datasets and their subsets.

What stands in a subset goes before what stands in its dataset, that before ``[general]``, and that before the command
line. Every key is checked where it stands; one that is not known is an error that says where and what is like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import is_nothing, nearest, place_of
from lorapipe_engine.command.documents import parse_json, parse_toml, read_text
from lorapipe_engine.command.foreign import ForeignOptions, ignored, obeyed, refused
from lorapipe_engine.command.options import Field, convert, fields_of, option
from lorapipe_engine.datasets.spec import DatasetSpec, Subset, dataset_of, subset_of
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.layout import MOST_REPEATS
from lorapipe_engine.settings import PARTS, DataSettings
from lorapipe_engine.settings.data import BaseSize
from lorapipe_engine.settings.programs import easy_scripts


@dataclass(frozen=True, kw_only=True)
class SubsetKeys:
    """Keys that only a dataset file has; ``num_repeats`` and ``class_tokens`` may stand above the subsets too."""

    image_dir: Path | None = option(None, "Folder of the pictures.")
    is_reg: bool = option(False, "These are regularisation pictures.")
    is_preserved: bool = option(False, "The base's answer to these is to stay, in place of training them.")
    num_repeats: int = option(1, "How often each picture comes in an epoch.", min=1, max=MOST_REPEATS)
    class_tokens: str | None = option(None, "Caption of pictures that have none.")
    metadata_file: Path | None = option(None, "JSON file of the pictures' captions and tags.")


OWN = {field.name: field for field in fields_of(SubsetKeys)}
_OPTIONS = {field.name: field for field in fields_of(DataSettings)}
_OF_RUN = {field.name for part in PARTS for field in fields_of(part)}
# By the names that they have in the file.
DATASET_KEYS = {
    "batch_size": _OPTIONS["train_batch_size"],
    **{
        name: _OPTIONS[name]
        for name in (
            *("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"),
            *("bucket_no_upscale", "validation_split", "validation_seed"),
        )
    },
}
SHARED_KEYS = {
    **{name: OWN[name] for name in ("num_repeats", "class_tokens")},
    **{
        name: _OPTIONS[name]
        for name in (
            *("shuffle_caption", "caption_separator", "keep_tokens", "keep_tokens_separator"),
            *("secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix"),
            *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate"),
            *("token_warmup_min", "token_warmup_step", "flip_aug", "color_aug", "random_crop"),
            *("resize_interpolation", "caption_extension"),
        )
    },
}
SUBSET_KEYS = {
    **{name: OWN[name] for name in ("image_dir", "is_reg", "is_preserved", "metadata_file")},
    **{name: _OPTIONS[name] for name in ("alpha_mask", "conditioning_data_dir")},
}


def _attributes(value: Any) -> dict[str, Any]:
    """The one of ``custom_attributes`` that sd-scripts reads. Raises ConfigError for what is no table."""
    if not isinstance(value, dict):
        raise ConfigError("must be a table, as { diff_output_preservation = true }")
    return {"is_preserved": value.get("diff_output_preservation", False)}


# Known, and no keys of ours.
FOREIGN = {
    **ignored("sizes of pictures are read from their headers, which is quick", "cache_info", flag=True),
    **ignored(
        "every picture is trained with the whole network, as in sd-scripts", "network_multiplier", off=(1,)
    ),
    **obeyed(
        "diff_output_preservation in it is taken as is_preserved, and nothing else is read",
        "custom_attributes",
        _attributes,
    ),
    **refused("use random_crop; or cut the pictures around the faces before", "face_crop_aug_range"),
    **refused("is spelt caption_extension", "caption_extention"),
}


@dataclass(frozen=True)
class _Level:
    """A kind of table in the file: its name for errors, the keys it may hold, the tables it may hold."""

    name: str
    keys: Mapping[str, Any]
    inside: tuple[str, ...] = ()


_GENERAL = _Level("[general]", {**DATASET_KEYS, **SHARED_KEYS})
_DATASET = _Level("[[datasets]]", {**DATASET_KEYS, **SHARED_KEYS}, ("subsets",))
_SUBSET = _Level("[[datasets.subsets]]", {**SHARED_KEYS, **SUBSET_KEYS})
_TOP = _Level("the file itself", {}, ("general", "datasets"))


@dataclass(frozen=True)
class _Source:
    """The file, its text and its folder; finds the places of keys, and judges those of :data:`FOREIGN`. ``subsets``:
    what was given to each, in it and above it."""

    path: Path
    text: str
    foreign: ForeignOptions = field(default_factory=lambda: ForeignOptions(FOREIGN))
    subsets: list[Mapping[str, Any]] = field(default_factory=list)

    def at(self, table: str, key: str = "") -> str:
        """Where a table, or a key in it, stands."""
        place = place_of(self.path, self.text, key) if key else str(self.path)
        return f"{place}: {table}"


def read_dataset_file(path: Path, data: DataSettings) -> tuple[DatasetSpec, ...]:
    """The datasets of a file; ``data`` says what the command line sets.

    Raises ConfigError for anything that is wrong in it, InputError if it cannot be read or names no folder.
    """
    source, root = _load(path)
    if "datasets" not in root and _OF_RUN & set(root):
        raise ConfigError(f"{path}: has options of a run and no [[datasets]]; give it as --config_file")
    _check_keys(source, _TOP, root, "")
    general = root.get("general", {})
    if not isinstance(general, dict):
        raise ConfigError(f"{source.at('general')}: must be a table, [general]")
    rows = _tables(source, root.get("datasets"), "datasets")
    if not rows:
        raise ConfigError(f"{path}: has no [[datasets]]")
    shared = _values(source, _GENERAL, general, "general")
    specs = []
    for index, row in enumerate(rows):
        place = f"datasets[{index}]"
        values = shared | _values(source, _DATASET, row, place)
        subsets = _tables(source, row.get("subsets"), f"{place}.subsets")
        if not subsets:
            raise ConfigError(f"{source.at(place)}: has no [[datasets.subsets]]")
        specs.append(_dataset(source, data, values, subsets, place))
    notes = (*source.foreign.notes, *_given_in_vain(data, source.subsets))
    return tuple(replace(spec, notes=notes) for spec in specs)


def _given_in_vain(data: DataSettings, subsets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each option that was given and of which the file has another value wherever it is trained."""
    options = {**DATASET_KEYS, **SHARED_KEYS, "num_repeats": _OPTIONS["dataset_repeats"]}
    for key, option_ in options.items():
        asked = getattr(data, option_.name, None)
        own = [row[key] for row in subsets if key in row]
        if asked in (None, option_.default) or isinstance(asked, BaseSize):
            continue
        if len(own) < len(subsets) or asked in own:
            continue
        sides = list(asked) if isinstance(asked, tuple) else asked
        yield f"{option_.name} {sides} is not used: {key} stands in the file for every subset"


def _dataset(
    source: _Source,
    data: DataSettings,
    values: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    place: str,
) -> DatasetSpec:
    subsets: list[Subset] = []
    places: dict[Path, str] = {}
    for index, row in enumerate(rows):
        here = f"{place}.subsets[{index}]"
        source.subsets.append({**values, **_values(source, _SUBSET, row, here)})
        subset = _subset(source, data, source.subsets[-1], here)
        before = places.setdefault(subset.folder.resolve(), here)
        if before != here:
            raise ConfigError(
                f"{source.at(here)}: {subset.folder} is the folder of {before} already; name it once, and say with "
                "num_repeats how often its pictures come"
            )
        subsets.append(subset)
    if all(subset.is_reg for subset in subsets):
        raise ConfigError(f"{source.at(place)}: has regularisation pictures only; one subset must be trained")
    if all(subset.is_reg or subset.is_preserved for subset in subsets):
        raise ConfigError(f"{source.at(place)}: every subset is_preserved; one must be trained")
    try:
        return dataset_of(_options(data, values), tuple(subsets))
    except ConfigError as error:
        raise ConfigError(f"{source.at(place)}: {error}") from error


def _subset(source: _Source, data: DataSettings, values: Mapping[str, Any], place: str) -> Subset:
    if values.get("image_dir") is None:
        raise ConfigError(f"{source.at(place)}: image_dir: missing, the folder of the pictures")
    options = _options(data, values)
    metadata = values.get("metadata_file")
    if metadata is not None and not metadata.is_file():
        metadata = source.path.parent / metadata
    masks = values.get("conditioning_data_dir")
    if masks is not None and not data.masked_loss:
        raise ConfigError(
            f"{source.at(place)}: conditioning_data_dir is used by --masked_loss; give that too"
        )
    if data.masked_loss and not values.get("is_reg") and masks is None and not options.alpha_mask:
        # The command line's own folder of masks counts for subsets that name none.
        masks = options.conditioning_data_dir
    return subset_of(
        options,
        _folder(source, values["image_dir"], f"{place}.image_dir"),
        masks=() if masks is None else (_folder(source, masks, f"{place}.conditioning_data_dir"),),
        repeats=values.get("num_repeats") or data.dataset_repeats or 1,
        class_tokens=values.get("class_tokens"),
        is_reg=values.get("is_reg", False),
        is_preserved=values.get("is_preserved", False),
        metadata=metadata,
    )


def _options(data: DataSettings, values: Mapping[str, Any]) -> DataSettings:
    """The command line's options with what the file says put over them."""
    changed = {
        field.name: values[name]
        for name, field in {**DATASET_KEYS, **SHARED_KEYS, **SUBSET_KEYS}.items()
        if name in values and field.name in _OPTIONS
    }
    return replace(data, **changed)


def _folder(source: _Source, folder: Path, place: str) -> Path:
    """A folder as seen from here, or from where the file lies. Raises InputError if it is neither."""
    for path in (folder, source.path.parent / folder):
        if path.is_dir():
            return path
    what = "is a file, not a folder" if folder.exists() else "no such folder"
    raise InputError(f"{source.at(place, place.rpartition('.')[2])}: {folder}: {what}")


# ------------------------------------------------------------------------------------------------- keys


def _values(source: _Source, level: _Level, table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The checked values of a table's keys."""
    _check_keys(source, level, table, place)
    options: dict[str, Any] = {}
    for key, value in table.items():
        meant = source.foreign(key, value, source.at(place, key))
        for name, given in ({key: value} if meant is None else meant).items():
            field = level.keys.get(name) or OWN.get(name)
            if field is None or _leaves_open(field, given):
                continue
            try:
                options[name] = convert(field, given, "")
            except ConfigError as error:
                reason = str(error).replace(f"{field.name}:", f"{key}:", 1)
                raise ConfigError(f"{source.at(place, key)}: {reason}") from None
    return options


def _leaves_open(field: Field, value: Any) -> bool:
    """Whether a key is there and gives no value. An empty text does, where such a text is what the option begins with:
    it takes back what stands above."""
    if field.type is bool:
        return value is None or value == ""
    return is_nothing(value) and not (value == "" and field.default == "")


def _check_keys(source: _Source, level: _Level, table: Mapping[str, Any], place: str) -> None:
    for key in table:
        if key in level.keys or key in level.inside or (key in FOREIGN and level is not _TOP):
            continue
        where = source.at(f"{place}.{key}" if place else key, key)
        home = _home_of(key)
        if home:
            raise ConfigError(f"{where}: belongs in {home}, not in {level.name}")
        known = [*level.keys, *level.inside, *FOREIGN] if level.keys else [*level.inside, "subsets"]
        near = nearest(key, known)
        if key in _OF_RUN and not near:
            raise ConfigError(f"{where}: an option of the run; give it as --{key} or in --config_file")
        raise ConfigError(f"{where}: unknown key{near}")


def _home_of(key: str) -> str:
    """Where a known key may stand; empty for an unknown one."""
    return " or ".join(
        row.name
        for row in (_GENERAL, _DATASET, _SUBSET, _TOP)
        if key in row.keys or key in row.inside or (key in FOREIGN and row is not _TOP)
    )


def _tables(source: _Source, value: Any, place: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ConfigError(f"{source.at(place)}: must be tables, each under [[{_plain(place)}]]")
    return value


def _plain(place: str) -> str:
    return "datasets.subsets" if place.endswith("subsets") else place


def _load(path: Path) -> tuple[_Source, dict[str, Any]]:
    text = read_text(path, what="dataset_config")
    tables = parse_json(text, str(path)) if path.suffix.lower() == ".json" else parse_toml(text, str(path))
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: must hold general and datasets")
    if easy_scripts.marks(tables):
        tables = easy_scripts.dataset_tables(tables, _DATASET.keys)
    return _Source(path, text), tables
