"""What ``zeros`` finds in a file: counts, dead modules, the verdict, and its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.models.bases import describe_kind
from lorapipe_engine.models.families import Recognised, recognise
from lorapipe_engine.networks.algorithms import find_algorithm
from lorapipe_engine.networks.describe import Network, describe_network, find_modules
from lorapipe_inspect.measure.counts import Place, TensorCounts, count_file
from lorapipe_inspect.measure.deaths import Deaths, find_deaths
from lorapipe_inspect.text import counted, percent

# Names that sd-scripts' check_lora_weights looks at.
GUIDE_NAMES = ("lora_up", "lora_down", "lora_A", "lora_B", "oft_")
# Above this share of zeros in trained tensors --strict complains.
FLUSHED_LIMIT = 0.001
CLEAN, PROBLEM = "clean", "problem"


@dataclass(frozen=True)
class Totals:
    """Float elements of several tensors, and how many of them are odd."""

    total: int
    zero: int
    subnormal: int
    nan: int
    inf: int

    def share(self, name: str) -> float:
        """Of zero or subnormal elements in all, 0 to 1."""
        return float(getattr(self, name)) / self.total if self.total else 0.0

    def as_record(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything about one file. ``network`` and ``deaths`` are None where it is no network: ``kind`` says what then.

    ``dtypes``: type of each tensor by name, in the order of the file. ``counts``: of the tensors with float types.
    """

    name: str
    kind: str
    family: str | None
    network: Network | None
    deaths: Deaths | None
    dtypes: Mapping[str, str]
    counts: Mapping[str, TensorCounts]
    places: tuple[Place, ...]
    skipped: tuple[str, ...]

    @cached_property
    def looked_at(self) -> list[str]:
        """Tensors that the guide's tool prints a line for."""
        return [name for name in self.counts if any(part in name for part in GUIDE_NAMES)]

    @cached_property
    def guide_lines(self) -> list[str]:
        """Tensors whose line ends in ``,0.0``: they hold a zero. Of a tensor with NaN the tool prints ``nan``."""
        return [
            name for name in self.looked_at if self.counts[name].zero_in_float32 and not self.counts[name].nan
        ]

    @cached_property
    def elements(self) -> Totals:
        return total(self.counts.values())

    @cached_property
    def by_dtype(self) -> dict[str, Totals]:
        """Totals of the float types in the file."""
        groups: dict[str, list[TensorCounts]] = {}
        for name, counts in self.counts.items():
            groups.setdefault(self.dtypes[name], []).append(counts)
        return {dtype: total(group) for dtype, group in groups.items()}

    @cached_property
    def flushed(self) -> float:
        """Share of zeros in the tensors that are not all zero: what rounding has flushed, 0 to 1."""
        return total(counts for counts in self.counts.values() if not counts.all_zero).share("zero")

    @cached_property
    def flushed_by_dtype(self) -> dict[str, float]:
        """As :attr:`flushed`, of each float type in the file."""
        trained = {name: counts for name, counts in self.counts.items() if not counts.all_zero}
        return {
            dtype: total(counts for name, counts in trained.items() if self.dtypes[name] == dtype).share(
                "zero"
            )
            for dtype in self.by_dtype
        }

    def problems(self, *, strict: bool = False) -> list[str]:
        """What is wrong, a sentence each; ``strict`` also minds flushed values."""
        problems = []
        if self.deaths and self.deaths.unexpected:
            problems.append(f"{counted(len(self.deaths.unexpected), 'module')} unexpectedly dead")
        if odd := [
            f"{n} {name}" for n, name in ((self.elements.nan, "NaN"), (self.elements.inf, "infinite")) if n
        ]:
            problems.append(f"{' and '.join(odd)} values")
        if strict and self.flushed > FLUSHED_LIMIT:
            problems.append(
                f"{percent(self.flushed)} of trained values are zero, more than {percent(FLUSHED_LIMIT)}"
            )
        return problems

    def as_record(self, *, strict: bool = False) -> dict[str, Any]:
        """The object of ``--json``. "dead" also has dead ranks; "nonfinite" is there if something is not finite."""
        deaths = self.deaths
        record: dict[str, Any] = {
            "path": self.name,
            "file": self.name,
            "family": self.family,
            "algo": self.network.algorithm if self.network else None,
            "dtypes": self._dtype_records(),
            "modules": len(self.network.modules) if self.network else 0,
            "tensors": len(self.dtypes),
            "guide_count": len(self.guide_lines),
            "dead": {
                "expected": list(deaths.expected) if deaths else [],
                "unexpected": list(deaths.unexpected) if deaths else [],
                "rule": deaths.rule if deaths else f"none: {self.kind}",
                "ranks": dict(deaths.ranks) if deaths else {},
            },
            "elements": self.elements.as_record(),
            "verdict": PROBLEM if self.problems(strict=strict) else CLEAN,
        }
        if self.places:
            record["nonfinite"] = [
                {"tensor": place.tensor, "index": list(place.index), "value": place.value}
                for place in self.places
            ]
        return record

    def _dtype_records(self) -> dict[str, dict[str, int]]:
        tensors = Counter(self.dtypes.values())
        return {
            dtype: {"tensors": count, **(self.by_dtype[dtype].as_record() if dtype in self.by_dtype else {})}
            for dtype, count in tensors.items()
        }


def examine(file: WeightFile, name: str) -> Findings:
    """Count and judge an open file of weights; ``name`` is what to call it.

    Other files than networks are counted too. Raises InputError for a network whose alphas are none, and if the file
    cannot be read any more.
    """
    recognised = recognise({key: info.shape for key, info in file.tensors.items()})
    counted = count_file(file)
    network = None
    if recognised.kind in ("lora", "unknown"):
        modules, _ = find_modules(file.tensors)
        network = describe_network(file) if any(find_algorithm(one.keys) for one in modules) else None
    return Findings(
        name=name,
        kind="a network" if network else _other_kind(recognised),
        family=network.family if network else recognised.family,
        network=network,
        deaths=find_deaths(file, network, counted.tensors) if network else None,
        dtypes={key: info.dtype for key, info in file.tensors.items()},
        counts=counted.tensors,
        places=counted.places,
        skipped=counted.skipped,
    )


def total(counts: Iterable[TensorCounts]) -> Totals:
    """The sum of several tensors' counts."""
    rows = [(one.size, one.zero, one.subnormal, one.nan, one.inf) for one in counts]
    return Totals(*(sum(column) for column in zip(*rows, strict=True))) if rows else Totals(0, 0, 0, 0, 0)


def _other_kind(recognised: Recognised) -> str:
    return (
        "no network"
        if recognised.kind in ("unknown", "lora")
        else f"no network but {describe_kind(recognised)}"
    )
