"""PEFT's configuration of an adapter: where files that have no alphas keep the strength of their modules.

It stands in ``adapter_config.json`` beside the file, or in the file's own header (diffusers'
``lora_adapter_metadata``), there with the part in front of every key: ``{"unet.r": 16, "unet.lora_alpha": 8, ...}``.
Patterns are regular expressions; the first that fits the layer's path counts. Source: PEFT's ``LoraConfig``,
``LoHaConfig``, ``LoKrConfig`` and ``get_pattern_key``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.command.documents import parse_json
from lorapipe_engine.errors import ConfigError, InputError

ADAPTER_KEY = "lora_adapter_metadata"
CONFIG_NAME = "adapter_config.json"
LARGEST_CONFIG = 16 << 20  # bytes; a pattern for every layer of SDXL takes a tenth of a megabyte
DEFAULT_RANK = 8  # PEFT's own defaults for what a configuration leaves out
PREFIXES = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
LONGEST = 300  # letters of a pattern that is more than a name, and of a path that it is compared with
_PLAIN = re.compile(r"[\w.-]+")
KINDS = ("LORA", "LOHA", "LOKR")
# Settings that change what a module does in ways that no tool here knows, and what they may be.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, [], ()),
    "bias": (None, "none"),
    "target_parameters": (None, [], ()),
    "layer_replication": (None, [], ()),
    "trainable_token_indices": (None, [], {}),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
}
# Beginnings of factors for which PEFT changes the base too: what they change counts from that base.
_OWN_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """A configuration. ``source`` is what errors call it; ``prefixed``: its keys have the part in front."""

    source: str
    facts: Mapping[str, Any]
    prefixed: bool

    def scale(self, part: str, path: str, rank: int | None) -> float | None:
        """lora_alpha / r of a module, or / √r where it is rank-stabilised; None where the configuration is silent.

        ``part`` is "unet", "te1" or "te2", ``path`` the layer's path as the file spells it without its part, ``rank``
        that of the tensors, None where they do not show it. Raises InputError for a configuration that contradicts
        the tensors or cannot be understood.
        """
        facts = self._facts_of(part)
        if facts is None:
            return None
        try:
            own = int(_number(_matching(facts.get("rank_pattern"), path, facts.get("r", DEFAULT_RANK))))
            default = facts.get("lora_alpha", facts.get("alpha", DEFAULT_RANK))
            alpha = float(_number(_matching(facts.get("alpha_pattern"), path, default)))
        except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
            raise InputError(f"{self.source} cannot be understood ({error})") from error
        if own <= 0 or not math.isfinite(alpha):
            raise InputError(f"{self.source} cannot be understood (rank {own} and alpha {alpha} for {path})")
        if rank is not None and rank != own:
            raise InputError(f"{self.source}: gives {path} rank {own}, but its tensors have rank {rank}")
        return alpha / (math.sqrt(own) if facts.get("use_rslora") else own)

    def says_dora(self, part: str) -> bool | None:
        """Whether the modules of a part have magnitudes; None where the configuration does not tell."""
        said = (self._facts_of(part) or {}).get("use_dora")
        return said if isinstance(said, bool) else None

    def _facts_of(self, part: str) -> Mapping[str, Any] | None:
        if not self.prefixed:
            return self.facts
        start = f"{PREFIXES.get(part, part)}."
        if f"{start}r" not in self.facts:
            return None
        return {key.removeprefix(start): value for key, value in self.facts.items() if key.startswith(start)}

    @property
    def model_class(self) -> str:
        """Class of the model that PEFT wrapped, "" where the configuration does not tell."""
        mapping = self.facts.get("auto_mapping")
        return str(mapping.get("base_model_class", "")) if isinstance(mapping, dict) else ""


def find_config(path: Path, metadata: Mapping[str, str], *, beside: bool) -> AdapterConfig | None:
    """The configuration in a file's header, else (``beside``) the one beside it; None where there is none.

    Raises InputError for one that cannot be read, or has settings that no tool here understands.
    """
    if ADAPTER_KEY in metadata:
        source = f"{path}: its metadata {ADAPTER_KEY}"
        facts = _parse(metadata[ADAPTER_KEY], source)
        config = AdapterConfig(source, facts, prefixed="r" not in facts)
    elif beside and (neighbour := path.parent / CONFIG_NAME).is_file():
        if neighbour.stat().st_size > LARGEST_CONFIG:
            raise InputError(f"{neighbour}: too large for a configuration")
        facts = _parse(neighbour.read_text(encoding="utf-8-sig", errors="replace"), str(neighbour))
        config = AdapterConfig(str(neighbour), facts, prefixed=False)
    else:
        return None
    _refuse_unknown(config)
    return config


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        facts = parse_json(text, source)
    except ConfigError as error:
        reason = str(error).removeprefix(f"{source}: ")
        raise InputError(f"{source} cannot be understood ({reason})") from error
    if not isinstance(facts, dict):
        raise InputError(f"{source} cannot be understood (it is no JSON object)")
    return facts


def _refuse_unknown(config: AdapterConfig) -> None:
    for key, value in config.facts.items():
        name = key.rpartition(".")[2] if config.prefixed else key
        if name == "peft_type" and str(value).rpartition(".")[2].upper() not in KINDS:
            raise InputError(
                f"{config.source}: adapters of type {value} are not known here, only {', '.join(KINDS)}"
            )
        if name == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(_OWN_BASE):
            raise InputError(
                f"{config.source}: {key} = {json.dumps(value)}: its factors belong to a base that PEFT changed; "
                "save the adapter with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
            )
        if name in _REFUSED and value not in _REFUSED[name]:
            raise InputError(f"{config.source}: {key} = {json.dumps(value)[:60]} is not supported")


def _number(value: Any) -> Any:
    """The value, which is no truth value: Python takes these for 0 and 1. Raises TypeError."""
    if isinstance(value, bool):
        raise TypeError(f"{json.dumps(value)} is no number")
    return value


def _matching(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the path, or its end after a dot."""
    for key, value in (pattern or {}).items():
        if _PLAIN.fullmatch(key):
            if path == key or path.endswith(f".{key}"):
                return value
        elif re.match(rf"(.*\.)?({_bounded(key, path)})$", path):
            return value
    return default


def _bounded(key: str, path: str) -> str:
    """A regular expression of which a match takes no long time. Raises ValueError for one that may."""
    quantified_group = re.search(r"\)[*+?{]", key)
    if max(len(key), len(path)) > LONGEST or quantified_group or len(re.findall(r"(?<!\\)[*+{]", key)) > 2:
        raise ValueError(f"the pattern {key[:60]!r} is too complex")
    return key
