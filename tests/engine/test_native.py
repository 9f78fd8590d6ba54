"""The compiled conversions and numpy's give the same bits, and all works without the compiled ones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine import native
from lorapipe_engine.files import halves

needs_library = pytest.mark.skipif(not native.is_there(), reason="the compiled part is not there")
HOOK = Path(__file__).parents[2] / "packages/engine/hatch_build.py"


@needs_library
def test_every_float16_and_its_neighbours() -> None:
    exact = np.arange(1 << 16, dtype=np.uint16)
    exact = exact[~np.isnan(exact.view(np.float16))]
    values = np.empty(exact.size, np.float32)
    assert native.decode_f16(exact, values)
    np.testing.assert_array_equal(values.view(np.uint32), exact.view(np.float16).astype("f4").view("u4"))
    finite = np.sort(values[np.isfinite(values)])
    middles = (finite[1:] + finite[:-1]) / 2
    for cases in (
        values,
        middles,
        np.nextafter(middles, np.float32(9e9)),
        np.nextafter(middles, -finite[-1:]),
    ):
        out = np.empty(cases.size, np.uint16)
        assert native.encode_f16(np.ascontiguousarray(cases), out)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(out, cases.astype(np.float16).view(np.uint16))


@needs_library
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_any_numbers_of_any_count(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    guarded = np.full(values.size + 1, 0xABCD, np.uint16)
    assert native.encode_f16(values, guarded[:-1])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(guarded[:-1], values.astype(np.float16).view(np.uint16))
    assert guarded[-1] == 0xABCD


@pytest.mark.slow
@needs_library
@given(
    st.lists(
        st.tuples(st.floats(width=16, allow_nan=False), st.floats(width=32, allow_nan=False)), max_size=40
    ),
    st.floats(-2, 2, width=32),
)
def test_one_pass_of_adding_is_three_of_numpy(pairs: list[tuple[float, float]], scale: float) -> None:
    base = np.array([one for one, _ in pairs], np.float16)
    change = np.array([other for _, other in pairs], np.float32)
    out = np.full(base.size + 1, 0xABCD, np.uint16)
    added = native.add_f16(base.view(np.uint16), change, scale, out[:-1])
    with np.errstate(over="ignore", invalid="ignore"):
        moved = change * np.float32(scale)
        expected = (base.astype(np.float32) + moved).astype(np.float16)
    assert out[-1] == 0xABCD
    if np.isnan(expected).any():
        assert added is None
        return
    assert added is not None
    np.testing.assert_array_equal(out[:-1], expected.view(np.uint16))
    assert added.infinite == np.count_nonzero(np.isinf(expected))
    assert added.small == np.count_nonzero(np.abs(expected) < 2.0**-14)
    with np.errstate(over="ignore"):
        squares = float(np.sum(np.square(moved))), float(np.sum(np.square(base.astype(np.float32))))
    if np.isfinite(squares).all():
        assert (added.change, added.base) == pytest.approx(squares, rel=1e-5)


@needs_library
def test_adding_over_many_pieces_keeps_the_norms() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(size=300_003).astype(np.float16)
    change = draw.normal(size=base.size).astype(np.float32)
    out = base.view(np.uint16).copy()
    added = native.add_f16(out, change, 0.5, out)
    assert added is not None
    np.testing.assert_array_equal(
        out.view(np.float16), (base.astype("f4") + change * np.float32(0.5)).astype("f2")
    )
    assert added.base == pytest.approx(np.sum(np.square(base.astype("f8"))), rel=1e-6)
    assert added.change == pytest.approx(np.sum(np.square(change.astype("f8"))) / 4, rel=1e-6)


@needs_library
def test_a_nan_is_left_to_numpy() -> None:
    for place in (0, 7, 8, 10):
        values = np.arange(11, dtype=np.float32)
        values[place] = np.nan
        out = np.empty(11, np.uint16)
        assert not native.encode_f16(values, out)
        assert not native.decode_f16(values.astype(np.float16).view(np.uint16), np.empty(11, np.float32))
    signalling = np.array([0x7C01, 0xFC01, 0x3C00], np.uint16).view(np.float16)
    np.testing.assert_array_equal(
        halves.decode_f16(signalling).view(np.uint32), signalling.astype(np.float32).view(np.uint32)
    )


def test_without_the_library() -> None:
    code = """
import numpy as np
from lorapipe_engine import native
from lorapipe_engine.files import halves
assert not native.is_there()
values = (np.random.default_rng(0).standard_normal(100_003) * 1e-4).astype(np.float32)
assert (halves.encode_f16(values) == values.astype(np.float16)).all()
assert (halves.decode_f16(halves.encode_f16(values)) == values.astype(np.float16).astype(np.float32)).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"LORAPIPE_NATIVE": "0"})


def test_a_missing_compiler_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.compile_halves(tmp_path) is False
    assert "no C compiler" in capsys.readouterr().err
