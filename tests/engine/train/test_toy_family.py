"""A new family is its facts and names, how it is trained, and one row; here all of it, and the real command line.

The toy is unlike Stable Diffusion: a transformer on patches of 16 latent channels, and a text encoder that reads
letters, 20 of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.families import FAMILIES  # noqa: E402
from lorapipe_engine.models.family import Family as Facts  # noqa: E402
from lorapipe_engine.models.family import Recognised, Shapes  # noqa: E402
from lorapipe_engine.networks.describe import describe_network  # noqa: E402
from lorapipe_engine.train.base.model import BaseModel  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402
from lorapipe_engine.train.families.text import Conditioning, TextEncoder, Tokens  # noqa: E402
from support.called import status_of  # noqa: E402

pytestmark = pytest.mark.torch

LETTERS, WIDTH, CHANNELS, FACTOR = 20, 24, 16, 8

# ------------------------------------------------------------------------------------------ facts and names


def recognise(keys: Shapes) -> Recognised | None:
    if any(key.startswith("net.patch.") for key in keys):
        return Recognised("checkpoint", "toy")
    if any(key.startswith("lora_unet_blocks_") for key in keys):
        return Recognised("lora", "toy")
    return None


FACTS = Facts(
    name="toy",
    title="Toy",
    checkpoint_prefixes={"te1": "reader.", "dit": "net.", "vae": "codec."},
    lora_prefixes={"te1": "lora_te", "dit": "lora_unet"},
    targets={"te1": ("Reader",), "dit": ("Block",)},
    denoiser="dit",
    recognise=recognise,
    context_width=WIDTH,
    latent_scale=1.0,
    resolution=64,
    rank=4,
    base_version="toy",
    architecture="toy",
    trainer=f"{__name__}:Toy",
    loader=f"{__name__}:load",
)

# ------------------------------------------------------------------------------------------ how it is trained


class Reader(nn.Module):
    """Letters to states."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.letters(ids)))


class Block(nn.Module):
    """Patches and text, mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(WIDTH, WIDTH)
        self.text = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return x + torch.tanh(self.own(x) + self.text(text).mean(dim=1, keepdim=True))


class Net(nn.Module):
    """The denoiser: latents (B, 16, h, w), a time and text states to an answer of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(CHANNELS, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(WIDTH, CHANNELS)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor) -> Tensor:
        x = self.patch(latents.flatten(2).mT) + self.time(times.to(latents)[:, None] / 1000)[:, None]
        for block in self.blocks:
            x = block(x, text)
        answer: Tensor = self.out(x).mT.reshape(latents.shape)
        return answer


