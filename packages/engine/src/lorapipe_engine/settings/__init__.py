"""Every option of ``lora-train``, in the parts that the engine's functions take.

A field is an option: its name is sd-scripts' (so a command line or TOML of its users runs), its type and help stand
here and nowhere else. Values left at None are decided by what the base model is (see :func:`with_base_defaults`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorapipe_engine.models.family import Family
from lorapipe_engine.models.predictions import FLOW, PREDICTIONS, V
from lorapipe_engine.settings.data import DataSettings
from lorapipe_engine.settings.loss import LossSettings
from lorapipe_engine.settings.model import PRECISIONS, ModelSettings
from lorapipe_engine.settings.network import NetworkSettings
from lorapipe_engine.settings.optimizer import OptimizerSettings
from lorapipe_engine.settings.run import SAVE_PRECISIONS, RunSettings

__all__ = [
    "PARTS",
    "PRECISIONS",
    "SAVE_PRECISIONS",
    "DataSettings",
    "LossSettings",
    "ModelSettings",
    "NetworkSettings",
    "OptimizerSettings",
    "RunSettings",
    "TrainSettings",
    "with_base_defaults",
]

PARTS = (ModelSettings, DataSettings, NetworkSettings, OptimizerSettings, LossSettings, RunSettings)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The parts together, as one value to build and print; functions take the parts that they use."""

    model: ModelSettings
    data: DataSettings
    network: NetworkSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    run: RunSettings


def with_base_defaults(
    settings: TrainSettings, family: Family, prediction: str, encoder_layer: int | None
) -> TrainSettings:
    """Fill what depends on the base: clip skip, rank, alpha, and what suits its ``prediction``, a name of
    :data:`lorapipe_engine.models.predictions.PREDICTIONS`.

    ``encoder_layer`` is the clip skip that the base's own metadata asks for, if it does.
    """
    clip_skip = settings.model.clip_skip or encoder_layer or family.clip_skip
    network = settings.network
    if not network.dim_from_weights:  # else None is of a file in which no rank is in use
        rank = network.network_dim or family.rank
        alpha = network.network_alpha if network.network_alpha is not None else float(rank)
        network = replace(network, network_dim=rank, network_alpha=alpha)
    row = PREDICTIONS[prediction]
    defaults = {name: value for name, value in row.defaults.items() if getattr(settings.loss, name) is None}
    loss = replace(
        settings.loss,
        v_parameterization=prediction == V.name,
        flow_model=prediction == FLOW.name,
        **defaults,
    )
    return replace(
        settings,
        model=replace(settings.model, clip_skip=clip_skip if family.reads_clip_skip else None),
        network=network,
        loss=replace(loss, min_snr_gamma=loss.min_snr_gamma or None),
    )
