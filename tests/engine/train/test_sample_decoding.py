"""Pictures decoded in half precision: near those of float32, in range for a VAE that is not."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from lorapipe_engine.nn.fused.drawing.decoder import HalfDecoder, fits_half  # noqa: E402
from lorapipe_engine.nn.fused.drawing.unet import fuse_decoder  # noqa: E402
from lorapipe_engine.train.base.vae_form import VaeForm  # noqa: E402
from lorapipe_engine.train.sample.draw import picture_bytes  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def vae() -> Any:
    """A VAE of the usual make, small."""
    torch.manual_seed(3)
    made = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )
    return made.requires_grad_(False).eval()


def latents() -> Any:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 5


def farthest(vae: Any, half: HalfDecoder) -> int:
    with torch.inference_mode():
        some, others = (
            picture_bytes(pixels).int() for pixels in (vae.decode(latents()).sample, half.decode(latents()))
        )
    return int((some - others).abs().max())


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_is_within_1_of_float32(vae: Any, fused: bool) -> None:
    half = HalfDecoder(vae, torch.float16)
    if fused:
        fuse_decoder(half)
    assert farthest(vae, half) <= 1


def test_every_residual_block_of_a_decoder_is_fused(vae: Any) -> None:
    half = HalfDecoder(vae, torch.float16)
    fuse_decoder(half)
    by_themselves: list[str] = []
    for name, module in half.decoder.named_modules():
        if isinstance(module, torch.nn.GroupNorm) and ".norm" in name:
            module.register_forward_hook(lambda *_, name=name: by_themselves.append(name))
    with torch.inference_mode():
        half.decode(latents())
    assert not by_themselves


def test_edges_that_are_mirrored_stay_so(vae: Any) -> None:
    VaeForm(reflects=True).apply(vae)
    half = HalfDecoder(vae, torch.float16)
    fuse_decoder(half)
    assert farthest(vae, half) <= 1


def test_bf16_is_near(vae: Any) -> None:
    assert 1 <= farthest(vae, HalfDecoder(vae, torch.bfloat16)) <= 8


def test_sums_beyond_the_range_of_fp16_are_decoded(vae: Any) -> None:
    for block in vae.decoder.modules():
        if type(block).__name__ == "ResnetBlock2D":
            block.conv2.weight.data.mul_(1e5)
            block.conv1.weight.data.mul_(1e4)
    with torch.inference_mode():
        largest: list[float] = []
        handle = vae.decoder.conv_norm_out.register_forward_pre_hook(
            lambda _, given: largest.append(float(given[0].abs().max()))
        )
        vae.decode(latents())
        handle.remove()
    most = torch.finfo(torch.float16).max
    assert 2 * most < largest[0] < 16 * most
    assert farthest(vae, HalfDecoder(vae, torch.float16)) <= 1


def test_a_vae_of_another_make_is_told_apart(vae: Any) -> None:
    assert fits_half(vae)
    vae.decoder.mid_block.resnets[0].output_scale_factor = 2.0
    assert not fits_half(vae)