class Codec(nn.Module):
    """Pictures to latents and back."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, CHANNELS, FACTOR, stride=FACTOR)
        self.up = nn.ConvTranspose2d(CHANNELS, 3, FACTOR, stride=FACTOR)


class LetterReader(TextEncoder):
    """The first letters of a caption, one token each. Weights in captions are read as letters."""

    limit = LETTERS

    def tokenize(self, texts: Sequence[str], *, weighted: bool = False) -> Tokens:
        rows = [[ord(letter) % 128 for letter in text[:LETTERS].ljust(LETTERS)] for text in texts]
        return Tokens((torch.tensor(rows, device=self.device),))

    def count(self, text: str) -> int:
        return len(text)

    def encode(self, tokens: Tokens) -> Conditioning:
        self.move_to_device()
        return Conditioning(self.modules["te1"](tokens.ids[0].to(self.device)))


class Toy(Family):
    """The toy on a device."""

    name = "toy"
    latent_scale = 2.0
    latent_channels = CHANNELS
    latent_factor = FACTOR

    def make_text(self, **settings: Any) -> TextEncoder:
        place = {key: settings[key] for key in ("device", "dtype", "waiting")}
        return LetterReader({"te1": self.base.text_encoders[0]}, **place)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.vae.down(pixels.to(self.device, self.vae_dtype)).float()
        return mean, torch.full_like(mean, 0.1)

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.up((latents / self.latent_scale).to(self.vae_dtype)).float()
        return pixels

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, geometry: Tensor | None = None
    ) -> Tensor:
        assert geometry is None
        states = conditioning.hidden.to(self.device, self.dtype)
        answer: Tensor = self.denoiser(noisy.to(self.device, self.dtype), timesteps.to(self.device), states)
        return answer.float()


def load(source: object, path: Path, weights: Any, *, dtype: Any, **others: Any) -> BaseModel:
    """The modules in an open checkpoint."""
    if any(value for value in others.values()):
        raise InputError(f"{source}: a toy has no use for {', '.join(others)}")
    modules = {"net.": Net(), "codec.": Codec(), "reader.": Reader()}
    for prefix, module in modules.items():
        names = [key for key in weights.shapes if key.startswith(prefix)]
        module.load_state_dict(
            {
                key.removeprefix(prefix): weights.load(key, 0, weights.shapes[key][0]).to(dtype)
                for key in names
            }
        )
    return BaseModel(
        family="toy",
        denoiser=modules["net."],
        vae=modules["codec."],
        text_encoders=(modules["reader."],),
        tokenizers=(),
        prediction_type="epsilon",
        source=str(source),
        path=path,
    )


# ------------------------------------------------------------------------------------------ the command line


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, FACTS.name, FACTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    parts: Iterator[tuple[str, nn.Module]] = iter(
        [("net.", Net()), ("codec.", Codec()), ("reader.", Reader())]
    )
    tensors = {
        prefix + name: value for prefix, module in parts for name, value in module.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, root / "base.safetensors")
    draw_concept(root / "pictures", "mirelune", pictures=4, repeats=1, seed=1)
    (root / "prompts.txt").write_text("a red cat --n dog --w 64 --h 64 --s 3 --d 1\n")
    return root


def train(place: Path, out: Path, *more: object) -> int:
    words = (
        "--resolution 64 --device cpu --output_name net --quiet --max_train_steps 2 --save_precision float"
    )
    words += f" --base {place}/base.safetensors --train_data_dir {place}/pictures --output_dir {out}"
    return status_of(lora_train, *words.split(), *more)


MODULES = ["lora_te_mix", *(f"lora_unet_blocks_{n}_{name}" for n in (0, 1) for name in ("own", "text"))]


def test_a_family_trains_draws_and_saves(place: Path, tmp_path: Path) -> None:
    draws = ("--sample_prompts", place / "prompts.txt", "--sample_every_n_steps", 2, "--trace_steps", "0,1")
    assert train(place, tmp_path, *draws, "--learning_rate", 1e-2) == 0
    network = load_file(tmp_path / "net.safetensors")
    assert sorted({key.partition(".")[0] for key in network}) == sorted(MODULES)
    assert network["lora_unet_blocks_0_own.lora_down.weight"].shape == (4, WIDTH)
    assert all(network[f"{name}.lora_up.weight"].abs().max() > 0 for name in MODULES)
    with open_tensors(tmp_path / "net.safetensors") as file:
        assert file.metadata["ss_base_model_version"] == "toy"
        assert file.metadata["modelspec.architecture"] == "toy/lora"
        assert file.metadata["ss_max_token_length"] == str(LETTERS)
        assert describe_network(file).family == "toy"
    first = load_file(tmp_path / "trace/step-000000.safetensors")
    assert first["0.latents"].shape == (1, CHANNELS, 8, 8)
    assert first["0.text_states"].shape == (1, LETTERS, WIDTH)
    assert len(list((tmp_path / "sample").glob("*.png"))) == 1
    rows = [json.loads(line) for line in (tmp_path / "net.metrics.jsonl").read_text().splitlines()]
    assert {"lr/dit", "lr/textencoder"} <= rows[0].keys()


def test_its_text_can_be_encoded_before(place: Path, tmp_path: Path) -> None:
    cached = (
        "--network_train_unet_only",
        "--cache_text_encoder_outputs_to_disk",
        "--cache_dir",
        tmp_path / "c",
    )
    networks = []
    for name, more in (("plain", cached[:1]), ("cached", cached), ("again", cached)):
        assert train(place, tmp_path / name, *more) == 0
        networks.append(load_file(tmp_path / name / "net.safetensors"))
    assert sorted({key.partition(".")[0] for key in networks[0]}) == sorted(MODULES[1:])
    for other in networks[1:]:
        for key, tensor in networks[0].items():
            torch.testing.assert_close(other[key], tensor)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        (("--vae", "demo.safetensors"), "toy has no use for"),
        (("--vram", "8"), "the memory of Toy is not known"),
        (("--network_args", "block_dims=" + ",".join("4" * 25)), "by block cannot be had for Toy"),
    ],
)
def test_what_it_has_no_use_for_is_refused(
    option: tuple[str, str], word: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo.safetensors").write_bytes(b"")
    given = (option[0], str(tmp_path / option[1])) if option[0] == "--vae" else option
    assert train(place, tmp_path / "out", *given) == 2
    assert word in capsys.readouterr().err
