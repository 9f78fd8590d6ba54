"""Drawing on a CUDA device: fused blocks and captured evaluations give the pictures of the library's own blocks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

sys.path.insert(0, str(Path(__file__).parents[3] / "tools" / "bench"))

from train import WORKLOADS, make_family  # type: ignore[import-not-found]  # noqa: E402

from lorapipe_engine.models.predictions import EPSILON  # noqa: E402
from lorapipe_engine.sampling.cells import Cell  # noqa: E402
from lorapipe_engine.sampling.shelf import Loaded  # noqa: E402
from lorapipe_engine.train.sample.picture import CellPainter  # noqa: E402
from support.drawn import cell_of, write_adapters, write_factored, write_network  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Products of all digits: the default ones of convolutions differ with the batch."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def make_painter(
    dtype: Any = torch.float32,
    *,
    fused: bool,
    say: Any = pytest.fail,
    decoding: Any = None,
    loud: float = 1.0,
) -> CellPainter:
    """``loud``: what the VAE's decoder begins with is so many times larger."""
    torch.manual_seed(1)
    family = make_family(WORKLOADS["small"], torch.device("cuda"), dtype)
    family.vae.float()
    family.vae_dtype = torch.float32
    family.vae.decoder.conv_in.weight.data.mul_(loud)
    return CellPainter(family, EPSILON.name, zero_terminal_snr=False, fused=fused, say=say, decoding=decoding)


def pictures(painter: CellPainter, rows: Sequence[Loaded], cells: Sequence[Cell]) -> list[Any]:
    painter.swapper.use(rows)
    drawn = list(painter.draw([replace(cell, networks=tuple(rows)) for cell in cells]))
    return [torch.tensor(list(picture.image().tobytes())).int() for picture in drawn]


