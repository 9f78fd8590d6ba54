"""Names, schedules and counts of evaluations against A1111's and k-diffusion's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.noise.samplers import SAMPLERS, count_evaluations, find_sampler, true_schedule
from lorapipe_engine.sampling.noise.schedules import (
    beta_quantile,
    ddim_times,
    lcm_sigmas,
    lcm_times,
    make_sigmas,
    noise_table,
    unipc_times,
)

DATA = Path(__file__).parents[2] / "data" / "see"
GOLDEN: dict[str, dict[str, list[float]]] = json.loads((DATA / "schedules.json").read_text())["schedules"]
TABLE = noise_table()


@pytest.mark.parametrize(
    ("name", "steps"), [(name, int(steps)) for name, rows in GOLDEN.items() for steps in rows]
)
def test_sigmas_are_a1111s(name: str, steps: int) -> None:
    discards = name.endswith("_discard_next_to_last")
    label = name.removesuffix("_discard_next_to_last")
    sigmas = make_sigmas(label, steps, TABLE, discards=discards)
    assert sigmas == pytest.approx(GOLDEN[name][str(steps)], rel=1e-6, abs=1e-7)


def test_the_table_has_stable_diffusions_ends() -> None:
    assert (TABLE.least, TABLE.most) == pytest.approx((0.02916753, 14.614642), rel=1e-6)
    assert noise_table(zero_terminal_snr=True).most == pytest.approx(4518.8, rel=1e-4)
    times = np.array([0, 0.25, 500.5, 998.999])
    assert TABLE.time_at(TABLE.sigma_at(times)) == pytest.approx(times, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "evaluations", "times"),
    [(10, 9, [1, 101, 901]), (20, 19, [1, 51, 951]), (30, 30, [1, 34, 991])],
)
def test_ddim_has_a1111s_timesteps(steps: int, evaluations: int, times: list[int]) -> None:
    found = ddim_times(steps)
    assert [*found[:2], found[-1]] == times
    assert count_evaluations(SAMPLERS["DDIM"], steps) == len(found) - 1 == evaluations


def test_timesteps_of_the_samplers_with_a_list_of_their_own() -> None:
    assert unipc_times(10)[:3] == pytest.approx([999, 899.1, 799.2])
    assert len(unipc_times(30)) == count_evaluations(SAMPLERS["UniPC"], 30) == 31
    assert lcm_sigmas(4, TABLE) == pytest.approx([14.614643, 2.991056, 0.972826, 0.134451, 0], rel=1e-5)
    assert list(lcm_times(lcm_sigmas(4, TABLE), TABLE)) == [999, 679, 339, 19]
    assert list(lcm_times(lcm_sigmas(8, TABLE), TABLE)) == [999, 859, 719, 579, 439, 299, 159, 19]
    assert int(ddim_times(1000)[-1]) == 999


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("Euler", 10),
        ("Euler a", 10),
        ("Heun", 19),
        ("LMS", 10),
        ("DPM2", 19),
        ("DPM2 a", 19),
        ("DPM++ 2M", 10),
        ("DPM++ 2M SDE", 10),
        ("DPM++ SDE", 19),
        ("DPM++ 2S a", 19),
        ("DDIM", 9),
        ("PLMS", 10),
        ("UniPC", 10),
        ("LCM", 10),
    ],
)
def test_evaluations_of_ten_steps(name: str, evaluations: int) -> None:
    assert count_evaluations(SAMPLERS[name], 10) == evaluations


@pytest.mark.parametrize(
    ("name", "label", "schedule"),
    [
        ("euler a", "Euler a", None),
        ("EULER_A", "Euler a", None),
        ("euler_ancestral", "Euler a", None),
        ("k_lms", "LMS", None),
        ("dpm++ 2m karras", "DPM++ 2M", "Karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "Exponential"),
        ("dpmpp_2s_ancestral", "DPM++ 2S a", None),
        ("pndm", "PLMS", None),
        ("unipc", "UniPC", None),
    ],
)
def test_names_of_every_program(name: str, label: str, schedule: str | None) -> None:
    sampler, found = find_sampler(name)
    assert (sampler.name, found) == (label, schedule)


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("Eular", "did you mean 'Euler'"),
        ("dpm++ 2n", "did you mean 'DPM++ 2M'"),
        ("dpm++2m", "did you mean 'DPM++ 2M'"),
        ("xxxxxx", "there are Euler, "),
        ("DPM adaptive", "is not built"),
        ("uni_pc", "another method"),
        ("dpmsingle", "DPM++ 2S a"),
    ],
)
def test_other_names_are_refused_with_the_nearest(name: str, about: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        find_sampler(name, "--sampler")
    assert str(refusal.value).startswith("--sampler: ")
    assert about in str(refusal.value)


def test_automatic_is_the_samplers_own() -> None:
    written = {name: true_schedule(row, "automatic") for name, row in SAMPLERS.items()}
    assert written["DPM++ 2M"] == written["DPM2 a"] == written["DPM++ SDE"] == "Karras"
    assert written["DPM++ 2M SDE"] == "Exponential"
    assert written["Euler a"] == written["DDIM"] == written["LCM"] == "Automatic"
    assert true_schedule(SAMPLERS["Euler"], "sgm_uniform") == "SGM Uniform"
    with pytest.raises(ConfigError, match="of its own"):
        true_schedule(SAMPLERS["UniPC"], "Karras")
    with pytest.raises(ConfigError, match="did you mean 'Karras'"):
        true_schedule(SAMPLERS["Euler"], "karas")


def test_what_cannot_be_run_is_refused() -> None:
    for steps in (0, 1001):
        with pytest.raises(ConfigError, match="from 1 to 1000"):
            count_evaluations(SAMPLERS["Euler"], steps)
        with pytest.raises(ConfigError, match="from 1 to 1000"):
            make_sigmas("Karras", steps, TABLE)
    for name in ("DDIM", "PLMS"):
        with pytest.raises(ConfigError, match="no evaluation left"):
            count_evaluations(SAMPLERS[name], 1)
    with pytest.raises(ConfigError, match="depends on the sampler"):
        make_sigmas("Automatic", 10, TABLE)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.25, 0.5, 0.75, 1.0])
def test_beta_quantiles(share: float) -> None:
    """Against the integral of the density x^-0.4 (1-x)^-0.4, by the substitution x = u^(1/0.6) at both ends."""
    x = beta_quantile(share)

    def half(end: float) -> float:
        u = np.linspace(0, end**0.6, 200_001)
        return float(np.trapezoid((1 - u ** (1 / 0.6)) ** -0.4, u) / 0.6)

    whole = 2 * half(0.5)
    below = half(x) if x <= 0.5 else whole - half(1 - x)
    assert below / whole == pytest.approx(share, abs=1e-6)


def test_every_row_is_sound() -> None:
    any_case: Any = [name.lower() for row in SAMPLERS.values() for name in (row.name.lower(), *row.names)]
    assert len(any_case) >= len(SAMPLERS)
    for row in SAMPLERS.values():
        for name in (row.name, *row.names):
            assert find_sampler(name)[0] is row, name
        assert (row.eta is not None) == (row.noise in ("ancestral", "sde", "ddim"))
