"""What a base model answers, one row each: the word that files have for it, and the objective that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One thing that a base model may answer.

    ``name`` is diffusers' word and ``word`` modelspec's. ``marks``: tensors that a checkpoint holds as a sign of it.
    ``asked_by``: option of ``lora-train`` and its value that ask for it, if there is one. ``defaults``: options of the
    objective that are not given. ``objective``: "module:class" of the objective that trains it.
    """

    name: str
    word: str
    objective: str
    marks: frozenset[str] = frozenset()
    asked_by: tuple[str, Any] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


_DIFFUSION = "lorapipe_engine.train.objective.diffusion:Diffusion"
EPSILON = Prediction(
    name="epsilon",
    word="epsilon",
    objective=_DIFFUSION,
    asked_by=("v_parameterization", False),
    defaults={"min_snr_gamma": 5.0},
)
V = Prediction(
    name="v_prediction",
    word="v",
    objective=_DIFFUSION,
    marks=frozenset({"v_pred"}),
    asked_by=("v_parameterization", True),
)
# Of a flow model no file of the field's tells; this word is diffusers', and what networks trained here say.
FLOW = Prediction(
    name="flow_prediction",
    word="flow",
    objective="lorapipe_engine.train.objective.flow:Flow",
    asked_by=("flow_model", True),
)
# Flow is asked first: configurations that ask for it may say that v is not.
PREDICTIONS: dict[str, Prediction] = {row.name: row for row in (FLOW, EPSILON, V)}


def find_prediction(word: str) -> str | None:
    """The name of the row that a file means by ``word``, diffusers' or modelspec's; None where no row has it."""
    return next((row.name for row in PREDICTIONS.values() if word in (row.name, row.word)), None)


def says_flow(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata say that its model, or that of its network, predicts flow."""
    return find_prediction(metadata.get("modelspec.prediction_type", "").lower()) == FLOW.name


def scheduler_prediction(config: Mapping[str, Any]) -> str | None:
    """The name of the row that the scheduler of a diffusers folder says; None where it says none that is known."""
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        return FLOW.name
    return find_prediction(str(config.get("prediction_type", "")))


def marked_prediction(tensors: Mapping[str, object]) -> str | None:
    """The name of the row whose mark a checkpoint holds; None without any."""
    return next((row.name for row in PREDICTIONS.values() if not row.marks.isdisjoint(tensors)), None)


def asked_prediction(options: object) -> str | None:
    """The name of the row that the options of the objective ask for; None where the base decides."""
    for row in PREDICTIONS.values():
        if row.asked_by is not None and getattr(options, row.asked_by[0]) == row.asked_by[1]:
            return row.name
    return None
