"""Several runs from one command line: a file of options for each, or one of which some options are varied."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.command.options import Field, convert, fields_of
from lorapipe_engine.command.printed import print_config
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import PARTS, TrainSettings

MOST = 1000  # runs of one command
# What names a run's results is made of what is varied, so it is not varied itself.
_FIXED = ("output_dir", "output_name", "overwrite")
# What a network has behind its run's name (train/results/numbering.py); the last state has "-end".
RESULT = re.compile(r"(-\d{6,}|-step\d{8,}|-best)?(-ema)?")
_LONGEST = 180  # bytes of a name, to which epochs and suffixes are added

Parts = tuple[list[Any], dict[str, str]]
Build = Callable[[Mapping[str, Any], Path | None], Parts]


@dataclass(frozen=True)
class Run:
    """One run: what it is called in lines for the user, its settings, and where each option came from."""

    label: str
    settings: TrainSettings
    origin: Mapping[str, str]

    def print_config(self) -> str:
        """All options as commented TOML."""
        return print_config([getattr(self.settings, row.name) for row in fields(TrainSettings)], self.origin)


@dataclass(frozen=True)
class Varied:
    """An option with the values that runs are made of, as they were written, and as its flag takes them."""

    name: str
    texts: tuple[str, ...]
    flags: tuple[Any, ...]


_LONG_DASHES = ("\u2013", "\u2014", "\u2212")


def sort_words(words: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """Words of the command line that are no options: the folder of pictures, if there is one, and files of options.

    Raises ConfigError for anything else.
    """
    folders = [word for word in words if word.is_dir()]
    files = [word for word in words if word not in folders]
    for word in files:
        if str(word).startswith(_LONG_DASHES):
            plain = f"--{str(word).lstrip(''.join(_LONG_DASHES))}"
            raise ConfigError(f"{word}: begins with a long dash, as texts have it; write {plain}")
        if str(word).lower() in ("true", "false"):
            raise ConfigError(f"{word}: a switch takes no value; --NAME turns it on, --no_NAME off")
        if word.suffix.lower() not in (".toml", ".json"):
            what = "is no .toml or .json file of options" if os.path.lexists(word) else "does not exist"
            raise ConfigError(f"{word}: {what}, and no folder of pictures either")
    if len(folders) > 1:
        raise ConfigError(
            f"{folders[1]}: a second folder; a run trains on one train_data_dir, several go into a --dataset_config"
        )
    return (folders[0] if folders else None), files


def read_varied(words: Sequence[str], flags: Mapping[str, Any]) -> list[Varied]:
    """What ``--vary NAME=VALUE,VALUE`` asks for. Raises ConfigError for an option that is none, cannot be varied or is
    given as a flag too, and for values that it does not take."""
    known = {field.name: field for part in PARTS for field in fields_of(part)}
    aliases = {field.facts.alias: name for name, field in known.items() if field.facts.alias}
    varied: dict[str, Varied] = {}
    for word in words:
        given, equals, text = word.partition("=")
        name = given.strip().lstrip("-").replace("-", "_")
        name = aliases.get(name, name)
        if not equals or not text.strip():
            raise ConfigError(f"vary: {word!a} is not of the form NAME=VALUE,VALUE, as unet_lr=1e-4,2e-4")
        if name not in known:
            raise ConfigError(f"vary: no option {given.strip()!a}{nearest(name, known)}")
        if name in _FIXED or known[name].facts.secret:
            raise ConfigError(
                f"vary: {name} cannot be varied; results are named after the values of what is varied"
            )
        if flags.get(name) not in (None, ()):
            raise ConfigError(f"vary: {name} is given as an option too; leave one of both out")
        if name in varied:
            raise ConfigError(f"vary: {name} is given twice; write all its values behind one =")
        texts = tuple(part.strip() for part in text.split(","))
        varied[name] = Varied(name, texts, tuple(_flag(known[name], one) for one in texts))
        _refuse_repeated(known[name], varied[name])
    return list(varied.values())


def _flag(field: Field, text: str) -> Any:
    """A value as the command line gives it to the option, looked at now."""
    raw: Any = text
    if field.type is bool:
        raw = {"true": True, "false": False}.get(text.lower(), text)
    elif field.is_list:
        raw = (text,)
    convert(field, raw, " (from --vary)")
    return raw


def _refuse_repeated(field: Field, varied: Varied) -> None:
    """Raise ConfigError for a value that is given twice, in whatever form."""
    seen: dict[str, str] = {}
    for text, flag in zip(varied.texts, varied.flags, strict=True):
        value = repr(convert(field, flag, " (from --vary)"))
        if value in seen:
            both = f"{seen[value]} and {text} are" if seen[value] != text else f"{text} twice is"
            raise ConfigError(f"vary: {varied.name}: {both} one value; give each once")
        seen[value] = text


def make_runs(
    files: Sequence[Path], varied: Sequence[Varied], flags: Mapping[str, Any], build: Build
) -> list[Run]:
    """A run for each file (or the command line alone) and each combination of values, in the order given.

    Raises ConfigError for more than :data:`MOST`, for two with one output, and as ``build`` does.
    """
    count = math.prod(len(row.texts) for row in varied) * max(len(files), 1)
    if count > MOST:
        raise ConfigError(
            f"vary: {count:,} runs, {MOST:,} are the most of one command; at ten minutes a run they would take "
            f"{count / 144:,.0f} days"
        )
    runs = [
        _make_run(file, varied, row, flags, build)
        for file in (files or (None,))
        for row in itertools.product(*(range(len(one.texts)) for one in varied))
    ]
    _check_outputs(runs)
    return runs


def _make_run(
    file: Path | None,
    varied: Sequence[Varied],
    row: Sequence[int],
    flags: Mapping[str, Any],
    build: Build,
) -> Run:
    chosen = list(zip(varied, row, strict=True))
    try:
        parts, origin = build({**flags, **{one.name: one.flags[place] for one, place in chosen}}, file)
        model, data, network, optimizer, loss, run = parts
        name = run.output_name + "".join(f"-{one.name}={_plain(one.texts[place])}" for one, place in chosen)
        if len(os.fsencode(name)) > _LONGEST and chosen:
            raise ConfigError(f"vary: {name[:60]}... is too long a name for results; vary fewer options")
        settings = TrainSettings(
            model=model,
            data=data,
            network=network,
            optimizer=optimizer,
            loss=loss,
            run=replace(run, output_name=name),
        )
    except ConfigError as error:
        # Of one file the error says where it is; of several, and for what is worked out, it may not.
        shown = str(file) if file is not None else ""
        raise error if not shown or shown in str(error) else ConfigError(f"{shown}: {error}") from None
    places = {one.name: "from --vary" for one, _ in chosen}
    values = " ".join(f"{one.name}={one.texts[place]}" for one, place in chosen)
    label = " ".join(word for word in (str(file) if file is not None else "", values) if word)
    return Run(label or name, settings, {**origin, **places})


def _plain(text: str) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^\w.+-]", "-", text)


def _check_outputs(runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, str], Run] = {}
    for run in runs:
        settings = run.settings.run
        # Some file systems take capital letters for small ones.
        key = os.path.realpath(settings.output_dir), settings.output_name.casefold()
        if key in seen:
            output = settings.output_dir / settings.output_name
            raise ConfigError(
                f"{seen[key].label} and {run.label}: both write {output}; give each an output_name of its own"
            )
        seen[key] = run
    for (folder, name), run in seen.items():
        ends = [place for place, letter in enumerate(name) if letter == "-"]
        cuts = [name[:end] for end in ends if RESULT.fullmatch(name, end) or name[end:] == "-end"]
        other = next((seen[folder, cut] for cut in cuts if (folder, cut) in seen), None)
        if other is not None:
            output = run.settings.run.output_dir / run.settings.run.output_name
            raise ConfigError(
                f"{other.label} and {run.label}: both may write {output}, the first as it trains; give one of them "
                "another output_name"
            )


def require_inputs(settings: TrainSettings) -> None:
    """Raise ConfigError where a base or pictures are not named."""
    if settings.model.pretrained_model_name_or_path is None:
        raise ConfigError("no base model: give --base FILE, a diffusers folder, a hub id, or --base demo")
    data = settings.data
    if data.train_data_dir is None and data.dataset_config is None and data.slider is None:
        raise ConfigError(
            "no dataset: give --train_data_dir FOLDER with folders N_concept in it, --dataset_config FILE, or --slider "
            "FILE of prompts"
        )
