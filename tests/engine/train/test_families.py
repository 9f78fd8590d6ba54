"""What the training loop sees of a family: target names and shapes, text, pictures, predictions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.base import Size  # noqa: E402
from lorapipe_engine.train.base.load import BaseModel  # noqa: E402
from lorapipe_engine.train.base.tokenizers import open_tokenizer  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.text import AskedPrompt  # noqa: E402
from support.full_bases import SDXL_UNET  # noqa: E402
from support.tiny import VOCABULARY, Tiny, build, write_tokenizer  # noqa: E402

DATA = Path(__file__).parents[2] / "data" / "train"
GOLDEN: dict[str, Any] = json.loads(gzip.decompress((DATA / "c_keys.json.gz").read_bytes()))
EOS = VOCABULARY - 1

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
REAL = {
    "sd15": ("sd1", {"cross_attention_dim": 768}, (CLIP_L,)),
    "sd21": ("sd2", {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}, (CLIP_H,)),
    "sdxl": ("sdxl", SDXL_UNET, (CLIP_L, CLIP_G)),
}


def real_family(name: str, linear: bool = False) -> Any:
    """A model of the published architecture on the meta device: shapes without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    family, unet, texts = REAL[name]
    with torch.device("meta"):
        base = BaseModel(
            family=family,
            denoiser=UNet2DConditionModel(**{**unet, **({"use_linear_projection": True} if linear else {})}),
            vae=AutoencoderKL(),
            text_encoders=tuple(
                (CLIPTextModel, CLIPTextModelWithProjection)[index](CLIPTextConfig(**text))
                for index, text in enumerate(texts)
            ),
            tokenizers=(),
            prediction_type=None,
            source=name,
            path=Path(name),
        )
    return open_family(base, device="meta")


@pytest.mark.parametrize("case", GOLDEN)
def test_keys_and_shapes_of_the_published_models_equal_the_reference(case: str) -> None:
    want = GOLDEN[case]
    conv = int(want["network_args"].get("conv_dim", 0))
    family = real_family(want["arch"].partition("_")[0], linear="linear" in case)
    found: dict[str, list[int]] = {}
    counts = {"unet": 0, "text": 0}
    for part, path, module in family.target_modules(conv=bool(conv)):
        kernel = max(getattr(module, "kernel_size", (1,)))
        size = Size(conv if kernel > 1 else want["network_dim"], 1.0)
        down, up = Lora.shapes(tuple(module.weight.shape), size, {}).values()
        name = family.lora_name(part, path)
        found[f"{name}.lora_down.weight"] = list(down)
        found[f"{name}.lora_up.weight"] = list(up)
        found[f"{name}.alpha"] = []
        counts["unet" if part == "unet" else "text"] += 1
    assert sorted(found) == sorted(want["keys"])
    assert found == want["keys"]
    assert counts == {"unet": want["modules_unet"], "text": want["modules_text_encoder"]}


# ------------------------------------------------------------ tiny models


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_tokenizer(write_tokenizer(tmp_path_factory.mktemp("vocabulary")))


@pytest.fixture(scope="module")
def models() -> dict[str, Tiny]:
    return {name: build(name) for name in ("sd1", "sd2", "sdxl")}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def open_tiny(tiny: Tiny, vocabulary: Any, **settings: Any) -> Any:
    base = BaseModel(
        family=tiny.family,
        denoiser=tiny.unet,
        vae=tiny.vae,
        text_encoders=tiny.text_encoders,
        tokenizers=(vocabulary,) * len(tiny.text_encoders),
        prediction_type="epsilon",
        source="tiny",
        path=Path("tiny"),
    )
    return open_family(base, **settings)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_parts_come_in_training_order(name: str, models: dict[str, Tiny], vocabulary: Any) -> None:
    family = open_tiny(models[name], vocabulary)
    parts = ("te1", "te2", "unet") if name == "sdxl" else ("te1", "unet")
    assert family.train_parts == parts
    seen = [part for part, _, _ in family.target_modules(conv=True)]
    assert tuple(dict.fromkeys(seen)) == parts
    assert seen == sorted(seen)  # each part in one run
    names = [family.lora_name(part, path) for part, path, _ in family.target_modules(conv=True)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "pads"), [("sd1", [EOS]), ("sd2", [0]), ("sdxl", [EOS, 0])])
