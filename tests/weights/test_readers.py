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
pytest.importorskip("diffusers")
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
from support.diffusers_reader import load_into, pipeline  # noqa: E402

VARIANTS = Path(__file__).parents[1] / "data" / "formats" / "variants"
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


def pipeline_of(base: Path) -> Any:
    modules = load_base(base)
    return pipeline(modules.denoiser, modules.vae, modules.text_encoders)


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


def made(what: str, model: tuple[str, Path, Path]) -> Path:
    """The file that a tool makes of the network, as its user would have it; made once."""
    _, base, source = model
    folder = source.parent
    output = folder / what / "network.safetensors"
    if output.exists():
        return output
    output.parent.mkdir()
    dynamic = ("--new-rank", 3, "--dynamic-method", "sv_fro", "--dynamic-param", 0.8)
    commands: dict[str, list[Any]] = {
        "kohya": ["lora-convert", source, "--to", "kohya"],
        "diffusers": ["lora-convert", source, "--to", "diffusers"],
        "diffusers-old": ["lora-convert", source, "--to", "diffusers-old"],
        "resized": ["lora-resize", source, *dynamic],
        "added": ["lora-merge", "--networks", f"{source}:0.7", f"{source}:0.2"],
        "added-svd": ["lora-merge", "--networks", source, source, "--mode", "svd", *dynamic],
    }
    if what == "extracted":
        words = ["lora-merge", base, source, "--save-precision", "fp32", "-o", folder / "merged"]
        assert run(*words).returncode == 0
        ranks = ("--dim", 4, "--conv-dim", 4, "--save-precision", "float")
        commands[what] = ["lora-extract", folder / "merged", base, *ranks]
    if what == "averaged":  # of a save at 0.5 of the network, and one at its whole strength
        saves = [folder / f"run-00000{number}.safetensors" for number in (1, 2)]
        for save, ratio in zip(saves, (0.5, 1), strict=True):
            assert run("lora-merge", "--networks", f"{source}:{ratio}", "-o", save).returncode == 0
        commands[what] = ["lora-merge", "--networks", *saves, "--average", "ema:0.8"]
    done = run(*commands[what], "-o", output)
    assert done.returncode == 0, done.stderr
    return output


# What a file is of the network that it was made of: its change, times this.
STRENGTHS = {"kohya": 1.0, "diffusers": 1.0, "diffusers-old": 1.0, "extracted": 1.0, "added": 0.9}
STRENGTHS["averaged"] = 0.8 * 0.5 + 0.2


def compare_with_source(what: str, found: Changes, source: Path) -> None:
    if (strength := STRENGTHS.get(what)) is not None:
        compare(found, {layer: strength * change for layer, change in changes_of(source).items()})


