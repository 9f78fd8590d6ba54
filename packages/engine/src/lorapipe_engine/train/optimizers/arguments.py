"""``optimizer_args`` and their like: parsed, named and typed right before anything is loaded."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lorapipe_engine.command.process.libraries import uncollected
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.optimizers.kinds import OptimizerKind
from lorapipe_engine.train.optimizers.registry import optimizer_kind

_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


def parse_arguments(pairs: Sequence[str], option: str = "optimizer_args") -> dict[str, Any]:
    """``k=v`` pairs with Python literals; ``betas=0.9,0.99`` is a tuple, anything that is no literal a string.

    Raises ConfigError for a pair of another form or a name given twice.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = (word.strip() for word in pair.partition("="))
        if not sign or not key.isidentifier():
            raise ConfigError(f"{option}: '{pair}' is not of the form name=value")
        if key in arguments:
            raise ConfigError(f"{option}: {key} is given twice")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = _WORDS.get(text.lower(), text)
    return arguments


def check_arguments(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The arguments for an optimizer's class, defaults included.

    The guide's values are taken only where ``pairs`` is empty; see :class:`OptimizerKind`. Raises ConfigError for a
    name that the class does not take (the nearest is named), a value of the wrong type, or one that it refuses.
    """
    kind = optimizer_kind(name)
    given = parse_arguments(pairs)
    known = _parameters(kind)
    if "lr" in given:
        raise ConfigError(
            "optimizer_args: the rate is set by learning_rate, unet_lr and text_encoder_lr, not by lr="
        )
    for key in given:
        if key not in (*known, *kind.renamed, *kind.ignored):
            raise ConfigError(
                f"optimizer_args: {kind.name} has no argument '{key}'; {_hint(key, known, kind)}"
            )
    chosen = {**kind.always, **(given or kind.guide)}
    arguments: dict[str, Any] = {}
    for key, value in chosen.items():
        if key in kind.ignored:
            continue
        own = kind.renamed.get(key, key)
        if own not in known:
            continue  # a default for another version of the package
        arguments[own] = checked(f"optimizer_args: {kind.name}: {key}", known[own].default, value)
    try_out(kind, arguments)
    return arguments


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """Arguments as ``k=v,k=v``."""
    return ",".join(f"{name}={value}" for name, value in arguments.items())


def _parameters(kind: OptimizerKind) -> dict[str, inspect.Parameter]:
    return {
        name: p
        for name, p in inspect.signature(kind.load()).parameters.items()
        if name not in ("params", "lr") and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _hint(key: str, known: Mapping[str, Any], kind: OptimizerKind) -> str:
    near = difflib.get_close_matches(key, [*known, *kind.renamed], 1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"


def checked(where: str, default: Any, value: Any) -> Any:
    """A value of the same type as the parameter's default; a default of None takes anything.

    Raises ConfigError naming what was expected.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} takes True or False, not '{value}'")
    elif isinstance(default, int | float):
        if not number:
            raise ConfigError(f"{where} takes a number, not '{value}'")
    elif isinstance(default, tuple):
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if len(values) != len(default) or not all(isinstance(v, int | float | None) for v in values):
            raise ConfigError(f"{where} takes {len(default)} numbers, as {_example(default)}, not '{value}'")
        return values
    elif isinstance(default, str) and not isinstance(value, str):
        raise ConfigError(f"{where} takes a word, as {default}, not '{value}'")
    return value


def _example(default: tuple[Any, ...]) -> str:
    return ",".join(str(value) for value in default)


def try_out(kind: OptimizerKind, arguments: Mapping[str, Any]) -> None:
    """Make the optimizer for four values, so that a value out of range is found before anything is loaded."""
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    rate = None if sets_own_rate(kind, arguments) else kind.rate
    try:
        # Torch imports its compiler with the first optimizer.
        with uncollected(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.load()([parameter], **{"lr": rate, **arguments})
    except Exception as error:  # packages have errors of their own, some derived from nothing but Exception
        raise ConfigError(f"optimizer_args: {kind.name}: {error}") from error


def sets_own_rate(kind: OptimizerKind, arguments: Mapping[str, Any]) -> bool:
    """Whether the optimizer takes no rate: Adafactor, unless ``relative_step=False``."""
    return kind.name == "AdaFactor" and bool(arguments.get("relative_step", True))
