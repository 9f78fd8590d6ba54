"""Dense SVDs with torch, and what happens without it."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.networks.factors import dense_spectrum
from lorapipe_resize.device import dense_on


def test_torch_gives_the_same_spectrum() -> None:
    pytest.importorskip("torch")
    said: list[str] = []
    matrix = np.random.default_rng(0).standard_normal((20, 12))
    found, expected = dense_on("cpu:0", said.append)(matrix), dense_spectrum(matrix)
    assert np.allclose(found.singular, expected.singular)
    one, other = found.truncate(4), expected.truncate(4)
    assert np.allclose(one.up @ one.down, other.up @ other.down)
    assert said == []


def test_a_device_that_is_not_there_is_said_once_and_the_cpu_takes_over() -> None:
    pytest.importorskip("torch")
    said: list[str] = []
    decompose = dense_on("cuda:99", said.append)
    for seed in range(2):
        matrix = np.random.default_rng(seed).standard_normal((6, 5))
        assert np.allclose(decompose(matrix).singular, dense_spectrum(matrix).singular)
    assert len(said) == 1
    assert "the CPU does the work" in said[0]


def test_without_torch_the_cpu_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    said: list[str] = []
    matrix = np.eye(3)
    assert np.allclose(dense_on("cuda", said.append)(matrix).singular, 1)
    assert said == ["--device cuda: torch is not installed, the CPU does the work"]
