"""What an extracted LoRA says of itself: the few keys that programs need to apply it, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.hashes import legacy_hash
from lorapipe_engine.files.writing.dates import date_of_inputs
from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.predictions import V
from lorapipe_engine.networks.metadata import ModelSpec, base_version, with_hashes
from lorapipe_resize.extract.modules import ModuleReport

VARIOUS = "Dynamic"  # sd-scripts' word where ranks differ


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the LoRA comes from. ``base``: the checkpoint it is for, None where that is not known. ``prediction``: what
    that predicts.
    """

    source: Path
    base: Path | None
    family: str | None
    prediction: str
    how: str


def metadata_of(
    origin: Origin,
    tensors: Mapping[str, Encoded],
    modules: Sequence[ModuleReport],
    *,
    ranks: tuple[int, int] | None,
    alpha: float,
    title: str,
    minimum: bool,
) -> dict[str, str]:
    """``ss_*`` as kohya's tools read them, ``modelspec.*`` and hashes; ``minimum``: only what readers need.

    ``ranks``: those asked for, of linear layers and of convolutions, where they are fixed.
    """
    plain = {m.rank for m in modules if max(m.kernel, default=1) == 1}
    conv = {m.rank for m in modules if max(m.kernel, default=1) > 1}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _dim(plain or conv, ranks[0] if ranks else None),
        "ss_network_alpha": str(alpha),
        "ss_v2": str(origin.family == "sd2"),
    }
    if origin.family is not None:
        metadata["ss_base_model_version"] = base_version(origin.family, origin.prediction)
    if conv and plain:
        metadata["ss_network_args"] = json.dumps(
            {"conv_dim": _dim(conv, ranks[1] if ranks else None), "conv_alpha": str(alpha)}
        )
    if not minimum:
        metadata |= {
            "ss_output_name": title,
            "ss_training_comment": f"extracted from {origin.source.name}{_against(origin)}",
        }
        metadata["ss_training_comment"] += f", {origin.how}"
        if origin.base is not None:
            metadata["ss_sd_model_name"] = origin.base.name
            if origin.base.is_file():
                metadata["ss_sd_model_hash"] = legacy_hash(origin.base)
        if origin.family is not None:
            metadata |= _modelspec(origin, title)
    return with_hashes(metadata, tensors)


def _dim(ranks: set[int], asked: int | None) -> str:
    """As metadata have it; layers smaller than the rank asked for do not count."""
    if asked is not None:
        return str(asked)
    return str(*ranks) if len(ranks) == 1 else VARIOUS


def _against(origin: Origin) -> str:
    return f" against {origin.base.name}" if origin.base is not None else ""


def _modelspec(origin: Origin, title: str) -> dict[str, str]:
    family = get_family(origin.family or "")
    side = 512 if family.name == "sd2" and origin.prediction != V.name else family.resolution
    inputs = [origin.source] + ([origin.base] if origin.base is not None else [])
    return ModelSpec(
        family=family.name,
        adapter=True,
        title=title,
        date=date_of_inputs(inputs),
        prediction=origin.prediction,
        resolution=(side, side),
    ).metadata()
