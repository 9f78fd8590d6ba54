from __future__ import annotations

import base64
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine import __version__
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.hashes import network_hashes
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.networks.metadata import (
    MINIMUM_KEYS,
    OPTIONAL_KEYS,
    SLIDER,
    TIMES,
    TRAINING_KEYS,
    VAE_FORM,
    ModelSpec,
    base_version,
    parse_metadata,
    table_of,
    tag_counts,
    thumbnail_url,
    training_metadata,
    with_hashes,
)

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=9)))


def test_values_are_spelt_as_python_does_and_tables_as_json() -> None:
    found = training_metadata(
        {
            "seed": 42,
            "full_fp16": False,
            "clip_skip": None,
            "learning_rate": 1e-4,
            "resolution": str((512, 768)),
            "bucket_info": {"buckets": {"0": {"resolution": [64, 64], "count": 2}}},
            "tag_frequency": {"10_ミク": {"1girl": 3}},
            "network_args": {},
        }
    )
    assert found["ss_seed"] == "42"
    assert found["ss_full_fp16"] == "False"
    assert found["ss_clip_skip"] == "None"
    assert found["ss_learning_rate"] == "0.0001"
    assert found["ss_resolution"] == "(512, 768)"
    assert json.loads(found["ss_bucket_info"])["buckets"]["0"]["count"] == 2
    assert found["ss_tag_frequency"] == '{"10_ミク": {"1girl": 3}}'
    assert found["ss_network_args"] == "{}"


def test_every_key_is_there_whatever_is_known() -> None:
    names = [name for group in TRAINING_KEYS.values() for name in group]
    assert len(names) == len(set(names)) == 88 + len((*VAE_FORM, *TIMES, *SLIDER, *TRAINING_KEYS["ours"]))
    assert list(training_metadata({})) == [f"ss_{name}" for name in names if name not in OPTIONAL_KEYS]
    assert set(training_metadata({}).values()) == {"None"}
    assert "ss_vae_hash" in training_metadata({"vae_hash": "ab"})


def test_the_minimum_and_unknown_names() -> None:
    found = training_metadata({"v2": False, "seed": 1, "network_dim": 4}, minimum=True)
    assert list(found) == [f"ss_{name}" for name in MINIMUM_KEYS]
    assert found["ss_v2"] == "False"
    with pytest.raises(KeyError, match="sede"):
        training_metadata({"sede": 1})


@pytest.mark.parametrize(
    ("family", "v", "version", "architecture", "implementation"),
    [
        ("sd1", False, "sd_v1", "stable-diffusion-v1", "diffusers"),
        ("sd1", True, "sd_v1_v", "stable-diffusion-v1", "diffusers"),
        ("sd2", False, "sd_v2", "stable-diffusion-v2-512", "diffusers"),
        ("sd2", True, "sd_v2_v", "stable-diffusion-v2-768-v", "diffusers"),
        ("sdxl", False, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/"),
        ("sdxl", True, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/"),
    ],
)
def test_families_and_prediction_types(
    family: str, v: bool, version: str, architecture: str, implementation: str
) -> None:
    prediction = "v_prediction" if v else "epsilon"
    assert base_version(family, prediction) == version
    found = ModelSpec(family=family, adapter=True, title="t", date=WHEN, prediction=prediction).metadata()
    assert found["modelspec.architecture"] == f"{architecture}/lora"
    assert found["modelspec.implementation"].startswith(implementation)
    assert found["modelspec.prediction_type"] == ("v" if v else "epsilon")
    model = ModelSpec(family=family, adapter=False, title="t", date=WHEN, prediction=prediction).metadata()
    assert model["modelspec.architecture"] == architecture


def test_modelspec_leaves_out_what_is_not_known() -> None:
    few = ModelSpec(family="sd1", adapter=True, title="a", date=WHEN).metadata()
    assert few == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.implementation_version": f"lorapipe {__version__}",
        "modelspec.title": "a",
        "modelspec.date": "2026-01-02T03:04:05+09:00",
        "modelspec.prediction_type": "epsilon",
    }
    more = ModelSpec(
        family="sd1",
        adapter=True,
        title="a",
        date=datetime(2026, 1, 2, tzinfo=UTC),
        resolution=(512, 768),
        timesteps=(0, 500),
        encoder_layer=2,
        author="me",
        trigger_phrase="zzz",
    ).metadata()
    assert more["modelspec.resolution"] == "512x768"
    assert more["modelspec.timestep_range"] == "0,500"
    assert more["modelspec.encoder_layer"] == "2"
    assert (more["modelspec.author"], more["modelspec.trigger_phrase"]) == ("me", "zzz")


def test_a_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"picture")
    kind, _, data = thumbnail_url(path).partition(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == b"picture"
    for wrong in (tmp_path / "a.txt", tmp_path / "absent.png"):
        with pytest.raises(InputError):
            thumbnail_url(wrong)


def test_hashes_are_those_of_the_tensors_and_ss_keys() -> None:
    tensors = {"a": np.arange(300_000, dtype=np.float32)}
    found = with_hashes({"ss_seed": "1", "modelspec.title": "x"}, tensors)
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == network_hashes(tensors, {"ss_seed": "1"})
    assert found["modelspec.title"] == "x"
    # Writing and reading gives it all back.
    stream = io.BytesIO()
    write_tensors(stream, tensors, found)
    assert open_tensors(io.BytesIO(stream.getvalue())).metadata == found


def test_reading_tables_back() -> None:
    tags = {"10_a": {"1girl": 40, " solo": 22}, "3_b": {"solo": 9, "odd": "x"}, "c": 1}
    metadata = training_metadata({"tag_frequency": tags, "seed": 3}) | {
        "odd": "{broken",
        "deep": "[" * 100_000,
    }
    parsed = parse_metadata(metadata)
    assert parsed["ss_tag_frequency"] == tags
    assert parsed["ss_seed"] == "3"
    assert parsed["odd"] == "{broken"
    assert tag_counts(metadata) == Counter({"1girl": 40, "solo": 31})
    assert table_of(metadata, "ss_seed") == table_of(metadata, "absent") == table_of(metadata, "deep") == {}
    assert tag_counts({}) == Counter()


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20)))
def test_any_text_can_be_parsed(metadata: dict[str, str]) -> None:
    assert parse_metadata(metadata).keys() == metadata.keys()
    for text in metadata.values():
        assert isinstance(tag_counts({"ss_tag_frequency": text}), Counter)
