"""Samplers under the names that users know: AUTOMATIC1111's, with ComfyUI's and sd-scripts' as other spellings.

A row says which schedule "Automatic" stands for, how many evaluations of the model a number of steps takes, and what
random numbers beside the first noise a sampler draws. The methods themselves need torch and are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.noise.schedules import AUTOMATIC, SCHEDULES, find_schedule

MOST_STEPS = 1000  # the noise schedule has no more
Noise = Literal["none", "ancestral", "sde", "ddim", "lcm"]
Evaluations = Literal["one", "two", "ddim", "plms", "unipc"]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler. ``name``: A1111's label. ``names``: other spellings, folded.

    ``automatic``: the schedule that "Automatic" stands for. ``own_schedule``: it takes no other. ``evaluations``: how
    they are counted (see :func:`count_evaluations`). ``noise``: which random numbers each step draws; ``eta`` scales
    them, and is None where none are scaled. ``discards``: it takes one sigma more and leaves out the last but one.
    """

    name: str
    names: tuple[str, ...] = ()
    automatic: str = "Uniform"
    own_schedule: bool = False
    evaluations: Evaluations = "one"
    noise: Noise = "none"
    eta: float | None = None
    discards: bool = False


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        row.name: row
        for row in (
            Sampler(name="Euler", names=("k_euler",)),
            Sampler(
                name="Euler a",
                names=("euler_a", "euler_ancestral", "k_euler_a", "euler ancestral"),
                noise="ancestral",
                eta=1.0,
            ),
            Sampler(name="Heun", names=("k_heun",), evaluations="two"),
            Sampler(name="LMS", names=("k_lms",)),
            Sampler(
                name="DPM2",
                names=("dpm_2", "k_dpm_2"),
                automatic="Karras",
                evaluations="two",
                discards=True,
            ),
            Sampler(
                name="DPM2 a",
                names=("dpm_2_a", "k_dpm_2_a", "dpm_2_ancestral"),
                automatic="Karras",
                evaluations="two",
                noise="ancestral",
                eta=1.0,
                discards=True,
            ),
            Sampler(name="DPM++ 2M", names=("dpmpp_2m", "k_dpmpp_2m", "dpmsolver++"), automatic="Karras"),
            Sampler(
                name="DPM++ 2M SDE",
                names=("dpmpp_2m_sde", "k_dpmpp_2m_sde"),
                automatic="Exponential",
                noise="sde",
                eta=1.0,
            ),
            Sampler(
                name="DPM++ SDE",
                names=("dpmpp_sde", "k_dpmpp_sde"),
                automatic="Karras",
                evaluations="two",
                noise="sde",
                eta=1.0,
            ),
            Sampler(
                name="DPM++ 2S a",
                names=("dpmpp_2s_a", "k_dpmpp_2s_a", "dpmpp_2s_ancestral"),
                automatic="Karras",
                evaluations="two",
                noise="ancestral",
                eta=1.0,
            ),
            Sampler(name="DDIM", own_schedule=True, evaluations="ddim", noise="ddim", eta=0.0),
            Sampler(name="PLMS", names=("pndm",), own_schedule=True, evaluations="plms"),
            Sampler(name="UniPC", names=("unipc",), own_schedule=True, evaluations="unipc"),
            Sampler(name="LCM", own_schedule=True, noise="lcm"),
        )
    }
)
# Those that walk along the model's answer, whatever the levels mean.
OF_FLOW = ("Euler", "Heun", "LMS")
# Names that are another program's method of that name, or that are not built, and what to do.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "dpm++ 3m sde": "is not built; DPM++ 2M SDE is the nearest",
        "dpmpp_3m_sde": "is not built; DPM++ 2M SDE is the nearest",
        "dpm++ 2m sde heun": "is not built; DPM++ 2M SDE is the nearest",
        "restart": "is not built; Heun is the nearest",
        "dpm fast": "is not built; DPM++ 2M is the nearest",
        "dpm adaptive": "chooses its own number of steps and is not built; DPM++ 2M is the nearest",
        "ddim cfg++": "is not built; DDIM is the nearest",
        "heunpp2": "is not built; Heun is the nearest",
        "uni_pc": "is another method than A1111's UniPC; give UniPC for that one",
        "uni_pc_bh2": "is another method than A1111's UniPC; give UniPC for that one",
        "dpmsolver": "is the first version, which A1111 does not have; DPM++ 2M is the second",
        "dpmsingle": "is diffusers' singlestep method, which A1111 does not have; DPM++ 2S a is the nearest",
    }
)


