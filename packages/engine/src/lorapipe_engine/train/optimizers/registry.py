"""Optimizers by name: the table, and any class of torch, pytorch_optimizer or another package.

A new family is a file of rows beside this one, and its line in ``_ROWS``.
"""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.train.optimizers import adafactor, adamw, dadaptation, lion, prodigy, schedule_free, sgd
from lorapipe_engine.train.optimizers.kinds import OptimizerKind

_ROWS = (adamw, lion, sgd, adafactor, dadaptation, prodigy, schedule_free)

KINDS: dict[str, OptimizerKind] = {kind.name.lower(): kind for module in _ROWS for kind in module.KINDS}

EASY_PACKAGE = "LoraEasyCustomOptimizer"  # of LoRA_Easy_Training_Scripts; in no package index
# Packages with optimizers and schedulers, by the name that is imported, as they are installed.
PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "came_pytorch": "came-pytorch",
    "cosine_annealing_warmup": "cosine-annealing-warmup",
    "dadaptation": "dadaptation",
    "diffusers": "diffusers",
    "lion_pytorch": "lion-pytorch",
    "prodigyopt": "prodigyopt",
    "prodigyplus": "prodigy-plus-schedule-free",
    "pytorch_optimizer": "pytorch-optimizer",
    "schedulefree": "schedulefree",
    "torch_optimizer": "torch-optimizer",
    "transformers": "transformers",
}

# Of torch's optimizers those that treat every value alone, so that flat buffers change nothing.
_ELEMENTWISE = ("Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "SGD")

_REFUSED = {
    "lbfgs": "LBFGS runs the model several times a step, which training on random noise does not allow",
    "sparseadam": "SparseAdam is for sparse gradients; LoRA's are dense",
    "adahessian": "AdaHessian needs second derivatives, which training here does not compute",
    "sophiah": "SophiaH needs second derivatives, which training here does not compute",
}


def optimizer_kind(name: str) -> OptimizerKind:
    """Look an optimizer up, ignoring case: a name of the table, ``module.Class``, or a class of torch.optim or
    pytorch_optimizer.

    Raises ConfigError naming the nearest known one, or why it cannot be used; MissingExtra for a missing package.
    """
    known = KINDS.get(name.lower())
    if known is not None:
        return known
    reason = _REFUSED.get(name.rpartition(".")[2].lower())
    if reason:
        raise ConfigError(f"optimizer_type: {reason}; AdamW is the usual choice")
    if name.partition(".")[0] == EASY_PACKAGE:
        return _of_easy_scripts(name)
    if "." in name or ":" in name:
        module, _, attribute = name.replace(":", ".").rpartition(".")
        return _generic(name, module, attribute)
    for module in ("torch.optim", "pytorch_optimizer"):
        for attribute in _classes_of(module):
            if attribute.lower() == name.lower():
                return _generic(name, module, attribute)
    near = difflib.get_close_matches(name.lower(), KINDS, 1)
    hint = f"did you mean {KINDS[near[0]].name}?" if near else f"known: {', '.join(known_names())}"
    raise ConfigError(f"optimizer_type: '{name}' is unknown; {hint} (other classes as module.Class)")


def _of_easy_scripts(name: str) -> OptimizerKind:
    """The optimizer that a class of LoRA_Easy_Training_Scripts is, which is in no package index."""
    own = name.rpartition(".")[2]
    try:
        return optimizer_kind(own)
    except ConfigError:
        raise ConfigError(
            f"optimizer_type: {name} is a class of LoRA_Easy_Training_Scripts alone, and no optimizer of that name is "
            f"known here; AdamW8bit is the usual choice"
        ) from None


def not_importable(option: str, name: str, module: str, error: ImportError) -> MissingExtra:
    """The error for a class whose package is not there. How to install it is said of packages that are known: another
    may lie under any name in the index, with anyone's code in it."""
    package = PACKAGES.get(module.partition(".")[0])
    mend = f"pip install {package}" if package else "install the package that has it, by its own instructions"
    return MissingExtra(f"{option}: {name}: cannot import {module} ({error}); if it is not installed: {mend}")


def known_names() -> list[str]:
    """The names of the table, as users write them."""
    return [kind.name for kind in KINDS.values()]


def _classes_of(module: str) -> list[str]:
    """Names of the optimizer classes of a package, none where it is not installed."""
    if find_spec(module.partition(".")[0]) is None:
        return []
    loaded = import_module(module)
    return [name for name in dir(loaded) if name[0].isupper() and _is_optimizer(getattr(loaded, name))]


def _is_optimizer(value: Any) -> bool:
    from torch.optim import Optimizer

    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _generic(name: str, module: str, attribute: str) -> OptimizerKind:
    """A kind for a class that the table does not know, by what its signature tells."""
    if not module or not attribute:
        raise ConfigError(f"optimizer_type: '{name}' is not of the form module.Class")
    try:
        optimizer = getattr(import_module(module), attribute)
    except ImportError as error:
        raise not_importable("optimizer_type", name, module, error) from error
    except AttributeError as error:
        raise ConfigError(f"optimizer_type: {name}: {module} has no class '{attribute}'") from error
    if not _is_optimizer(optimizer):
        raise ConfigError(f"optimizer_type: {name} is not an optimizer class of torch")
    _check_usable(name, optimizer)
    rate = inspect.signature(optimizer).parameters.get("lr")
    averaged = callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
    return OptimizerKind(
        name=attribute,
        path=f"{module}:{attribute}",
        rate=float(rate.default) if rate and isinstance(rate.default, int | float) and rate.default else 1e-3,
        usual=None,
        averaged=averaged,
        schedule="constant" if averaged else "cosine",
        by_tensor=not (optimizer.__module__.startswith("torch.optim") and attribute in _ELEMENTWISE),
    )


def _check_usable(name: str, optimizer: type[Any]) -> None:
    parameters = list(inspect.signature(optimizer).parameters.values())
    needed = [
        p.name
        for p in parameters[1:]
        if p.default is p.empty and p.name != "lr" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if (parameters and parameters[0].name in ("optimizer", "base_optimizer")) or needed:
        raise ConfigError(
            f"optimizer_type: {name} wraps another optimizer or needs {', '.join(needed) or 'one'}, "
            "which optimizer_args cannot give"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"optimizer_type: {name} runs the model several times a step, which is not supported"
        )
