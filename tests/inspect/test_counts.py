"""Counting on the bits agrees with decoding, for every float type, over the borders of blocks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.files.dtypes import DTYPE_BITS, Encoded
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_inspect.measure import counts
from lorapipe_inspect.measure.counts import FileCounts, count_file

# The smallest normal number of each type.
SMALLEST = {
    "F64": 2.0**-1022, "F32": 2.0**-126, "F16": 2.0**-14, "BF16": 2.0**-126, "F8_E5M2": 2.0**-14, "F8_E4M3": 2.0**-6,
    "F8_E4M3FNUZ": 2.0**-7, "F8_E5M2FNUZ": 2.0**-15, "F8_E8M0": 0.0,
}  # fmt: skip


def counted(tensors: dict[str, Encoded]) -> tuple[FileCounts, dict[str, np.ndarray]]:
    stream = io.BytesIO()
    write_tensors(stream, tensors)
    stream.seek(0)
    with open_tensors(stream) as file, np.errstate(invalid="ignore"):
        return count_file(file), {name: file.read(name) for name in file.tensors}


@pytest.mark.parametrize("dtype", SMALLEST)
def test_every_pattern_of_small_types(dtype: str) -> None:
    width = DTYPE_BITS[dtype] // 8
    rng = np.random.default_rng(0)
    if width <= 2:
        bits = np.arange(256**width).astype(f"<u{width}")
    else:
        bits = rng.integers(0, 256, 1 << 16, dtype=np.uint8).view(f"<u{width}").copy()
        # Few random patterns are odd ones.
        mantissa = {4: 23, 8: 52}[width]
        one = bits.dtype.type(1)
        bits[:100] = 0
        bits[100:200] = np.arange(1, 101)
        bits[200:300] = (one << width * 8 - 1) - (one << mantissa) + np.arange(100, dtype=bits.dtype)
        rng.shuffle(bits)
    found, arrays = counted({"a": Encoded(dtype, bits.shape, bits)})
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = np.abs(arrays["a"].astype(np.float64))
    ours = found.tensors["a"]
    finite = values[np.isfinite(values)]
    assert ours.size == values.size
    assert ours.zero == np.count_nonzero(values == 0)
    assert ours.subnormal == np.count_nonzero((finite > 0) & (finite < SMALLEST[dtype]))
    assert ours.inf == np.count_nonzero(np.isinf(values))
    assert ours.nan == np.count_nonzero(np.isnan(values))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["F16", "F32", "BF16"]),
            st.lists(st.integers(0, 5), max_size=3),
            st.integers(0, 99),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_tensors_over_the_borders_of_blocks(rows: list[tuple[str, list[int], int]]) -> None:
    tensors = {}
    for number, (dtype, shape, seed) in enumerate(rows):
        size = int(np.prod(shape))
        width = DTYPE_BITS[dtype] // 8
        odd = {"F16": [0, 0x8000, 1, 0x7C00, 0x7E00], "BF16": [0, 0x8000, 1, 0x7F80, 0x7FC0]}.get(
            dtype, [0, 0x80000000, 1, 0x7F800000, 0x7FC00000]
        )
        chosen = np.random.default_rng(seed).choice([*odd, 0x3C00, 0x3C01, 0x3F80], size)
        tensors[f"t{number}"] = Encoded(dtype, tuple(shape), chosen.astype(f"<u{width}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "BLOCK", 16)
        found, arrays = counted(tensors)
    for name, array in arrays.items():
        ours = found.tensors[name]
        assert (ours.zero, ours.nan, ours.inf) == (
            np.count_nonzero(array == 0),
            np.count_nonzero(np.isnan(array)),
            np.count_nonzero(np.isinf(array)),
        )
        places = {place.index for place in found.places if place.tensor == name}
        if len(found.places) < counts.MAX_PLACES:
            assert places == {tuple(place) for place in np.argwhere(~np.isfinite(array)).tolist()}


def test_float64_that_fp32_cannot_hold_counts_for_the_guide(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"lora_up": np.asarray([1.0, 1e-46, 1e-40, 0.0])})
    with open_tensors(path) as file:
        ours = count_file(file).tensors["lora_up"]
    assert (ours.zero, ours.zero_in_float32) == (1, 2)


def test_types_that_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(
        path, {"ids": np.arange(4), "packed": Encoded("F4", (4,), b"\0\0"), "x": np.zeros(2, np.complex64)}
    )
    with open_tensors(path) as file:
        found = count_file(file)
    assert (list(found.tensors), found.skipped) == (["x"], ("packed",))
    assert (found.tensors["x"].size, found.tensors["x"].zero) == (4, 4)
