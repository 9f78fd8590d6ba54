"""What the tensors of a file show of the arguments that its network was made with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks.metadata import parse_metadata
from lorapipe_engine.nn.adapters.lokr import split
from lorapipe_engine.nn.base import Size, adapter_class
from lorapipe_engine.train.network.files.trained_file import TrainedFile

NORM = "norm"
_CLOSE = 0.01  # of a number that may have been saved in half precision


@dataclass(frozen=True)
class Module:
    """A module of a file; ``suffixes``: of its tensors, with their shapes."""

    algorithm: str
    options: Mapping[str, Any]
    size: Size
    suffixes: Mapping[str, tuple[int, ...]]

    @property
    def is_kernel(self) -> bool:
        """Whether it is a LoRA's of a kernel above 1x1. Other algorithms store theirs flattened."""
        down = self.suffixes.get("lora_down.weight", ())
        return "lora_mid.weight" in self.suffixes or max(down[2:], default=1) > 1

    @property
    def is_tucker(self) -> bool:
        """Whether it has a Tucker core."""
        return bool(self.options.get("use_tucker")) or "lokr_t2" in self.suffixes

    @property
    def outputs(self) -> tuple[int, int]:
        """LoKr's two factors of the layer's outputs, as they are stored."""
        first = self.suffixes.get("lokr_w1") or self.suffixes["lokr_w1_a"]
        second = self.suffixes.get("lokr_w2") or self.suffixes["lokr_w2_a"]
        return first[0], second[1 if self.is_tucker else 0]

    def has_blocks_of(self, most: int) -> bool:
        """Whether ``block_size`` gives the blocks of a module of OFT or BOFT."""
        blocks: tuple[int, ...] = self.options["shape"]
        rotation: Any = adapter_class(self.algorithm)
        try:
            wanted = rotation.blocks(blocks[-3] * blocks[-1], self.size.rank, {"block_size": most})
        except ConfigError:
            return False
        return tuple(wanted) == tuple(blocks)


class Shown:
    """A file that is trained on. ``main``: the algorithm of most of its modules that are no norms."""

    def __init__(self, start: TrainedFile) -> None:
        self.path = start.path
        rows = {
            name: Module(kind.algorithm, kind.options, start.sizes[name], _shapes(start, name))
            for name, kind in start.kinds.items()
        }
        self.has_norms = any(row.algorithm == NORM for row in rows.values())
        self.modules = [row for row in rows.values() if row.algorithm != NORM]
        counts = Counter(row.algorithm for row in self.modules)
        self.algorithms = frozenset(counts)
        self.main = counts.most_common(1)[0][0] if counts else NORM
        metadata = parse_metadata(start.metadata)
        arguments = metadata.get("ss_network_args")
        self.arguments: Mapping[str, Any] = arguments if isinstance(arguments, dict) else {}
        """What its metadata say of them."""
        self.stated_dim = _number(metadata.get("ss_network_dim"))
        self.stated_alpha = _number(metadata.get("ss_network_alpha"))

    @cached_property
    def size(self) -> Size | None:
        """Rank and alpha of most modules; None where none has a rank."""
        sizes = Counter(row.size for row in self.modules if row.size.rank)
        return sizes.most_common(1)[0][0] if sizes else None

    def has_dim(self, dim: int) -> bool:
        """Whether it has the rank of linear layers that was asked for."""
        ranks = {row.size.rank for row in self.modules if row.size.rank and not row.is_kernel}
        if not ranks:
            return self.stated_dim == dim
        return ranks == {dim} if self.algorithms == {"lora"} else dim in ranks

    def has_alpha(self, alpha: float, *, stable: bool) -> bool:
        """The same of their alpha; ``stable``: times √rank."""
        sizes = [row.size for row in self.modules if row.size.rank and not row.is_kernel]
        if not sizes:
            return self.stated_alpha == alpha
        fits = [_is_alpha(size, alpha, stable=stable) for size in sizes]
        return all(fits) if self.algorithms == {"lora"} else any(fits)

    def has_of_kernels(self, name: str, value: float, *, stable: bool) -> bool:
        """The same of ``conv_dim`` and ``conv_alpha``."""
        sizes = [row.size for row in self.modules if row.is_kernel]
        if self.algorithms - {"lora"}:
            return _number(self.arguments.get(name)) == (value or None)
        if name == "conv_dim":
            return {size.rank for size in sizes} == ({int(value)} if value else set())
        return bool(sizes) and all(_is_alpha(size, value, stable=stable) for size in sizes)

    def has(self, name: str, value: Any, algorithm: str) -> bool:
        """Whether its modules are as an argument of an algorithm asks for: those of the algorithm or, where there is
        none, all that know the argument. Where the tensors do not show it, by what its metadata say."""
        rows = [row for row in self.modules if row.algorithm == algorithm]
        rows = rows or [row for row in self.modules if name in adapter_class(row.algorithm).arguments]
        if rows and name in _RULES:
            return _RULES[name](value, rows)
        return self.states(name, value, algorithm) or not (rows or value)

    def states(self, name: str, value: Any, algorithm: str) -> bool:
        """Whether its metadata say so."""
        reader = adapter_class(algorithm).arguments.get(name)
        try:
            return (
                reader is not None and name in self.arguments and reader(str(self.arguments[name])) == value
            )
        except ValueError:
            return False