def find_sampler(name: str, where: str = "sampler") -> tuple[Sampler, str | None]:
    """The sampler of a name in any case, and the schedule that its older name ends with ("DPM++ 2M Karras").

    Raises ConfigError for an unknown name, with the nearest, and for one that is not built.
    """
    folded = " ".join(name.lower().split())
    sampler = _by_name(folded)
    if sampler is not None:
        return sampler, None
    if folded in REFUSED:
        raise ConfigError(f"{where}: '{name}' {REFUSED[folded]}")
    for schedule in SCHEDULES.values():
        ending = f" {schedule.name.lower()}"
        sampler = _by_name(folded.removesuffix(ending)) if folded.endswith(ending) else None
        if sampler is not None:
            return sampler, schedule.name
    raise ConfigError(f"{where}: '{name}' is no sampler{_nearest(folded, _spellings())}")


def true_schedule(sampler: Sampler, schedule: str, where: str = "schedule") -> str:
    """The label of the schedule that a sampler runs; "Automatic" stays where that is the sampler's own or the uniform
    one, as A1111 writes it.

    Raises ConfigError for an unknown name, and for a schedule with a sampler that has one of its own.
    """
    label = find_schedule(schedule, where)
    if label == AUTOMATIC:
        return AUTOMATIC if sampler.automatic == "Uniform" else sampler.automatic
    if sampler.own_schedule:
        raise ConfigError(f"{where}: {sampler.name} has a schedule of its own; leave it {AUTOMATIC}")
    return label


def check_flow(sampler: Sampler, schedule: str) -> None:
    """Raise ConfigError for a sampler or a schedule's label that a base that predicts flow cannot be drawn with."""
    if sampler.name not in OF_FLOW:
        raise ConfigError(
            f"sampler: {sampler.name} is made for the noise of diffusion, and this base predicts flow; "
            f"give {', '.join(OF_FLOW[:-1])} or {OF_FLOW[-1]}"
        )
    if schedule != AUTOMATIC:
        raise ConfigError(
            f"schedule: {schedule} is of the noise of diffusion, and this base predicts flow; leave it {AUTOMATIC} "
            "(--flow-shift moves its steps)"
        )


def count_evaluations(sampler: Sampler, steps: int) -> int:
    """How often the model is evaluated in ``steps`` steps (1..1000), as A1111 runs them: DDIM asked for 20 runs 19,
    UniPC asked for 30 runs 31.

    Raises ConfigError where none would be left.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps: {steps} is not from 1 to {MOST_STEPS}")
    times = len(range(0, MOST_STEPS, MOST_STEPS // steps))
    count = {
        "one": steps,
        "two": 2 * steps - 1,
        "ddim": times - 1,
        "plms": times if times > 1 else 0,
        "unipc": times,
    }[sampler.evaluations]
    if count == 0:
        raise ConfigError(f"steps: {sampler.name} has no evaluation left in {steps} step; give 2 or more")
    return count


def _by_name(folded: str) -> Sampler | None:
    return next((row for row in SAMPLERS.values() if folded in (row.name.lower(), *row.names)), None)


def _spellings() -> Iterable[str]:
    for row in SAMPLERS.values():
        yield row.name
        yield from row.names


def _nearest(folded: str, known: Iterable[str]) -> str:
    table = {name.lower(): name for name in known}
    close = get_close_matches(folded, table, 1, cutoff=0.5)
    return f", did you mean '{table[close[0]]}'?" if close else f"; there are {', '.join(SAMPLERS)}"
