"""A denoiser that is drawn with, fused: the answers of its own blocks, with networks and without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.models.predictions import EPSILON  # noqa: E402
from lorapipe_engine.nn.fused.drawing.unet import Drawing  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import AskedPrompt  # noqa: E402
from lorapipe_engine.train.sample.networks import Swapper  # noqa: E402
from lorapipe_engine.train.sample.picture import CellPainter  # noqa: E402
from support import tiny  # noqa: E402
from support.drawn import cell_of, write_factored, write_network  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base of a family, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save_checkpoint(tiny.build(request.param), folder / "base.safetensors")
    tiny.write_tokenizer(folder / "tokenizer")
    return folder / "base.safetensors"


def open_base(path: Path) -> Family:
    return open_family(load_base(path, tokenizer_dir=path.with_name("tokenizer")))


def answer(family: Family, text: str = "a cat") -> Any:
    noisy = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    states = family.text.encode_prompts([AskedPrompt(text)])[0]
    both = type(states).joined([states, states])
    factor = family.latent_factor
    geometry = family.plain_geometry(2, 16 * factor, 8 * factor)
    with torch.inference_mode():
        return family.predict(noisy, torch.tensor([300.0]).expand(2), both, geometry)


def test_fused_answers_are_those_of_the_blocks(base: Path, tmp_path: Path) -> None:
    family, other = open_base(base), open_base(base)
    drawing = Drawing(other.denoiser)
    own, fused = Swapper(family), Swapper(other, drawing, pytest.fail)
    one = write_network(tmp_path / "one.safetensors", family, rank=4, seed=1)
    two = write_network(tmp_path / "two.safetensors", family, rank=20, seed=2, conv=True)
    plain = answer(family)
    torch.testing.assert_close(answer(other), plain, rtol=1e-4, atol=1e-4)
    for rows in ((one,), (two,), (one, two), (one, one), (), (two,)):
        for swapper in (own, fused):
            swapper.use(rows)
        expected = answer(family)
        assert bool(rows) == bool((expected - plain).abs().max() > 0.01)
        torch.testing.assert_close(answer(other), expected, rtol=1e-4, atol=1e-4)
    version = drawing.slots.version
    fused.use((one,))
    fused.use((two,))
    assert drawing.slots.version == version, "what has room is swapped in place"


def test_loha_and_lokr_are_fused_as_the_factors_that_they_equal(base: Path, tmp_path: Path) -> None:
    family, other = open_base(base), open_base(base)
    drawing = Drawing(other.denoiser)
    own, fused = Swapper(family), Swapper(other, drawing, pytest.fail)
    loha, lokr = (
        write_factored(tmp_path / f"{name}.safetensors", family, name, rank=rank)
        for name, rank in (("loha", 3), ("lokr", 1))
    )
    lora = write_network(tmp_path / "lora.safetensors", family, rank=4, seed=1)
    plain = answer(family)
    for rows in ((loha,), (lokr,), (lora, loha, lokr)):
        for swapper in (own, fused):
            swapper.use(rows)
        assert drawing.active
        expected = answer(family)
        assert (expected - plain).abs().max() > 0.01
        torch.testing.assert_close(answer(other), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_fused_is_drawn_unfused_and_told_once(base: Path, tmp_path: Path) -> None:
    family, other = open_base(base), open_base(base)
    said: list[str] = []
    own, fused = Swapper(family), Swapper(other, Drawing(other.denoiser), said.append)
    ends = write_network(tmp_path / "ends.safetensors", family, rank=2, seed=1, first=True)
    plain = write_network(tmp_path / "plain.safetensors", family, rank=2, seed=2)
    for rows in ((ends,), (plain,), (ends, plain), ()):
        for swapper in (own, fused):
            swapper.use(rows)
        torch.testing.assert_close(answer(other), answer(family), rtol=1e-4, atol=1e-4)
    assert len(said) == 1
    assert "ends.safetensors" in said[0]
    assert "conv_in" in said[0] or "input_blocks_0_0" in said[0]
    assert "unfused" in said[0]


def test_pictures_of_a_fused_painter_are_those_of_a_plain_one(base: Path, tmp_path: Path) -> None:
    cells = [
        cell_of(1),
        cell_of(2, "a dog", cfg=3.0),
        cell_of(3, "a BREAK cat BREAK on a (mat:1.2)"),  # of more chunks than the negative prompt
    ]
    painters = [
        CellPainter(open_base(base), EPSILON.name, zero_terminal_snr=False, fused=fused, say=pytest.fail)
        for fused in (False, True)
    ]
    network = write_network(tmp_path / "one.safetensors", painters[0].family, rank=4, seed=1)
    for rows in ((), (network,), ()):
        pictures = []
        for painter in painters:
            painter.swapper.use(rows)
            asked = [replace(cell, networks=tuple(rows)) for cell in cells]
            pictures.append([torch.tensor(list(drawn.image().tobytes())) for drawn in painter.draw(asked)])
        for one, other in zip(*pictures, strict=True):
            assert (one - other).abs().max() <= 1
        assert (pictures[0][0] - pictures[0][1]).abs().max() > 5
