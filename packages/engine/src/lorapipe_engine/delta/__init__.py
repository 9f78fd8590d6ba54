"""Dense weight changes of network modules, one file per family of algorithms, in plain numpy.

:func:`dense_delta` is the one way in; the table that it picks from is
:data:`lorapipe_engine.delta.registry.RULES`.
"""

from __future__ import annotations

from lorapipe_engine.delta.base import Array, Module, Rule
from lorapipe_engine.delta.registry import RULES, Change, dense_delta, find_rule, needs_base

__all__ = ["RULES", "Array", "Change", "Module", "Rule", "dense_delta", "find_rule", "needs_base"]
