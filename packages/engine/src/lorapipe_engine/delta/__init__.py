"""Dense weight changes of network modules, one file per family of algorithms, in plain numpy.

:func:`dense_delta` is the one way in; it picks from the rules that
:data:`lorapipe_engine.networks.algorithms.ALGORITHMS` names.
"""

from __future__ import annotations

from lorapipe_engine.delta.base import Array, Module, Rule
from lorapipe_engine.delta.registry import Change, dense_delta, find_rule, known_rule, needs_base, rules

__all__ = [
    "Array",
    "Change",
    "Module",
    "Rule",
    "dense_delta",
    "find_rule",
    "known_rule",
    "needs_base",
    "rules",
]
