"""Other programs' own loaders on files that the tools wrote: the same change in every layer, nothing passed over."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from lorapipe_engine.delta import dense_delta  # noqa: E402
from lorapipe_engine.files.picklefile import open_weights  # noqa: E402
from lorapipe_engine.files.tensorfile import write_tensors  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402
from lorapipe_engine.networks.layers import layer_of  # noqa: E402
from lorapipe_engine.networks.read import read_module  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from support import tiny  # noqa: E402
from support.commands import run  # noqa: E402

PARTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
Changes = dict[tuple[str, str], NDArray[Any]]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A tiny base as a folder, and a network in kohya's names on all its layers, of mixed ranks and alphas."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    # diffusers counts blocks by their layers, so there have to be as many as in the real model.
    base = tiny.save_folder(tiny.build(name, layers=2), folder / "base")
    family = open_family(load_base(base), max_token_length=75)
    draw, numbers = random.Random(3), np.random.default_rng(3)
    tensors: dict[str, NDArray[Any]] = {}
    for part, path, module in family.target_modules(conv=True):
        key, rank = family.lora_name(part, path), draw.randint(1, 4)
        out, inside, *kernel = module.weight.shape
        tensors[f"{key}.lora_down.weight"] = numbers.standard_normal((rank, inside, *kernel))
        tensors[f"{key}.lora_up.weight"] = numbers.standard_normal((out, rank, *(1 for _ in kernel)))
        tensors[f"{key}.alpha"] = np.asarray(draw.choice([1.0, 3.0, 6.0]))
    write_tensors(
        folder / "mixed.safetensors", {key: value.astype(np.float32) for key, value in tensors.items()}
    )
    return name, base, folder / "mixed.safetensors"


def changes_of(path: Path) -> Changes:
    with open_weights(path) as file:
        found = {}
        for module in describe_network(file).modules.values():
            layer = layer_of(module.name)
            change = dense_delta(read_module(file, module), name=module.name).weight
            assert layer is not None
            assert change is not None
            found[tuple(layer)] = change.reshape(len(change), -1)
        return found


def pipeline(base: Path, name: str) -> Any:
    modules = load_base(base)
    common: dict[str, Any] = {
        "vae": modules.vae,
        "unet": modules.denoiser,
        "text_encoder": modules.text_encoders[0],
        "tokenizer": None,
        "scheduler": diffusers.DDIMScheduler(),
    }
    if name == "sdxl":
        more = {"text_encoder_2": modules.text_encoders[1], "tokenizer_2": None}
        return diffusers.StableDiffusionXLPipeline(**common, **more)
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**common, **more)


def adapted(part: str, root: Any) -> Iterator[tuple[tuple[str, str], NDArray[Any]]]:
    """Every layer that an adapter of PEFT's changes, and its change."""
    for path, module in root.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and module.active_adapters:
            path = path.removeprefix("base_model.model.")
            if part == "te1" and not path.startswith("text_model."):
                path = f"text_model.{path}"
            (name,) = module.lora_A.keys()
            yield (
                (part, path),
                module.get_delta_weight(name).detach().double().reshape(len(module.weight), -1).numpy(),
            )


def compare(found: Changes, wanted: Changes) -> None:
    assert found.keys() == wanted.keys()
    for layer, change in wanted.items():
        assert np.linalg.norm(found[layer] - change) <= 1e-3 * np.linalg.norm(change), layer


def made(what: str, source: Path, tmp_path: Path) -> Path:
    """The file that a tool makes of the network, as its user would have it."""
    output = tmp_path / f"{what}.safetensors"
    commands: dict[str, tuple[str, list[Any]]] = {
        "kohya": ("lora-convert", [source, "--to", "kohya"]),
        "diffusers": ("lora-convert", [source, "--to", "diffusers"]),
        "diffusers-old": ("lora-convert", [source, "--to", "diffusers-old"]),
        "resized": (
            "lora-resize",
            [source, "--new-rank", 3, "--dynamic-method", "sv_fro", "--dynamic-param", 0.8],
        ),
        "added": ("lora-merge", ["--networks", f"{source}:0.7", f"{source}:0.2"]),
        "added-svd": (
            "lora-merge",
            [
                *("--networks", source, source, "--mode", "svd", "--new-rank", 3),
                *("--dynamic-method", "sv_fro", "--dynamic-param", 0.8),
            ],
        ),
    }
    command, words = commands[what]
    done = run(command, *words, "-o", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.parametrize("what", ["kohya", "diffusers", "diffusers-old", "resized", "added", "added-svd"])
def test_diffusers(
    what: str, model: tuple[str, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, base, source = model
    path = made(what, source, tmp_path)
    pipe = pipeline(base, name)
    diffusers.utils.logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    finally:
        diffusers.utils.logging.disable_propagation()
    said = [row.getMessage() for row in caplog.records]
    assert not [line for line in said if "unexpected" in line.lower() or "missing" in line.lower()]
    roots = {part: getattr(pipe, attribute, None) for part, attribute in PARTS.items()}
    found = {
        layer: change
        for part, root in roots.items()
        if root is not None
        for layer, change in adapted(part, root)
    }
    compare(found, changes_of(path))
    if what in ("kohya", "diffusers", "diffusers-old"):
        compare(found, changes_of(source))


def test_peft(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, base, source = model
    assert run("lora-convert", source, "--to", "peft", "-o", tmp_path / "adapters").returncode == 0
    pipe, wanted = pipeline(base, name), changes_of(source)
    found: Changes = {}
    for part, attribute in PARTS.items():
        if (root := getattr(pipe, attribute, None)) is not None:
            wrapped = peft.PeftModel.from_pretrained(root, tmp_path / "adapters" / attribute)
            found |= dict(adapted(part, wrapped))
    compare(found, wanted)
