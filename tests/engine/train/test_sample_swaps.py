"""Networks swapped one behind the other: each as if it were attached by itself, or refused as if it were the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_engine.networks import describe  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.attach import detach  # noqa: E402
from lorapipe_engine.nn.fused.drawing.unet import Drawing  # noqa: E402
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import AskedPrompt  # noqa: E402
from lorapipe_engine.train.network.files.apply import attach_file  # noqa: E402
from lorapipe_engine.train.sample.networks import NetworkProblem, Swapper  # noqa: E402
from support import tiny  # noqa: E402
from support.drawn import write_adapters, write_factored, write_network  # noqa: E402

pytestmark = pytest.mark.torch

STRENGTH = 0.6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("sd1")
    tiny.save_checkpoint(tiny.build("sd1"), folder / "base.safetensors")
    tiny.write_tokenizer(folder / "tokenizer")
    return folder / "base.safetensors"


def open_base(path: Path) -> Family:
    return open_family(load_base(path, tokenizer_dir=path.with_name("tokenizer")))


def answer(family: Family) -> Any:
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    states = family.text.encode_prompts([AskedPrompt("a cat")])[0]
    factor = family.latent_factor
    with torch.inference_mode():
        geometry = family.plain_geometry(1, 8 * factor, 8 * factor)
        return family.predict(noisy, torch.tensor([300.0]), states, geometry)


def write_kinds(folder: Path, family: Family) -> list[Loaded]:
    """Files of several algorithms; two, and two others, differ in values alone."""
    path = lambda name: folder / f"{name}.safetensors"  # noqa: E731
    rows = [
        write_network(path("one"), family, rank=4, seed=1),
        write_adapters(path("dora"), family, "lora", {"dora_wd": True}),
        write_network(path("two"), family, rank=4, seed=2),
        write_factored(path("loha"), family, "loha", rank=3),
        write_adapters(path("other dora"), family, "lora", {"dora_wd": True}, seed=6),
        write_adapters(path("oft"), family, "oft", {}),
        write_factored(path("lokr"), family, "lokr", rank=1),
        write_adapters(path("ia3"), family, "ia3", {}),
    ]
    return [replace(row, te=STRENGTH, unet=STRENGTH) for row in rows]


def test_each_is_as_if_attached_by_itself(base: Path, tmp_path: Path) -> None:
    family, fused_family, alone = open_base(base), open_base(base), open_base(base)
    said: list[str] = []
    swapper, fused = Swapper(family), Swapper(fused_family, Drawing(fused_family.denoiser), said.append)
    rows = write_kinds(tmp_path, family)
    plain = answer(family)
    for row in (*rows, rows[0]):
        swapper.use([row])
        fused.use([row])
        attach_file(alone, row.file.path, STRENGTH)
        wanted = answer(alone)
        detach(alone.parts.values())
        assert torch.equal(answer(family), wanted), row.file.name
        torch.testing.assert_close(answer(fused_family), wanted, rtol=1e-4, atol=1e-4)
        assert (wanted - plain).abs().max() > 1e-3, row.file.name
    unfused = [line.split(":")[1].strip() for line in said]
    assert unfused == [
        str(row.file.path) for row in rows if row.file.name in ("dora", "other dora", "oft", "ia3")
    ]


def test_a_file_like_the_last_one_is_understood_without_its_names(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = open_base(base)
    swapper = Swapper(family)
    one, two = (write_network(tmp_path / f"{n}.safetensors", family, rank=4, seed=n) for n in (1, 2))
    done: Counter[str] = Counter()

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            done[name] += 1
            return work(*args, **more)

        return run

    describe._lay_out.cache_clear()
    monkeypatch.setattr(describe, "read_name", counted("names", describe.read_name))
    monkeypatch.setattr(Lora, "__init__", counted("adapters", Lora.__init__))
    swapper.use([one])
    first = done.copy()
    assert first["names"] >= len(load_file(one.file.path))
    assert first["adapters"] == len(load_file(one.file.path)) // 3
    swapper.use([two])
    assert done == first


def with_nan(tensors: dict[str, Any], name: str) -> None:
    tensors[f"{name}.lora_up.weight"][0, 0] = float("nan")


def with_other_shape(tensors: dict[str, Any], name: str) -> None:
    tensors[f"{name}.lora_up.weight"] = torch.zeros(3, 4)


def with_two_alphas(tensors: dict[str, Any], name: str) -> None:
    tensors[f"{name}.alpha"] = torch.ones(2)


def with_unknown_tensor(tensors: dict[str, Any], name: str) -> None:
    tensors[f"{name}.scale"] = torch.ones(1)


@pytest.mark.parametrize("spoil", [with_nan, with_other_shape, with_two_alphas, with_unknown_tensor])
@pytest.mark.parametrize("part", ["unet", "te"])
def test_a_spoilt_file_behind_a_good_one_is_refused_by_name(
    base: Path, tmp_path: Path, spoil: Callable[[dict[str, Any], str], None], part: str
) -> None:
    family = open_base(base)
    good = write_network(tmp_path / "good.safetensors", family, rank=4, seed=1)
    tensors = load_file(good.file.path)
    name = next(key.partition(".")[0] for key in tensors if key.startswith(f"lora_{part}_"))
    spoil(tensors, name)
    save_file(tensors, tmp_path / "spoilt.safetensors")
    spoilt = Loaded(NetworkFile(tmp_path / "spoilt.safetensors", "spoilt"))
    said = []
    for before in ([good], []):
        swapper = Swapper(family)
        swapper.use(before)
        with pytest.raises(NetworkProblem) as problem:
            swapper.use([spoilt])
        said.append(str(problem.value))
        assert detach(family.parts.values()) == 0, "the base by itself"
    assert said[0] == said[1]
    assert "spoilt.safetensors" in said[0]
    assert name in said[0]
