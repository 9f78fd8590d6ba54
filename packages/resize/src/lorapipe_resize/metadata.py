"""The metadata of a resized network: what changed is rewritten, all else stays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lorapipe_engine.networks.adapter_config import ADAPTER_KEY
from lorapipe_engine.networks.algorithms import is_plain
from lorapipe_engine.networks.metadata import table_of
from lorapipe_engine.networks.ranks import RankRule
from lorapipe_resize.report import DORA, ModuleReport

VARIOUS = "Dynamic"  # sd-scripts' word where ranks differ


def resized_metadata(
    old: Mapping[str, str],
    modules: Sequence[ModuleReport],
    rule: RankRule,
    target: str | None,
    name: str | None = None,
) -> dict[str, str]:
    """``ss_network_dim``, ``_alpha``, ``_args``, ``_module`` and ``ss_training_comment`` for the new ranks.

    With a fixed rank these are the numbers asked for; with a method or a target size "Dynamic" where modules
    differ. Hashes are not this function's business. A file without any metadata gets the same few keys. ``name``: the
    new file's, under which the web UIs then list it beside the old one.
    """
    new = dict(old)
    if name is not None:
        new |= {key: name for key in ("ss_output_name", "modelspec.title") if key in old}
    new.pop(ADAPTER_KEY, None)  # its scales are in the factors now, its ranks no longer true
    resized = [m for m in modules if m.new_rank is not None]
    if not resized:
        return new
    fixed = rule.method is None and target is None
    plain = [m for m in resized if m.kernel != (3, 3)]
    conv = [m for m in resized if m.kernel == (3, 3)]
    new["ss_network_dim"], new["ss_network_alpha"] = _dim_and_alpha(
        plain or conv, rule.rank if fixed else None
    )
    arguments = table_of(old, "ss_network_args")
    if _is_plain_lora(modules) and not _was_plain_lora(modules):
        new["ss_network_module"] = "networks.lora"
        arguments = {}
    arguments.pop("conv_dim", None)
    arguments.pop("conv_alpha", None)
    if conv:
        arguments["conv_dim"], arguments["conv_alpha"] = _dim_and_alpha(
            conv, rule.conv_rank if fixed else None
        )
    if arguments:
        new["ss_network_args"] = json.dumps(arguments)
    else:
        new.pop("ss_network_args", None)
    new["ss_training_comment"] = _comment(old, rule, target)
    return new


def _dim_and_alpha(modules: Sequence[ModuleReport], rank: int | None) -> tuple[str, str]:
    """As the metadata have them; ``rank`` is the one asked for, which small or dead modules do not reach."""
    if rank is not None:
        modules = [m for m in modules if m.new_rank == rank] or modules
    ranks, alphas = {m.new_rank for m in modules}, {m.alpha for m in modules}
    dim = str(ranks.pop()) if len(ranks) == 1 else VARIOUS
    return dim, str(alphas.pop()) if len(alphas) == 1 else VARIOUS


def _is_plain_lora(modules: Sequence[ModuleReport]) -> bool:
    return all(m.new_rank is not None and m.algorithm != DORA for m in modules)


def _was_plain_lora(modules: Sequence[ModuleReport]) -> bool:
    return all(is_plain(m.algorithm) for m in modules)


def _comment(old: Mapping[str, str], rule: RankRule, target: str | None) -> str:
    before = old.get("ss_network_dim", "")
    if target is not None:
        how = f"to {target}"
    elif rule.method is not None:
        how = f"with {rule.method} {rule.param:g}"
    else:
        how = f"to {rule.rank}" + (f" (conv {rule.conv_rank})" if rule.conv_rank != rule.rank else "")
    comment = f"resized {how}" + (f" from {before}" if before else "")
    rest = old.get("ss_training_comment", "None")
    return comment if rest in ("", "None") else f"{comment}; {rest}"