def farthest(some: Sequence[Any], others: Sequence[Any]) -> int:
    return max(int((one - other).abs().max()) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("sampler", ["Euler a", "Euler", "DPM++ 2M"])
def test_captured_pictures_are_those_of_plain_evaluations(sampler: str, tmp_path: Path) -> None:
    plain, fast = make_painter(fused=False), make_painter(fused=True)
    cells = [cell_of(seed, cfg=3.0 + seed, sampler=sampler) for seed in range(3)]
    networks = [
        write_network(tmp_path / f"{rank}.safetensors", plain.family, rank=rank, seed=rank, conv=conv)
        for rank, conv in ((4, False), (12, False), (20, True))
    ]
    for rows in ((), networks[:1], networks[1:2], networks[2:], networks[:1], networks, ()):
        for _ in range(2):  # the second time from a graph alone
            assert farthest(pictures(plain, rows, cells), pictures(fast, rows, cells)) <= 1
    assert fast.recorded == 1, "one kind of batch, and the last room for networks"


def test_networks_are_swapped_without_another_graph(tmp_path: Path) -> None:
    fast = make_painter(fused=True)
    networks = [
        write_network(tmp_path / f"{seed}.safetensors", fast.family, rank=8, seed=seed) for seed in range(3)
    ]
    cells = [cell_of(seed) for seed in range(2)]
    first = [pictures(fast, [row], cells) for row in networks]
    graphs = fast.recorded
    again = [pictures(fast, [row], cells) for row in networks]
    assert fast.recorded == graphs == 1
    assert all(farthest(some, others) == 0 for some, others in zip(first, again, strict=True))
    assert farthest(first[0], first[1]) > 5


def test_known_networks_are_drawn_without_waiting_for_the_card(tmp_path: Path) -> None:
    fast = make_painter(fused=True, decoding=torch.float16)
    networks = [
        write_network(tmp_path / f"{seed}.safetensors", fast.family, rank=8, seed=seed) for seed in range(2)
    ]
    cells = [cell_of(seed) for seed in range(2)]
    first = [pictures(fast, [row], cells) for row in networks]
    fast._texts.clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = []
        for row in networks:
            fast.swapper.use([row])
            again.append(list(fast.draw([replace(cell, networks=(row,)) for cell in cells])))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for some, others in zip(first, again, strict=True):
        assert farthest(some, [torch.tensor(list(p.image().tobytes())).int() for p in others]) == 0


def test_networks_read_ahead_draw_as_those_that_are_not(tmp_path: Path) -> None:
    one, other = make_painter(fused=True), make_painter(fused=True)
    networks = [
        write_network(tmp_path / f"{seed}.safetensors", one.family, rank=8, seed=seed) for seed in range(12)
    ]
    cells = [cell_of(seed) for seed in range(2)]
    for row, following in zip(networks, [*networks[1:], networks[0]], strict=True):
        one.swapper.use([row])
        one.swapper.expect([following.file.path])
        asked = [replace(cell, networks=(row,)) for cell in cells]
        drawn = [torch.tensor(list(p.image().tobytes())).int() for p in list(one.draw(asked))]
        assert farthest(drawn, pictures(other, [row], cells)) == 0


def test_captured_steps_go_on_after_networks_of_other_algorithms(tmp_path: Path) -> None:
    said: list[str] = []
    plain, fast = make_painter(fused=False), make_painter(fused=True, say=said.append)
    family = plain.family
    lora = write_network(tmp_path / "lora.safetensors", family, rank=8, seed=1)
    loha, lokr = (
        write_factored(tmp_path / f"{name}.safetensors", family, name, rank=rank)
        for name, rank in (("loha", 3), ("lokr", 1))
    )
    dora = write_adapters(tmp_path / "dora.safetensors", family, "lora", {"dora_wd": True})
    oft = write_adapters(tmp_path / "oft.safetensors", family, "oft", {})
    cells = [cell_of(seed) for seed in range(2)]
    for rows in ([lora], [loha], [dora], [lora], [lokr], [oft], [lora, dora], [lora, loha, lokr], [lora]):
        for _ in range(2):  # the second time from a graph alone, where there is one
            assert farthest(pictures(plain, rows, cells), pictures(fast, rows, cells)) <= 1
    assert fast.recorded == 1
    assert [line.split(":")[1].strip() for line in said] == [str(dora.file.path), str(oft.file.path)]


def test_a_cell_in_a_batch_of_8_is_that_cell_alone() -> None:
    fast = make_painter(fused=True)
    cells = [cell_of(seed, "a BREAK cat" if seed % 3 == 0 else "a cat") for seed in range(8)]
    together = pictures(fast, (), cells)
    assert farthest(together, [pictures(fast, (), [cell])[0] for cell in cells]) <= 1


def test_pictures_decoded_in_fp16_are_those_of_float32() -> None:
    exact, half = make_painter(fused=True), make_painter(fused=True, decoding=torch.float16)
    cells = [cell_of(seed) for seed in range(3)]
    assert farthest(pictures(exact, (), cells), pictures(half, (), cells)) <= 1


def test_values_beyond_fp16_are_decoded_in_float32_which_is_told() -> None:
    said: list[str] = []
    plain = make_painter(fused=True, loud=1e8)
    half = make_painter(fused=True, say=said.append, decoding=torch.float16, loud=1e8)
    cells = [cell_of(seed) for seed in range(2)]
    assert farthest(pictures(plain, (), cells), pictures(half, (), cells)) <= 1
    assert len(said) == 1
    assert "--vae-precision float" in said[0]


def test_bf16_follows_the_library() -> None:
    plain, fast = (make_painter(torch.bfloat16, fused=fused) for fused in (False, True))
    cells = [cell_of(seed) for seed in range(4)]
    some, others = pictures(plain, (), cells), pictures(fast, (), cells)
    mean = sum(float((one - other).abs().float().mean()) for one, other in zip(some, others, strict=True)) / 4
    assert mean < 4  # of 255


def test_what_is_outside_of_the_blocks_is_drawn_unfused(tmp_path: Path) -> None:
    said: list[str] = []
    plain, fast = make_painter(fused=False), make_painter(fused=True, say=said.append)
    ends = write_network(tmp_path / "ends.safetensors", plain.family, rank=2, seed=1, first=True)
    cells = [cell_of(seed) for seed in range(2)]
    for rows in ([ends], [], [ends]):
        assert farthest(pictures(plain, rows, cells), pictures(fast, rows, cells)) <= 1
    assert len(said) == 1
