"""Pairs of prompts that a slider is trained from (``--slider``): a TOML file of ``[[pairs]]``.

The names are those of LECO's and of sliders' files, in words that say which way is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.command.documents import parse_toml, read_text
from lorapipe_engine.command.options import fields_of
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings.data import DataSettings
from lorapipe_engine.settings.loss import LossSettings

ROWS_AN_EPOCH = 100  # batches, where dataset_repeats does not say otherwise
# Options of pictures and of noise that a slider has a use for; all others are refused.
_DATA = frozenset(
    {
        *(
            "slider",
            "resolution",
            "train_batch_size",
            "dataset_repeats",
            "bucket_reso_steps",
            "weighted_captions",
        ),
        *("cache_latents_to_disk", "cache_dir", "vae_batch_size"),
    }
)
_LOSS = frozenset(
    {
        *("v_parameterization", "flow_model", "flow_sample_shift", "zero_terminal_snr"),
        *("loss_type", "huber_schedule", "huber_c", "huber_scale", "min_timestep", "max_timestep"),
    }
)


@dataclass(frozen=True)
class Pair:
    """``target`` is the prompt that is changed, from what ``neutral`` gives, by ``strength`` times what tells
    ``positive`` from ``negative``."""

    target: str
    positive: str
    negative: str
    neutral: str
    strength: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """A file of pairs. ``steps`` of the sampler lead from noise to a picture, with ``guidance``; a step is trained
    somewhere on that way. ``both``: the network at strength -1 learns the other direction too."""

    rows: tuple[Pair, ...]
    steps: int = 20
    guidance: float = 3.0
    both: bool = True


def read_pairs(path: Path) -> Pairs:
    """The pairs of a file. Raises InputError for one that cannot be read, ConfigError for what is wrong in it."""
    where = f"slider: {path}"
    table = parse_toml(read_text(path, what="slider"), where)
    rows = table.pop("pairs", None)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{where}: has no [[pairs]] in it, each with positive and negative")
    given = _given(table, ("steps", "guidance", "both"), where)
    if not 2 <= given.get("steps", 2) <= 1000:
        raise ConfigError(f"{where}: steps must be 2 to 1000")
    pairs = [_pair(row, f"{where}: pair {number}") for number, row in enumerate(rows, 1)]
    _check_each(pairs, where)
    return Pairs(tuple(pairs), **given)


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    given = _given(row, tuple(one.name for one in fields(Pair)), where)
    if "positive" not in given:
        raise ConfigError(f"{where}: has no positive, the prompt of more of it")
    target = given.get("target", given.get("neutral", ""))
    pair = Pair(**{"negative": "", "neutral": target, **given, "target": target})
    if _read(pair.positive) == _read(pair.negative):
        raise ConfigError(
            f"{where}: positive and negative are equal, so there is nothing to learn; change one"
        )
    if pair.strength == 0:
        raise ConfigError(f"{where}: strength is 0, so there is nothing to learn")
    return pair


def _read(prompt: str) -> str:
    """A prompt as CLIP's text encoders read it: without capitals, and one space for several."""
    return " ".join(prompt.lower().split())


def _check_each(pairs: Sequence[Pair], where: str) -> None:
    """Raise ConfigError for a pair that is there twice, or takes back what another teaches."""
    seen: dict[tuple[str, str, str, str, float], int] = {}
    for number, pair in enumerate(pairs, 1):
        texts = [_read(text) for text in (pair.target, pair.neutral, pair.positive, pair.negative)]
        target, neutral, positive, negative = texts
        same = (target, neutral, positive, negative, pair.strength)
        back = (target, neutral, positive, negative, -pair.strength)
        turned = (target, neutral, negative, positive, -pair.strength)
        opposite = (target, neutral, negative, positive, pair.strength)
        for key, what in (
            (same, "says the same as"),
            (turned, "says the same as"),
            (back, "takes back"),
            (opposite, "takes back"),
        ):
            if key in seen:
                raise ConfigError(f"{where}: pair {number} {what} pair {seen[key]}; leave one of both out")
        seen[same] = number


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "steps": ((int,), "a whole number"),
    "guidance": ((int, float), "a number"),
    "strength": ((int, float), "a number"),
    "both": ((bool,), "true or false"),
}


def _given(table: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The entries of a table. Raises ConfigError for unknown names and values of another kind."""
    for name, value in table.items():
        if name not in names:
            raise ConfigError(
                f"{where}: {name}: unknown key{nearest(name, names)}; there are {', '.join(names)}"
            )
        kinds, words = _KINDS.get(name, ((str,), "a text"))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{where}: {name}: must be {words}")
    return dict(table)


def _set_in_vain(kind: type, settings: object, used: frozenset[str]) -> str | None:
    """The first option that is set and that a slider does not use."""
    return next(
        (
            row.name
            for row in fields_of(kind)
            if row.name not in used and getattr(settings, row.name) not in (row.default, 0, None)
        ),
        None,
    )


def check_slider(data: DataSettings, loss: LossSettings) -> None:
    """Raise ConfigError for options of pictures or of drawn noise, of which a slider has none."""
    if name := _set_in_vain(DataSettings, data, _DATA) or _set_in_vain(LossSettings, loss, _LOSS):
        raise ConfigError(
            f"{name}: is for training on pictures, and a slider has none; leave it or slider out"
        )
