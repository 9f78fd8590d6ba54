"""Text encoders that are drawn with, fused: the states of their own layers, with networks in slots and attached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_engine.models.predictions import EPSILON  # noqa: E402
from lorapipe_engine.nn.base import Adapter  # noqa: E402
from lorapipe_engine.nn.fused.drawing.unet import Drawing  # noqa: E402
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import AskedPrompt, Conditioning  # noqa: E402
from lorapipe_engine.train.sample.networks import Swapper  # noqa: E402
from lorapipe_engine.train.sample.picture import CellPainter  # noqa: E402
from support import tiny  # noqa: E402
from support.drawn import cell_of, write_adapters, write_factored, write_network  # noqa: E402

pytestmark = pytest.mark.torch

ASKED = [
    AskedPrompt("", is_negative=True),
    AskedPrompt("a cat"),
    AskedPrompt("a BREAK (red:1.3) cat, smile"),
]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base of a family, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save_checkpoint(tiny.build(request.param), folder / "base.safetensors")
    tiny.write_tokenizer(folder / "tokenizer")
    return folder / "base.safetensors"


def open_base(path: Path) -> Family:
    return open_family(load_base(path, tokenizer_dir=path.with_name("tokenizer")))


def fused(family: Family) -> Drawing:
    return Drawing(family.denoiser, family.text.modules.values())


def states(family: Family, skip: int = 1) -> list[Conditioning]:
    family.text.clip_skip = skip
    with torch.inference_mode():
        return family.text.encode_prompts(ASKED)


def farthest(some: Sequence[Conditioning], others: Sequence[Conditioning]) -> float:
    tensors = [(one.named(), other.named()) for one, other in zip(some, others, strict=True)]
    assert all(one.keys() == other.keys() for one, other in tensors)
    return max(float((one[name] - other[name]).abs().max()) for one, other in tensors for name in one)


def is_attached(family: Family) -> bool:
    parts = family.text.modules.values()
    return any(isinstance(module, Adapter) for part in parts for module in part.modules())


def without(row: Loaded, part: str) -> Loaded:
    """The network less what it changes of a part, "te" or "unet", as a file beside it."""
    kept = {
        key: value for key, value in load_file(row.file.path).items() if not key.startswith(f"lora_{part}")
    }
    path = row.file.path.with_name(f"{row.file.path.stem} without {part}.safetensors")
    save_file(kept, path)
    return replace(row, file=NetworkFile(path, path.stem))


def test_states_are_those_of_the_layers(base: Path, tmp_path: Path) -> None:
    family, other = open_base(base), open_base(base)
    drawing = fused(other)
    own, swapper = Swapper(family), Swapper(other, drawing, lambda _: None)
    one = write_network(tmp_path / "one.safetensors", family, rank=4, seed=1)
    two = write_network(tmp_path / "two.safetensors", family, rank=20, seed=2)
    loha = write_factored(tmp_path / "loha.safetensors", family, "loha", rank=3)
    lokr = write_factored(tmp_path / "lokr.safetensors", family, "lokr", rank=1)
    dora = write_adapters(tmp_path / "dora.safetensors", family, "lora", {"dora_wd": True})
    silent = replace(two, te=0.0)
    plain = states(family)
    assert farthest(states(other), plain) < 1e-5
    for rows, is_changed, is_fused in (
        ([one], True, True),
        ([one, two, one], True, True),
        ([silent], False, True),
        ([one], True, True),
        ([without(two, "te")], False, True),  # leaves nothing of the last one
        ([one, silent, without(two, "unet")], True, True),
        ([lokr, loha, one], True, True),
        ([one, dora], True, False),
        ([one, replace(dora, te=0.0)], True, True),
        ([replace(one, te=-0.5, unet=0.0)], True, True),
        ([], False, True),
    ):
        own.use(rows)
        swapper.use(rows)
        assert is_attached(other) is not is_fused
        for skip in (1, 2) if family.facts.reads_clip_skip else (1,):
            expected = states(family, skip)
            difference = farthest(expected, states(other, skip))
            assert difference < 1e-5 * max(1.0, *(float(row.hidden.abs().max()) for row in expected)), rows
        assert (farthest(states(family), plain) > 0.01) is is_changed


def test_each_part_is_fused_for_itself(base: Path, tmp_path: Path) -> None:
    family, other = open_base(base), open_base(base)
    drawing, said = fused(other), list[str]()
    own, swapper = Swapper(family), Swapper(other, drawing, said.append)
    lora = write_network(tmp_path / "lora.safetensors", family, rank=4, seed=1)
    dora = write_adapters(tmp_path / "dora.safetensors", family, "lora", {"dora_wd": True})
    texts, denoiser = without(dora, "unet"), without(dora, "te")
    for rows, active in (
        ([lora], (True, True)),
        ([texts], (True, False)),
        ([without(lora, "te"), texts], (True, False)),
        ([denoiser, without(lora, "unet")], (False, True)),
        ([dora], (False, False)),
    ):
        own.use(rows)
        swapper.use(rows)
        assert (drawing.active, drawing.text.active) == active
        assert farthest(states(family), states(other)) < 2e-5
    swapper.clear()
    assert (drawing.active, drawing.text.active) == (True, True)
    assert not is_attached(other)
    assert [line.split(":")[1].strip() for line in said] == [str(denoiser.file.path), str(dora.file.path)]


def test_room_for_texts_leaves_what_was_captured_of_the_denoiser(base: Path, tmp_path: Path) -> None:
    family = open_base(base)
    drawing = fused(family)
    swapper = Swapper(family, drawing, pytest.fail)
    row = write_network(tmp_path / "one.safetensors", family, rank=4, seed=1)
    swapper.use([replace(row, te=0.0)])
    version = drawing.slots.version
    before = drawing.text.slots.version
    swapper.use([row])
    assert drawing.text.slots.version > before
    assert drawing.slots.version == version


def test_pictures_follow_the_strength_of_texts(base: Path, tmp_path: Path) -> None:
    painters = [
        CellPainter(open_base(base), EPSILON.name, zero_terminal_snr=False, fused=fused, say=pytest.fail)
        for fused in (False, True)
    ]
    one = write_network(tmp_path / "one.safetensors", painters[0].family, rank=4, seed=1)
    two = write_network(tmp_path / "two.safetensors", painters[0].family, rank=4, seed=2)
    silent, alone = replace(one, te=0.0), without(one, "te")
    drawn: list[list[Any]] = []
    for rows in ([one], [silent], [alone], [one, two], [one]):
        pictures = []
        for painter in painters:
            painter.swapper.use(rows)
            cells = [replace(cell_of(1), steps=2, networks=tuple(rows))]
            pictures.append([torch.tensor(list(row.image().tobytes())).int() for row in painter.draw(cells)])
        for some, others in zip(*pictures, strict=True):
            assert (some - others).abs().max() <= 1
        drawn.append(pictures[1])
    first, mute, without_text, _, again = (rows[0] for rows in drawn)
    assert (first - mute).abs().max() > 1
    assert (mute - without_text).abs().max() <= 1
    assert (first - again).abs().max() <= 1


def test_prompts_are_cut_once_for_all_networks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = open_base(base)
    first = states(family)
    tokenizer = type(family.text.tokenizers[0])  # type: ignore[attr-defined]
    monkeypatch.setattr(tokenizer, "encode", lambda *_: pytest.fail("cut again"))
    assert farthest(first, states(family)) == 0
