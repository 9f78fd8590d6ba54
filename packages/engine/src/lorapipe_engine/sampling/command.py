"""From the options of ``lora-sample`` to its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.axes import Axis, parse_axis
from lorapipe_engine.sampling.bases import Told
from lorapipe_engine.sampling.clip_skip import networks_clip_skip
from lorapipe_engine.sampling.plan import Fixed, Plan, Wishes, file_axis, make_plan, with_base_weight
from lorapipe_engine.sampling.probes import Probe, Subject, read_probe
from lorapipe_engine.sampling.prompts.wildcards import Wildcards
from lorapipe_engine.sampling.settings import (
    AxesSettings,
    ModelSettings,
    PictureSettings,
    ProbeSettings,
    ResultSettings,
)
from lorapipe_engine.sampling.shelf import expand_files, parse_strength


def plan_of(chosen: Chosen, words: Sequence[str]) -> Plan:
    """The plan that a command line asks for; ``words`` are the networks that are named by themselves.

    Raises ConfigError and InputError as :func:`make_plan` does.
    """
    pictures, models, result = chosen[PictureSettings], chosen[ModelSettings], chosen[ResultSettings]
    if chosen.mode.by == "probe":
        asked = chosen[ProbeSettings]
        probe = read_probe(asked.probe or "", Subject(tuple(words), pictures.prompt, asked.trigger))
    else:
        probe = Probe(_axes_of(chosen[AxesSettings], words, models), pictures.prompt)
    fixed = Fixed(
        prompt=probe.prompt,
        negative=pictures.negative,
        networks=tuple(_network(word) for word in models.network),
        seed=pictures.seed,
        steps=pictures.steps,
        sampler=pictures.sampler,
        schedule=pictures.schedule,
        cfg=pictures.cfg,
        eta=pictures.eta,
        size=pictures.size,
        clip_skip=pictures.clip_skip,
        base=models.base,
        vae=models.vae,
        flow_model=models.flow_model,
        told=Told(models.flow_shift, models.vae_scale, models.vae_shift, models.vae_reflection),
        v_prediction=models.v_prediction,
        zero_terminal_snr=models.zero_terminal_snr,
    )
    wishes = Wishes(
        wildcards=Wildcards(pictures.wildcards),
        folders=models.lora_dir,
        draw_seed=pictures.draw_seed,
        base_column=chosen[AxesSettings].base_column,
        output_dir=result.output_dir,
        suffix=f".{result.image_format}",
        kinds=probe.kinds,
    )
    plan, notes = make_plan(probe.axes, fixed, wishes), probe.notes
    if pictures.network_clip_skip:
        skip = networks_clip_skip(plan)
        if skip is not None:
            plan = make_plan(probe.axes, replace(fixed, clip_skip=skip), wishes)
        told = f"the networks say {skip}" if skip else f"no network says one, so {fixed.clip_skip} is taken"
        notes = (*notes, f"clip skip: {told}")
    return Plan(plan.axes, plan.cells, (*notes, *plan.notes))


def _axes_of(asked: AxesSettings, words: Sequence[str], models: ModelSettings) -> tuple[Axis, ...]:
    """The axes as given; networks that are named by themselves are an axis in the first free place."""
    places: list[Axis | None] = [
        parse_axis(word, f"--{name}") if word else None for name, word in (("x", asked.x), ("y", asked.y))
    ]
    places += [parse_axis(word, "--sheet") for word in asked.sheets]
    has_files = any(axis is not None and axis.kind.name == "file" and axis.number == 1 for axis in places)
    if words and has_files:
        raise ConfigError(f"{words[0]}: the networks are named by an axis already; give them in one place")
    if words:
        place = places.index(None) if None in places else len(places)
        places[place : place + 1] = [file_axis(words, "NETWORK")]
    axes = [axis for axis in places if axis is not None]
    if asked.base_column and models.network and not words and not has_files:
        axes = [with_base_weight(axis) for axis in axes]
    return tuple(axes)


def _network(word: str) -> tuple[Path, float]:
    path, strength = parse_strength(word, "--network")
    files = expand_files(path, "--network")
    if len(files) != 1:
        raise ConfigError(
            f"--network: {path} is {len(files)} networks; name one, or give an axis file:{path}"
        )
    return files[0], strength