def _shapes(start: TrainedFile, name: str) -> dict[str, tuple[int, ...]]:
    return {suffix: tuple(tensor.shape) for suffix, tensor in start.tensors[name].items()}


def _number(value: object) -> float | None:
    """A number above 0 from metadata."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _is_alpha(size: Size, alpha: float, *, stable: bool) -> bool:
    wanted = alpha * math.sqrt(size.rank) if stable else alpha
    return math.isclose(size.alpha, wanted, rel_tol=_CLOSE)


# -------------------------------------------------------------------------------- arguments


_Rule = Callable[[Any, Sequence[Module]], bool]


def _flag(option: str) -> _Rule:
    return lambda value, rows: all(bool(row.options.get(option)) == value for row in rows)


def _on_outputs(value: bool, rows: Sequence[Module]) -> bool:
    """Means nothing without magnitudes, as in a fresh network."""
    return all(bool(row.options.get("wd_on_output")) == value for row in rows if row.options.get("dora_wd"))


def _tucker(value: bool, rows: Sequence[Module]) -> bool:
    return any(row.is_tucker for row in rows) == value


def _unbalanced(value: bool, rows: Sequence[Module]) -> bool:
    return all(row.outputs[0] == row.outputs[1] or (row.outputs[0] > row.outputs[1]) == value for row in rows)


# Whether modules are as the value of an argument asks for.
_RULES: Mapping[str, _Rule] = {
    "dora_wd": _flag("dora_wd"),
    "wd_on_output": _on_outputs,
    "wd_on_out": _on_outputs,
    "use_tucker": _tucker,
    "use_cp": _tucker,
    "rescaled": _flag("rescaled"),
    # LyCORIS' preset "ia3" has both.
    "train_on_input": lambda value, rows: all(row.options["train_on_input"] for row in rows) == value,
    "constraint": lambda value, rows: all(
        math.isclose(row.size.alpha, value, rel_tol=_CLOSE) for row in rows
    ),
    "block_size": lambda value, rows: all(row.has_blocks_of(value) for row in rows),
    # Without full_matrix, and in spite of decompose_both, a matrix is whole where the rank is large.
    "full_matrix": lambda value, rows: not value or all("lokr_w2" in row.suffixes for row in rows),
    "decompose_both": lambda value, rows: any("lokr_w1_a" in row.suffixes for row in rows) == value,
    "unbalanced_factorization": _unbalanced,
    "factor": lambda value, rows: all(
        split(math.prod(row.outputs), value) == tuple(sorted(row.outputs)) for row in rows
    ),
}
