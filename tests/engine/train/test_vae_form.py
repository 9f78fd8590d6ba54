"""What a user says of a VAE: scale and shift of its latents, mirrored edges."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.models.bases import demo_base  # noqa: E402
from lorapipe_engine.settings import ModelSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.base.shelf import base_key  # noqa: E402
from lorapipe_engine.train.base.vae_form import VaeForm  # noqa: E402
from lorapipe_engine.train.data.latents import vae_key  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.families.base import Family  # noqa: E402

pytestmark = pytest.mark.torch


def opened(form: VaeForm | None = None) -> Family:
    return open_family(load_base(demo_base(), vae_form=form), max_token_length=75)


def test_latents_are_shifted_then_scaled_and_back() -> None:
    plain, changed = opened(), opened(VaeForm(0.5, -0.4))
    moments = torch.cat([torch.randn(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)], dim=1)
    latents = changed.draw_latents(moments, slice(0, 1), 1)
    torch.testing.assert_close(latents, (moments[:, :4] + 0.4) * 0.5)
    with torch.inference_mode():
        own = plain.decode(moments[:, :4] * plain.latent_scale)
        torch.testing.assert_close(changed.decode(latents), own, atol=1e-4, rtol=1e-4)
    # What is cached is neither, so the cache holds for both.
    assert vae_key(plain) == vae_key(changed)


def test_mirrored_edges_are_another_vae() -> None:
    plain, changed = opened(), opened(VaeForm(reflects=True))
    assert vae_key(plain) != vae_key(changed)
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        (one, _), (other, _) = (family.encode_images(pixels) for family in (plain, changed))
    inside = (slice(None), slice(None), slice(6, 10), slice(6, 10))
    edge = (one - other).abs()[:, :, 0].mean()
    assert edge > 2 * (one - other).abs()[inside].mean()


def test_a_queue_tells_them_apart() -> None:
    keys = {
        base_key(ModelSettings(**more), "a", torch.float32)  # type: ignore[arg-type]
        for more in (
            {},
            {"vae_custom_scale": 0.2},
            {"vae_custom_shift": 0.2},
            {"vae_reflection_padding": True},
        )
    }
    assert len(keys) == 4
