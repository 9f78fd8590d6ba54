"""Parameters of pictures, written and read as A1111 does."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.sampling.infotext import (
    DEFAULTS,
    MOST_LETTERS,
    lora_hashes,
    model_hash,
    network_hash,
    read_infotext,
    write_infotext,
)

DATA = Path(__file__).parents[2] / "data" / "see"
CASES: list[dict[str, Any]] = json.loads((DATA / "infotext.json").read_text(encoding="utf-8"))["cases"]
KEYS = {
    "Steps": ("steps", 20),
    "Sampler": ("sampler_name", "Euler a"),
    "Schedule type": ("scheduler", "Automatic"),
    "CFG scale": ("cfg_scale", 7.0),
    "Seed": ("seed", 1),
    "Model hash": ("sd_model_hash", "6ce0161689"),
    "Model": ("sd_model_name", "v1-5-pruned-emaonly"),
    "VAE hash": ("sd_vae_hash", None),
    "VAE": ("sd_vae_name", None),
    "Variation seed": ("subseed", None),
    "Variation seed strength": ("subseed_strength", None),
    "Clip skip": ("clip_skip", None),
    "ENSD": ("eta_noise_seed_delta", None),
    "RNG": ("randn_source", None),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["parameters"]["prompt"][:30])
def test_parameters_are_written_as_a1111_writes_them(case: dict[str, Any]) -> None:
    given = case["parameters"]
    pairs = {"Version": "v1.10.1", **given.get("extra_generation_params", {})}
    pairs |= {key: given.get(field, default) for key, (field, default) in KEYS.items()}
    pairs["Size"] = f"{given.get('width', 512)}x{given.get('height', 512)}"
    assert write_infotext(given["prompt"], given.get("negative", ""), pairs) == case["text"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["parameters"]["prompt"][:30])
def test_parameters_are_read_as_a1111_reads_them(case: dict[str, Any]) -> None:
    info = read_infotext(case["text"])
    wanted = dict(case["parsed"])
    assert info.prompt == wanted.pop("Prompt")
    assert info.negative == wanted.pop("Negative prompt")
    assert {key: wanted.pop(key) for key in info.pairs} == info.pairs
    # What is left are A1111's defaults: for those that are ours, and for parts of its page that do not concern us.
    for key in DEFAULTS.keys() & wanted.keys():
        assert info.value(key) == wanted.pop(key)
    foreign = ("Hires", "Mask", "Inpaint", "Schedule m", "Schedule rho", "VAE ", "FP8", "Refiner", "Emphasis")
    assert [key for key in wanted if not key.startswith(foreign)] == []


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.text(alphabet='ab ,:"\\é日'),
    st.dictionaries(
        st.sampled_from(["Model", "Note", "Lora hashes"]), st.text(alphabet='ab ,:"\\é日\n'), max_size=3
    ),
)
def test_what_is_written_is_read_again(prompt: str, values: dict[str, str]) -> None:
    pairs = {"Steps": 20, "Sampler": "Euler", "Seed": 1, "Size": "64x32", **values}
    info = read_infotext(write_infotext(prompt, "", pairs))
    assert info.prompt == prompt.strip()
    assert (info.pairs["Size-1"], info.pairs["Size-2"]) == ("64", "32")
    for key, value in values.items():
        # A1111 trims what is not in quotes, and loses what is empty.
        if value == value.strip() and value:
            assert info.pairs[key] == value


def test_civitai_reads_the_line_and_the_tags() -> None:
    text = write_infotext("a <lora:mina-000002:0.8>", "bad", {"Seed": 1, "Sampler": "DDIM", "Steps": 20})
    assert text.splitlines()[-1].startswith("Steps: ")
    assert re.search(r"<lora:[A-Za-z0-9_.-]+:[0-9.]+>", text)


def test_a_text_that_is_no_parameters_is_a_prompt() -> None:
    info = read_infotext("Steps: 20, Seed: 1")
    assert info.prompt == "Steps: 20, Seed: 1"
    assert info.value("RNG") == "GPU"
    assert info.value("Seed") is None
    assert len(read_infotext("a" * 2_000_000).prompt) == MOST_LETTERS
    long = "a\n" + "Steps: 20, " * 2000
    assert not read_infotext(long).pairs


def test_sizes_are_told_as_they_were_written() -> None:
    info = read_infotext("a\nSteps: 20, Seed: 1, Size: 512x768")
    assert (info.written("Size"), info.written("Seed"), info.written("RNG")) == ("512x768", "1", None)


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": np.arange(6, dtype=np.float32)}, {"ss_tag": "1"})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert network_hash(path) == hashlib.sha256(data[start:]).hexdigest()[:12]
    assert model_hash(path) == hashlib.sha256(data).hexdigest()[:10]
    assert lora_hashes([("a: b,c", "0123456789abcdef"), ("d", "ba9876543210")]) == (
        "a bc: 0123456789ab, d: ba9876543210"
    )
    assert lora_hashes([]) is None