def test_each_encoder_is_padded_its_own_way(
    name: str, pads: list[int], models: dict[str, Tiny], vocabulary: Any
) -> None:
    family = open_tiny(models[name], vocabulary, max_token_length=150)
    ids = family.text.tokenize(["cat", "cat " * 200]).ids
    assert [row[0, 0, -1].item() for row in ids] == pads
    for row in ids:
        assert row.shape == (2, 2, 77)
        assert row[0, 0, :3].tolist() == [VOCABULARY - 2, vocabulary.encode("cat")[0], EOS]
        assert (row[1, :, 76] == EOS).all()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_shapes_and_scales(name: str, models: dict[str, Tiny], vocabulary: Any) -> None:
    family = open_tiny(models[name], vocabulary, max_token_length=225)
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, deviation = family.encode_images(pixels)
    size = family.latent_size(48, 32)
    assert mean.shape == deviation.shape == (2, 4, *size) == (2, 4, 8, 12)
    assert (deviation > 0).all()
    assert family.latent_scale == (0.13025 if name == "sdxl" else 0.18215)
    plain = models[name].vae.decode(mean).sample
    assert torch.allclose(family.decode(mean * family.latent_scale), plain, atol=1e-5)
    conditioning = family.text.encode(family.text.tokenize(["red cat", ""]))
    width = sum(encoder.config.hidden_size for encoder in family.text.modules.values())
    assert conditioning.hidden.shape == (2, 227, width)
    geometry = family.plain_geometry(2, 48, 32)
    out = family.predict(mean, torch.tensor([3, 700]), conditioning, geometry)
    assert out.shape == mean.shape
    assert out.dtype == torch.float32


def test_half_precision_takes_and_gives_float32(models: dict[str, Tiny], vocabulary: Any) -> None:
    plain = open_tiny(build("sd1"), vocabulary, max_token_length=75)
    half = open_tiny(
        build("sd1"), vocabulary, max_token_length=75, dtype=torch.bfloat16, vae_dtype=torch.float32
    )
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    latents, steps = torch.randn(1, 4, 8, 8), torch.tensor([10])
    outs = [f.predict(latents, steps, f.text.encode(f.text.tokenize(["cat"]))) for f in (plain, half)]
    assert outs[1].dtype == torch.float32
    assert torch.allclose(outs[0], outs[1], atol=0.1)
    assert not torch.equal(outs[0], outs[1])


def test_short_captions_encode_as_diffusers_does(models: dict[str, Tiny], vocabulary: Any) -> None:
    """One chunk, last layer: what a pipeline's own text encoding gives."""
    for name in ("sd1", "sd2"):
        family = open_tiny(models[name], vocabulary, max_token_length=75)
        tokens = family.text.tokenize(["red cat"])
        want = models[name].text_encoders[0](tokens.ids[0][:, 0]).last_hidden_state
        assert torch.equal(family.text.encode(tokens).hidden, want)
        skipped = open_tiny(models[name], vocabulary, max_token_length=75, clip_skip=2).text.encode(tokens)
        assert not torch.allclose(skipped.hidden, want)
    # clip_skip means nothing here
    family = open_tiny(models["sdxl"], vocabulary, max_token_length=75, clip_skip=7)
    tokens = family.text.tokenize(["red cat"])
    one, two = (
        encoder(row[:, 0], output_hidden_states=True)
        for encoder, row in zip(models["sdxl"].text_encoders, tokens.ids, strict=True)
    )
    found = family.text.encode(tokens)
    assert torch.equal(found.hidden, torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1))
    assert torch.allclose(found.pooled, two.text_embeds, atol=1e-6)


def test_weights_scale_the_states_of_their_tokens(models: dict[str, Tiny], vocabulary: Any) -> None:
    for name in ("sd1", "sdxl"):
        family = open_tiny(models[name], vocabulary, max_token_length=75)
        marked, bare = (
            family.text.tokenize(["red (cat:1.5)"], weighted=True),
            family.text.tokenize(["red cat"]),
        )
        assert all(torch.equal(a, b) for a, b in zip(marked.ids, bare.ids, strict=True))
        plain, weighted = family.text.encode(bare), family.text.encode(marked)
        factor = (weighted.hidden / plain.hidden)[0].mean(-1)
        assert factor[:5].tolist() == pytest.approx([1, 1, 1.5, 1, 1], abs=1e-4)
        assert name == "sd1" or torch.equal(plain.pooled, weighted.pooled)


