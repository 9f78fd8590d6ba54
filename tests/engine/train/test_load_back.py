"""Networks for SD 2.x and SDXL, trained on tiny bases, are loaded by diffusers and do there what they do here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.network.files.apply import attach_file  # noqa: E402
from support import tiny  # noqa: E402
from support.diffusers_reader import load_into, pipeline  # noqa: E402

HERE = Path(__file__).parent
GEOMETRY = torch.tensor([[96.0, 64.0, 8.0, 0.0, 64.0, 64.0]])
OPTIONS = (
    "--resolution 64 --max_token_length 75 --train_batch_size 2 --max_train_steps 3 --network_dim 4 --network_alpha 2 "
    # A high rate, so that a wrong scale or a swapped module shows.
    "--learning_rate 0.05 --lr_scheduler constant --save_precision float --device cpu --quiet --output_name net"
)


def answers(
    unet: Any, encoders: tuple[Any, ...], ids: Any, *, sdxl: bool
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Text states of each encoder and the UNet's prediction, both by the modules themselves."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        told = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        states = [row.hidden_states[-2] for row in told]
        added = {"text_embeds": told[-1].text_embeds, "time_ids": GEOMETRY} if sdxl else None
        hidden = torch.cat(states, dim=-1)
        return states, unet(latents, torch.tensor([500]), hidden, added_cond_kwargs=added).sample


CONV = ["--network_args", "conv_dim=2", "conv_alpha=1"]


@pytest.mark.parametrize(
    ("name", "v", "more"),
    [("sd2", True, []), ("sd2", False, CONV), ("sdxl", False, []), ("sdxl", False, CONV)],
    ids=["sd2-v", "sd2-conv", "sdxl", "sdxl-conv"],
)
def test_diffusers_has_the_same_network(
    name: str, v: bool, more: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # diffusers counts SDXL's blocks by their layers, so there have to be as many as in the real one.
    base = tiny.save_folder(tiny.build(name, layers=2 if name == "sdxl" else 1), tmp_path / "base")
    draw_concept(tmp_path / "data", "mirelune", pictures=4, repeats=1, seed=1)
    words = ["--base", base, "--train_data_dir", tmp_path / "data", "--output_dir", tmp_path / "out"]
    words += ["--v_parameterization"] if v else []
    with pytest.raises(SystemExit) as stop:
        lora_train.main([*map(str, words), *OPTIONS.split(), *more])
    assert stop.value.code == 0

    path = tmp_path / "out" / "net.safetensors"
    with open_tensors(path) as file:
        modules = sum(key.endswith(".alpha") for key in file.tensors)
        version = file.metadata["ss_base_model_version"]
    assert version == {"sd2": "sd_v2_v" if v else "sd_v2", "sdxl": "sdxl_base_v1-0"}[name]
    opened = load_base(base)
    theirs = pipeline(opened.denoiser, opened.vae, opened.text_encoders)
    encoders = [theirs.text_encoder, *([theirs.text_encoder_2] if name == "sdxl" else [])]
    ids = torch.tensor([[598, *range(300, 360), *[599] * 16]])
    plain_text, plain = answers(theirs.unet, tuple(encoders), ids, sdxl=name == "sdxl")
    load_into(theirs, path, caplog)
    adapted = sum(
        place.rpartition(".")[2] == "lora_A"
        for root in (theirs.unet, *encoders)
        for place, _ in root.named_modules()
    )
    assert adapted == modules
    their_text, their_noise = answers(theirs.unet, tuple(encoders), ids, sdxl=name == "sdxl")

    family = open_family(load_base(base), max_token_length=75)
    attach_file(family, path)
    our_text, our_noise = answers(
        family.denoiser, tuple(family.text.modules.values()), ids, sdxl=name == "sdxl"
    )
    for one, other, before in zip(their_text, our_text, plain_text, strict=True):
        assert (one - before).abs().max() > 0.01  # the network does change it
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    assert (their_noise - plain).abs().max() > 0.01
    torch.testing.assert_close(their_noise, our_noise, rtol=0, atol=2e-4)
