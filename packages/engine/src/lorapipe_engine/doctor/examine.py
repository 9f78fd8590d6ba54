"""All that is looked at, in the order in which it is told: what others stand on comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lorapipe_engine.doctor import card, hub, packages, places
from lorapipe_engine.doctor.child import ask_torch
from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.doctor.trial import trial_finding
from lorapipe_engine.settings import DataSettings, ModelSettings, OptimizerSettings, RunSettings


def examine(
    model: ModelSettings,
    data: DataSettings,
    optimizer: OptimizerSettings,
    run: RunSettings,
    tell: Callable[[Finding], None],
) -> list[Finding]:
    """Look at everything that a run with these options needs; each finding is told at once, and all are returned.

    The trial is left out where something stops a run anyway.
    """
    findings = []
    for finding in _findings(model, data, optimizer, run):
        tell(finding)
        findings.append(finding)
    if any(one.state == "stop" for one in findings):
        last = Finding("trial", "note", "left out: what stops a run comes first")
    else:
        last = trial_finding(model.device)
    tell(last)
    return [*findings, last]


def _findings(
    model: ModelSettings, data: DataSettings, optimizer: OptimizerSettings, run: RunSettings
) -> Iterator[Finding]:
    base = model.pretrained_model_name_or_path
    yield packages.python_finding()
    yield from packages.package_findings()
    yield from packages.mixed_findings()
    yield from places.windows_findings()
    told = ask_torch()
    yield card.torch_finding(told)
    yield from card.card_findings(told, model.device)
    yield packages.bitsandbytes_finding(_wants_bitsandbytes(model, optimizer))
    memory = places.memory_finding()
    if memory is not None:
        yield memory
    yield from places.output_findings(run.output_dir)
    yield places.cache_finding(data.cache_dir)
    base_there = hub.base_finding(base)
    if base_there is not None:
        yield base_there
    answer = hub.ask_hub()
    yield hub.hub_finding(answer, base)
    yield hub.tokenizer_finding(answer, base, model.tokenizer_dir)


def _wants_bitsandbytes(model: ModelSettings, optimizer: OptimizerSettings) -> str | None:
    name = optimizer.optimizer_type
    if "8bit" in name.lower() or name.lower().startswith("bitsandbytes"):
        return f"optimizer_type {name}"
    return "quantize_base nf4" if model.quantize_base == "nf4" else None
