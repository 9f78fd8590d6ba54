"""Sliders: a network out of pairs of prompts, without a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.datasets.pairs import read_pairs  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.bases import demo_base  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from support.called import status_of  # noqa: E402

pytestmark = pytest.mark.torch
SMILE = """
steps = 3
[[pairs]]
target = "1girl, solo"
positive = "1girl, solo, smile"
negative = "1girl, solo, serious"
strength = 2.0
[[pairs]]
target = "1boy"
positive = "1boy, smile"
"""


def write(folder: Path, text: str = SMILE) -> Path:
    path = folder / "pairs.toml"
    path.write_text(text)
    return path


def train(pairs: Path, out: Path, *more: object) -> int:
    words = "--base demo --resolution 32 --device cpu --network_dim 2 --max_token_length 75 --output_name net --quiet"
    words += " --network_train_unet_only --save_precision float --train_batch_size 2 --lr_scheduler constant"
    words += f" --slider {pairs}"
    return status_of(lora_train, *words.split(), "--output_dir", out, *more)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[[pairs]]\npositive = "a"\nnegative = "a"\n', "pair 1: positive and negative are equal"),
        ('[[pairs]]\npositive = " A,  b"\nnegative = "a, B"\n', "pair 1: positive and negative are equal"),
        (
            '[[pairs]]\npositive = "a"\n[[pairs]]\npositive = "A "\n',
            "pair 2 says the same as pair 1; leave one",
        ),
        (
            '[[pairs]]\npositive = "a"\n[[pairs]]\npositive = ""\nnegative = "a"\n',
            "pair 2 takes back pair 1; leave one",
        ),
        (
            '[[pairs]]\npositive = "a"\n[[pairs]]\npositive = "a"\nstrength = -1.0\n',
            "pair 2 takes back pair 1; leave one",
        ),
        ('[[pairs]]\nnegative = "a"\n', "pair 1: has no positive"),
        ('[[pairs]]\npositive = "a"\nstrength = 0\n', "strength is 0"),
        ('[[pairs]]\npositive = "a"\nunconditional = "b"\n', "unconditional: unknown key"),
        ("[[pairs]]\npositive = 3\n", "positive: must be a text"),
        ('steps = 1\n[[pairs]]\npositive = "a"\n', "steps must be 2 to 1000"),
        ("steps = 5\n", "has no"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as error:
        read_pairs(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_step_is_the_published_objective(tmp_path: Path) -> None:
    pairs = write(tmp_path)
    assert train(pairs, tmp_path, "--max_train_steps", 1, "--trace_steps", 0) == 0
    trace = load_file(tmp_path / "trace/step-000000.safetensors")
    rows = read_pairs(pairs).rows
    targets = trace["0.input_ids.te1"]
    family = open_family(load_base(demo_base()), max_token_length=75, clip_skip=2)

    def answers(texts: list[str]) -> torch.Tensor:
        states = family.text.encode(family.text.tokenize(texts))
        return family.predict(trace["0.noisy_latents"], trace["0.timesteps"], states)

    order = [
        next(row for row in rows if torch.equal(family.text.tokenize([row.target]).ids[0][0], ids))
        for ids in targets
    ]
    with torch.no_grad():
        positive, negative, neutral = (
            answers([getattr(row, name) for row in order]) for name in ("positive", "negative", "neutral")
        )
        strengths = torch.tensor([row.strength for row in order]).view(-1, 1, 1, 1)
        change = strengths * (positive - negative)
    torch.testing.assert_close(trace["0.target"], neutral + change, atol=1e-4, rtol=1e-4)
    # A new network changes nothing: both directions miss by the same.
    own = answers([row.target for row in order]).detach()
    wanted = ((own - neutral - change).square().mean() + (own - neutral + change).square().mean()) / 2
    torch.testing.assert_close(trace["loss"], wanted, atol=1e-4, rtol=1e-3)
    assert set(trace["0.timesteps"].tolist()) <= {333, 334, 1}
    with open_tensors(tmp_path / "net.safetensors") as file:
        said = file.metadata
    assert json.loads(said["ss_slider"])["rows"][0]["positive"] == "1girl, solo, smile"
    assert said["ss_num_train_images"] == "0"
    assert said["ss_min_snr_gamma"] == "None"


def test_passes_that_are_computed_again_have_the_strength_of_their_direction(tmp_path: Path) -> None:
    pairs = write(tmp_path)
    for name, more in (("kept", ()), ("again", ("--gradient_checkpointing",))):
        assert train(pairs, tmp_path / name, "--max_train_steps", 2, "--unet_lr", "1e-2", *more) == 0
    one, other = (load_file(tmp_path / name / "net.safetensors") for name in ("kept", "again"))
    for key, values in one.items():
        torch.testing.assert_close(other[key], values, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("more", [(), ("--network_module", "networks.loha"), ("--gradient_checkpointing",)])
def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, more: tuple[str, ...]) -> None:
    pairs = write(tmp_path)
    more = (*more, "--gradient_accumulation_steps", "2")
    assert train(pairs, tmp_path / "whole", "--max_train_steps", 2, *more) == 0
    half = tmp_path / "half"
    assert train(pairs, half, "--max_train_steps", 1, "--save_state_on_train_end", *more) == 0
    state = half / "net-end.state"
    assert train(pairs, tmp_path / "rest", "--max_train_steps", 2, "--resume", state, *more) == 0
    one, other, less = (load_file(tmp_path / name / "net.safetensors") for name in ("whole", "rest", "half"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], less[key]) for key in one)


def test_options_of_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path)
    assert train(pairs, tmp_path, "--flip_aug") == 2
    assert "flip_aug: is for training on pictures" in capsys.readouterr().err
    assert train(pairs, tmp_path, "--min_snr_gamma", 5) == 2
    assert "min_snr_gamma: is for training on pictures" in capsys.readouterr().err
    assert train(pairs, tmp_path, "--train_data_dir", tmp_path) == 2
    assert "train_data_dir: is for training on pictures" in capsys.readouterr().err
    assert train(pairs, tmp_path, "--cache_text_encoder_outputs") == 2
    assert "cache_text_encoder_outputs: is for training on pictures" in capsys.readouterr().err
    assert train(pairs, tmp_path, "--early_stop", 2) == 2
    assert "early_stop: goes by pictures and captions, and a slider has none" in capsys.readouterr().err
    assert train(pairs, tmp_path, "--min_timestep", 999, "--dry_run") == 2
    assert "none of the slider's 3 steps lies in 999 to 1000" in capsys.readouterr().err
    assert train(write(tmp_path, '[[pairs]]\npositive = ""\n'), tmp_path) == 2
    assert "positive and negative are equal" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))
