from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import Array, as_encoded, byte_count, decode, encode

BYTES = np.arange(256, dtype=np.uint8)
TORCH_NAMES = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_every_byte_of_the_small_floats(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(BYTES.copy()).view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    np.testing.assert_array_equal(decode(dtype, BYTES.tobytes(), (256,)), expected)


@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "name"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_every_half(dtype: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(codes.copy()).view(getattr(torch, name)).float().numpy()
    found = decode(dtype, codes.tobytes(), (256, 256))
    np.testing.assert_array_equal(found.reshape(-1), expected)
    # And back to the same bits, NaN apart.
    numbers = ~np.isnan(found)
    again = np.frombuffer(encode(found, dtype).data, np.uint16).reshape(256, 256)
    assert (again == codes.reshape(256, 256))[numbers].all()
    assert np.isnan(decode(dtype, again.tobytes(), (1 << 16,))).sum() == (~numbers).sum()


@pytest.mark.torch
@given(hnp.arrays(np.float32, 50, elements=st.floats(width=32)))
def test_rounding_equals_torch(values: Array) -> None:
    torch = pytest.importorskip("torch")
    for dtype, name in (("BF16", "bfloat16"), ("F16", "float16")):
        expected = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
        np.testing.assert_array_equal(
            decode(dtype, bytes(np.asarray(encode(values, dtype).data)), (50,)), expected
        )


def test_known_values_of_bf16_and_fp8() -> None:
    assert decode("BF16", b"\x80\x3f\x00\xc0", (2,)).tolist() == [1.0, -2.0]
    assert decode("F8_E4M3", bytes([0x38, 0x7E, 0x01, 0x80]), (4,)).tolist() == [1.0, 448.0, 2.0**-9, -0.0]
    assert np.isnan(decode("F8_E4M3", b"\x7f", ())).all()
    assert decode("F8_E5M2", bytes([0x3C, 0x7B, 0xFC]), (3,)).tolist() == [1.0, 57344.0, -np.inf]


def test_shapes_and_arrays_of_no_dimension_stay() -> None:
    assert encode(np.array(3.0), "F16").shape == ()
    assert as_encoded(np.array(3.0)).shape == ()
    assert decode("F32", np.float32(2).tobytes(), ()).shape == ()
    assert decode("BF16", b"", (0, 4)).shape == (0, 4)
    strided = np.arange(12, dtype=np.int16).reshape(3, 4).T
    assert bytes(np.asarray(as_encoded(strided).data)) == np.ascontiguousarray(strided).tobytes()
    big = np.arange(3, dtype=">i4")
    assert np.frombuffer(as_encoded(big).data, "<i4").tolist() == [0, 1, 2]


def test_packed_types() -> None:
    assert byte_count("F4", (4,)) == 2
    assert byte_count("F6_E2M3", (4,)) == 3
    assert byte_count("F4", (3,)) is None
    with pytest.raises(InputError, match="F4"):
        decode("F4", b"12", (4,))
    with pytest.raises(ValueError, match="F8"):
        encode(np.ones(1), "F8_E4M3")
