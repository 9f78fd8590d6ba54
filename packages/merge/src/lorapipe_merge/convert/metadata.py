"""What a converted file says of itself, and PEFT's configuration of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lorapipe_engine.networks.adapter_config import ADAPTER_KEY
from lorapipe_engine.networks.algorithms import algorithm_of, is_plain
from lorapipe_engine.networks.describe import Network
from lorapipe_engine.networks.layers import Layer
from lorapipe_engine.networks.metadata import with_base_facts
from lorapipe_merge.convert.forms import Form
from lorapipe_merge.convert.schemes import Scheme

VARIOUS = "Dynamic"  # sd-scripts' word where ranks differ
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")  # of the file that it was


def converted_metadata(
    network: Network, forms: Sequence[Form], family: str, scheme: Scheme
) -> dict[str, str]:
    """kohya's keys for readers that look for them; only ``format`` for diffusers; nothing for the others."""
    if scheme.name == "diffusers":
        return {"format": "pt"}
    if scheme.name != "kohya":
        return {}
    new = {
        key: value for key, value in network.metadata.items() if key not in (*_HASHES, ADAPTER_KEY, "format")
    }
    plain = [form for form in forms if form.alpha is not None]
    if not plain:
        return new
    new = with_base_facts(new, family)
    new["ss_network_dim"] = _one_of([form.rank for form in plain])
    new["ss_network_alpha"] = _one_of([form.alpha for form in plain])
    return new


def _one_of(values: Sequence[float | None]) -> str:
    different = {value for value in values if value is not None}
    return f"{different.pop():g}" if len(different) == 1 else VARIOUS


def adapter_config(forms: Sequence[Form], ranks: Mapping[Layer, int]) -> dict[str, Any]:
    """PEFT's configuration for the modules of one part: r and alpha are the commonest, patterns say the others.

    ``ranks``: those of the factors that were written. Factors that were made anew have their strength in them.
    """
    kind = "LOHA" if has_own_adapter(forms[0]) else "LORA"
    rank_of = {_path(form): ranks[form.layer] for form in forms}
    alpha_of = {_path(form): _alpha(form, ranks[form.layer]) for form in forms}
    rank, alpha = (Counter(table.values()).most_common(1)[0][0] for table in (rank_of, alpha_of))
    facts: dict[str, Any] = {
        "peft_type": kind,
        "r": rank,
        "rank_pattern": _pattern(rank_of, rank),
        "alpha_pattern": _pattern(alpha_of, alpha),
        "target_modules": list(rank_of),
        "inference_mode": True,
    }
    if kind == "LOHA":
        cores = any({"hada_t1", "hada_t2"} & set(form.module.keys) for form in forms)
        return {**facts, "alpha": alpha, "use_effective_conv2d": cores}
    return {
        **facts,
        "lora_alpha": alpha,
        "use_dora": any("dora_scale" in form.module.keys for form in forms),
        "lora_bias": any("lora_up.bias" in form.module.keys for form in forms),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def why_no_adapter(forms: Sequence[Form]) -> str | None:
    """Why the modules of one part cannot be one of PEFT's adapters, which has one kind for all; None if they can."""
    if len({has_own_adapter(form) for form in forms}) > 1:
        return "LoRA and LoHa cannot be one adapter; --to-lora makes plain factors of all"
    for suffix, kind in (("dora_scale", "DoRA"), ("lora_up.bias", "a bias of factors")):
        if len({suffix in form.module.keys for form in forms}) > 1:
            return f"only some modules have {kind}, and an adapter has it in all or none"
    return None


def has_own_adapter(form: Form) -> bool:
    """Whether PEFT's adapter of another kind than LoRA's holds the module."""
    row = algorithm_of(form.module.algorithm)
    return row is not None and row.peft and not form.to_lora


def _path(form: Form) -> str:
    path = form.layer.path
    return path.removeprefix("text_model.") if form.layer.part == "te1" else path


def _alpha(form: Form, rank: int) -> float:
    """The alpha that gives a module its strength at the rank that is written: a core can have sides of two sizes."""
    module = form.module
    alpha = module.effective_alpha
    if form.to_lora or alpha is None:
        return float(rank)
    return (
        alpha * rank / module.rank if module.tucker and is_plain(module.algorithm) and module.rank else alpha
    )


def _pattern(values: Mapping[str, float], common: float) -> dict[str, float]:
    return {
        f"^{path.replace('.', chr(92) + '.')}": value for path, value in values.items() if value != common
    }
