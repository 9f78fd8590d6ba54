"""The bucket rule against reference results, and its promises for any picture."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.buckets import BucketRule, bucket_sizes, place

GOLDEN: list[dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data/train/b_buckets.json.gz").read_bytes())
)


def rule_of(case: dict[str, Any]) -> BucketRule:
    width, height = case["resolution"]
    return BucketRule(
        resolution=(width, height),
        min_size=case["min_bucket_reso"],
        max_size=case["max_bucket_reso"],
        step=case["bucket_reso_steps"],
        no_upscale=case["bucket_no_upscale"],
    )


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['resolution']}-{c['bucket_no_upscale']}")
def test_agrees_with_the_reference(case: dict[str, Any]) -> None:
    rule = rule_of(case)
    if not rule.no_upscale:
        assert [list(size) for size in bucket_sizes(rule)] == case["bucket_list"]
    for row in case["images"]:
        found = place(tuple(row["image"]), rule)
        assert [list(found.bucket), list(found.resized), list(found.crop)] == [
            row["bucket"],
            row["resized"],
            row["crop_xy_in_resized"],
        ], row["image"]


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_every_picture_covers_its_bucket(width: int, height: int) -> None:
    found = place((width, height), BucketRule(resolution=(512, 512), max_size=1024))
    assert found.bucket in bucket_sizes(BucketRule(resolution=(512, 512), max_size=1024))
    assert found.resized[0] >= found.bucket[0]
    assert found.resized[1] >= found.bucket[1]
    assert 0 <= found.loss < 1


def test_without_buckets_every_picture_takes_the_resolution() -> None:
    rule = BucketRule(resolution=(64, 64), enabled=False)
    assert place((200, 100), rule).bucket == (64, 64)
    assert place((200, 100), rule).crop == (32, 0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"resolution": (64, 64)}, "min_bucket_reso"),
        ({"resolution": (2048, 2048)}, "max_bucket_reso"),
        ({"resolution": (512, 512), "step": 10}, "bucket_reso_steps"),
    ],
)
def test_impossible_rules_say_which_option(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        BucketRule(**settings)


def test_a_resolution_too_small_for_every_bucket_is_refused_with_the_first_picture() -> None:
    rule = BucketRule(resolution=(32, 32), min_size=32)  # a slider, which has no pictures, may have it
    with pytest.raises(ConfigError, match="bucket_reso_steps: no bucket with sides of 64"):
        place((200, 100), rule)


def test_a_picture_under_one_step_is_refused_where_enlarging_is_forbidden() -> None:
    with pytest.raises(ConfigError, match="30x500"):
        place((30, 500), BucketRule(resolution=(512, 512), no_upscale=True))
