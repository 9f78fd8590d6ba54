"""The fast conversions give numpy's bits for every float16, and for float32 of all kinds."""

from __future__ import annotations

import numpy as np
import pytest

from lorapipe_engine.files.halves import BLOCK, decode_f16, encode_bf16, encode_f16

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def hard_cases() -> np.ndarray:
    """Every float16, the middles between neighbours and their neighbours, and random bit patterns."""
    exact = ALL_HALVES.astype(np.float32)
    finite = np.sort(exact[np.isfinite(exact)])
    middles = (finite[1:] + finite[:-1]) / 2
    random = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32)
    around = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    edges = np.array(
        [65519.0, 65520.0, 65536.0, np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, 2.0**-14], np.float32
    )
    return np.concatenate([exact, middles, *around, random, edges])


def test_every_float16_is_decoded_exactly() -> None:
    found = decode_f16(ALL_HALVES)
    np.testing.assert_array_equal(found.view(np.uint32), ALL_HALVES.astype(np.float32).view(np.uint32))


@pytest.mark.filterwarnings("ignore:overflow")
def test_rounding_to_float16_is_numpys() -> None:
    cases = hard_cases()
    expected = cases.astype(np.float16)
    found = encode_f16(cases)
    bad = np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint16)[~bad], expected.view(np.uint16)[~bad])
    assert np.isnan(found[bad]).all()


def test_blocks_of_ordinary_numbers() -> None:
    values = (np.random.default_rng(1).standard_normal(2 * BLOCK + 7) * 0.03).astype(np.float32)
    np.testing.assert_array_equal(encode_f16(values), values.astype(np.float16))
    np.testing.assert_array_equal(
        decode_f16(encode_f16(values)), values.astype(np.float16).astype(np.float32)
    )


def test_rounding_to_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    cases = hard_cases()
    expected = torch.from_numpy(cases).bfloat16().view(torch.uint16).numpy()
    found = encode_bf16(cases)
    bad = np.isnan(cases)
    np.testing.assert_array_equal(found[~bad], expected[~bad])
    assert np.isnan((found[bad].astype(np.uint32) << 16).view(np.float32)).all()


def test_nothing() -> None:
    empty = np.zeros(0, np.float32)
    assert encode_f16(empty).size == encode_bf16(empty).size == decode_f16(empty.astype(np.float16)).size == 0