def test_sdxl_sees_the_geometry(models: dict[str, Tiny], vocabulary: Any) -> None:
    family = open_tiny(models["sdxl"], vocabulary, max_token_length=75)
    assert family.plain_geometry(2, 48, 32).tolist() == [[32, 48, 0, 0, 32, 48]] * 2
    conditioning = family.text.encode(family.text.tokenize(["cat"]))
    latents, steps = torch.randn(1, 4, 8, 8), torch.tensor([10])
    cropped = torch.tensor([[32.0, 48, 8, 0, 32, 48]])
    plain = family.predict(latents, steps, conditioning, family.plain_geometry(1, 48, 32))
    assert not torch.allclose(plain, family.predict(latents, steps, conditioning, cropped))
    with pytest.raises(ConfigError, match="geometry"):
        family.predict(latents, steps, conditioning)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_gradients_reach_the_text_encoder_with_and_without_checkpointing(name: str, vocabulary: Any) -> None:
    kept, recomputed = (text_gradients(name, vocabulary, checkpointed) for checkpointed in (False, True))
    assert len(kept) == (2 if name == "sdxl" else 1)
    for one, other in zip(kept, recomputed, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-9)


def text_gradients(name: str, vocabulary: Any, checkpointed: bool) -> Any:
    """Gradients of a loss on the UNet's answer with respect to a projection of each text encoder."""
    torch.manual_seed(1)
    latents = torch.randn(1, 4, 8, 8)
    family = open_tiny(build(name), vocabulary, max_token_length=150)
    assert not any(p.requires_grad for module in family.parts.values() for p in module.parameters())
    if checkpointed:
        family.checkpoint_activations()
    weights = [
        module.weight.requires_grad_(True)
        for _, path, module in family.target_modules()
        if path.endswith("layers.1.self_attn.q_proj")
    ]
    with torch.enable_grad():
        conditioning = family.text.encode(family.text.tokenize(["red cat"]))
        out = family.predict(latents, torch.tensor([10]), conditioning, family.plain_geometry(1, 32, 32))
        return torch.autograd.grad(out.square().mean(), weights)


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for a GPU: values read back, or shapes that depend on them."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_nothing_in_a_step_waits_for_the_device(name: str, models: dict[str, Tiny], vocabulary: Any) -> None:
    family = open_tiny(models[name], vocabulary, max_token_length=150, clip_skip=2)
    tokens, latents, steps = family.text.tokenize(["cat"]), torch.randn(1, 4, 8, 8), torch.tensor([10])
    geometry = family.plain_geometry(1, 32, 32)
    with NoWaiting():
        conditioning = family.text.encode(tokens)
        family.predict(latents, steps, conditioning, geometry)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        tokens.ids[0].max().item()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_prompts_are_encoded_together_as_each_alone(
    name: str, models: dict[str, Tiny], vocabulary: Any
) -> None:
    """Of other lengths, with weights, which keep each prompt's own mean; an empty negative one of SDXL is nothing."""
    text = open_tiny(models[name], vocabulary).text
    asked = [
        AskedPrompt("(red:1.4) hair, 1girl BREAK a (dog:0.3)"),
        AskedPrompt("", is_negative=True),
        AskedPrompt("cat"),
        AskedPrompt("night " * 80, is_negative=True),
        AskedPrompt(""),
    ]
    together = text.encode_prompts(asked)
    for prompt, states in zip(asked, together, strict=True):
        (alone,) = text.encode_prompts([prompt])
        for key, tensor in alone.named().items():
            torch.testing.assert_close(states.named()[key], tensor, rtol=1e-5, atol=1e-5)
    assert [states.hidden.shape[1] // 77 for states in together[:4]] == [2, 1, 1, 2]
    assert bool((together[1].hidden == 0).all()) == (name == "sdxl")
    assert bool(together[4].hidden.any())
