"""What ``norms`` and ``ranks`` have no figures of, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorapipe_engine.command.text import printable
from lorapipe_inspect.text import counted


def uncounted(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines about the modules without a spectrum and the tensors with NaN, by their record."""
    if record["others"]:
        yield f"  not counted: {counted(len(record['others']), 'module')} without a spectrum of their own"
    for name in record["nonfinite"]:
        yield f"  NaN or infinite: {printable(name)}"


def besides(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines about what modules do besides the changes that ``norms`` has measured."""
    there = record["beside"]
    if there["magnitudes"]:
        yield f"  not counted: DoRA's magnitudes of {counted(there['magnitudes'], 'module')}, which act on the base"
    if there["biases"]:
        yield f"  not counted: changes of the biases of {counted(there['biases'], 'module')}"
