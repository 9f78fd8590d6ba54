"""``network_module`` ``lycoris.kohya``: what LyCORIS' own words ask for.

``algo`` names the algorithm, ``preset`` the modules. Unlike sd-scripts, LyCORIS gives kernels above 1x1 the rank and
alpha of linear layers unless ``conv_dim`` and ``conv_alpha`` say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.train.network.preset_file import is_preset_file

MODULE = algorithms.LYCORIS
DEFAULT_ALGO, DEFAULT_PRESET = algorithms.LYCORIS_ALGO, "full"
# Words that mean nothing while they are off.
OFF = frozenset({"false", "0", "0.0", "none", ""})
# What LyCORIS takes for every algorithm, and only some read: where one does not, it changes nothing there either.
_OF_SOME = frozenset(
    {
        *("dora_wd", "use_scalar", "rs_lora", "use_tucker", "use_cp"),
        *("full_matrix", "decompose_both", "unbalanced_factorization", "factor"),
        *("train_on_input", "rescaled", "constraint", "block_size", "wd_on_output", "wd_on_out"),
    }
)
# Of older versions.
RENAMED = {"constrain": "constraint"}
# How the product is computed, not what it is.
_WITHOUT_MEANING = frozenset({"bypass_mode"})
# LyCORIS' own defaults that are not ours.
_DEFAULTS: Mapping[str, tuple[str, ...]] = {"dylora": ("block_size=4",)}


@dataclass(frozen=True)
class Lycoris:
    """An algorithm of the table, a preset of :data:`.targets.PRESETS` or the path of a file, the arguments left, and
    the names of those that change nothing here."""

    algorithm: str
    preset: str
    words: tuple[str, ...]
    unused: tuple[str, ...] = ()


def read_lycoris(words: Iterable[str], presets: Iterable[str], known: Mapping[str, Iterable[str]]) -> Lycoris:
    """Take ``algo``, ``preset`` and what changes nothing out of ``network_args``. ``known``: of each algorithm, the
    arguments that it reads itself.

    Raises ConfigError for what is not trained here.
    """
    given: dict[str, str] = {}
    rest: list[str] = []
    unused: list[str] = []
    for word in words:
        name, sign, text = (piece.strip() for piece in word.partition("="))
        name = RENAMED.get(name, name)
        if name in ("algo", "preset"):
            given[name] = text
        elif name in _WITHOUT_MEANING:
            unused.append(name)
        else:
            rest.append(f"{name}{sign}{text}")
    algorithm = _algorithm(given.get("algo", DEFAULT_ALGO))
    preset = given.get("preset", DEFAULT_PRESET)
    if preset not in presets and not is_preset_file(preset):
        told = nearest(preset, presets) or f"; known: {', '.join(presets)}"
        raise ConfigError(f"network_args: preset '{preset}' is not known{told}; a preset file ends in .toml")
    own = set(known.get(algorithm, ()))
    others = [word for word in rest if (name := word.partition("=")[0]) in _OF_SOME and name not in own]
    unused += [word.partition("=")[0] for word in others if word.partition("=")[2].lower() not in OFF]
    left = tuple(word for word in rest if word not in others)
    names = {word.partition("=")[0] for word in left}
    if names.isdisjoint({"unit", "block_size"}):
        left += _DEFAULTS.get(algorithm, ())
    return Lycoris(algorithm, preset, left, tuple(unused))


def _algorithm(algo: str) -> str:
    known = algos()
    if algo.lower() not in known:
        told = nearest(algo.lower(), known) or f"; those that are: {', '.join(known)}"
        raise ConfigError(f"network_args: algo={algo} is not trained here{told}")
    return known[algo.lower()]


def algos() -> dict[str, str]:
    """LyCORIS' names of the algorithms that are trained here, and ours."""
    return {name: row.name for row in algorithms.ALGORITHMS if row.adapter for name in row.algos}
