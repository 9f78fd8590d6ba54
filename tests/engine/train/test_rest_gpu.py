"""Text encoders that leave a CUDA device and come back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

sys.path.insert(0, str(Path(__file__).parents[3] / "tools" / "bench"))

from train import WORKLOADS, make_family  # type: ignore[import-not-found]  # noqa: E402

from lorapipe_engine.train.families.text import Tokens  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_text_encoders_rest_with_their_weights_and_come_back() -> None:
    family = make_family(WORKLOADS["small"], torch.device("cuda"), torch.float32)
    ids = torch.randint(0, 49000, (2, 1, 77), device="cuda")
    ids[:, :, -1] = 49407
    with torch.no_grad():
        before = family.text.encode(Tokens((ids,))).hidden
        family.text.move_to_cpu()  # for the first time, to a CPU that has nothing of them
        for _ in range(2):
            assert {p.device.type for p in family.text.modules["te1"].parameters()} == {"cpu"}
            at_rest = [p.data_ptr() for p in family.text.modules["te1"].parameters()]
            taken = torch.cuda.memory_allocated()
            assert torch.equal(family.text.encode(Tokens((ids,))).hidden, before)
            assert torch.cuda.memory_allocated() > taken
            family.text.move_to_cpu()
            assert [p.data_ptr() for p in family.text.modules["te1"].parameters()] == at_rest