@pytest.mark.parametrize(
    "what",
    ["kohya", "diffusers", "diffusers-old", "resized", "added", "added-svd", "extracted", "averaged"],
)
def test_diffusers(what: str, model: tuple[str, Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    _, base, source = model
    path = made(what, model)
    pipe = pipeline_of(base)
    load_into(pipe, path, caplog)
    roots = {part: getattr(pipe, attribute, None) for part, attribute in PARTS.items()}
    found = {
        layer: change
        for part, root in roots.items()
        if root is not None
        for layer, change in adapted(part, root)
    }
    compare(found, changes_of(path))
    compare_with_source(what, found, source)


def test_peft(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, base, source = model
    assert run("lora-convert", source, "--to", "peft", "-o", tmp_path / "adapters").returncode == 0
    pipe, wanted = pipeline_of(base), changes_of(source)
    found: Changes = {}
    for part, attribute in PARTS.items():
        if (root := getattr(pipe, attribute, None)) is not None:
            wrapped = peft.PeftModel.from_pretrained(root, tmp_path / "adapters" / attribute)
            found |= dict(adapted(part, wrapped))
    compare(found, wanted)


def by_lycoris(path: Path, layers: dict[str, Any]) -> dict[str, Any]:
    """LyCORIS' own modules of a file in kohya's names, each built for its layer; none of its tensors left over."""
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed (requirements-dev.txt has it)")
    from lycoris.modules import get_module, make_module
    from safetensors.torch import load_file

    tensors = load_file(path)
    names = dict.fromkeys(key.split(".")[0] for key in tensors)
    assert names.keys() <= layers.keys()
    found = {}
    for name in names:
        kind, parameters = get_module(tensors, name)
        assert kind is not None, name
        found[name] = make_module(kind, parameters, name, layers[name])
        assert found[name] is not None, name
    return found


@pytest.mark.parametrize("what", ["kohya", "resized", "added", "added-svd", "extracted", "averaged"])
def test_lycoris(what: str, model: tuple[str, Path, Path]) -> None:
    """Its reading of the file, module by module, on the layers of the base."""
    _, base, source = model
    family = open_family(load_base(base), max_token_length=75)
    layers = {
        family.lora_name(part, path): (part, path, module)
        for part, path, module in family.target_modules(conv=True)
    }
    path = made(what, model)
    modules = by_lycoris(path, {name: module for name, (_, _, module) in layers.items()})
    found: Changes = {}
    for name, module in modules.items():
        part, layer, _ = layers[name]
        change, _ = module.get_diff_weight(1.0)
        found[part, layer] = change.detach().double().reshape(len(change), -1).numpy()
    compare(found, changes_of(path))
    compare_with_source(what, found, source)


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ("dora", ()),
        ("loha", ()),
        ("loha", ("--to-lora",)),
        ("loha_effective_conv", ()),
        # Its LoKr takes no first factor larger than the second, nor factors of half a layer's rank, as here.
        ("lokr", ("--to-lora",)),
        ("lokr_both_effective", ("--to-lora",)),
        ("rslora", ()),
    ],
)
def test_lycoris_reads_pefts_algorithms(variant: str, more: tuple[str, ...], tmp_path: Path) -> None:
    """A converted adapter of PEFT's does in LyCORIS what PEFT's own merge did, in double precision."""
    folder, output = VARIANTS / f"peft_{variant}", tmp_path / "out.safetensors"
    done = run("lora-convert", folder, "--to", "kohya", "--verify", *more, "-o", output)
    assert done.returncode == 0, done.stderr
    with (
        open_weights(VARIANTS / "base.safetensors") as base,
        open_weights(folder / "merged_float64.safetensors") as theirs,
    ):
        weights = {key: base.read(key).astype(np.float64) for key in base.tensors}
        merged = {key: theirs.read(key) for key in theirs.tensors}
    layers = {flat_name(key): layer_with(weight) for key, weight in weights.items()}
    modules = by_lycoris(output, layers)
    assert modules
    for key, weight in weights.items():
        if (module := modules.get(flat_name(key))) is None:
            continue
        before, after = layers[flat_name(key)], layer_with(merged[key])
        values = torch.randn(64, weight.shape[1], *([5, 5] * (weight.ndim > 2)), dtype=torch.float64)
        plain = before(values)
        module.double().apply_to()  # by its forward: its merge multiplies LoHa by alpha / rank twice
        change, wanted = before(values) - plain, after(values) - plain
        assert (change - wanted).norm() <= 1e-3 * wanted.norm(), key


def flat_name(key: str) -> str:
    return f"lora_{key.removesuffix('.weight').replace('.', '_')}"


def layer_with(weight: NDArray[Any]) -> Any:
    """A layer of that weight: a convolution or a linear one."""
    rows, columns, *kernel = weight.shape
    layer: Any = torch.nn.Linear(columns, rows, bias=False)
    if kernel:
        layer = torch.nn.Conv2d(columns, rows, tuple(kernel), bias=False)
    layer.double().weight.data = torch.from_numpy(weight)
    return layer
