"""The dataset file: what it means, where each key may stand, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("PIL")

from lorapipe_engine.datasets.file import read_dataset_file
from lorapipe_engine.datasets.spec import DatasetSpec
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.settings import DataSettings

WHOLE = """
[general]
caption_extension = ".cap"
shuffle_caption = true
keep_tokens = 1
flip_aug = true
bucket_reso_steps = 32

[[datasets]]
resolution = [256, 384]
batch_size = 3
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = "maid"
  num_repeats = 6
  keep_tokens = 3
  class_tokens = "maid"

  [[datasets.subsets]]
  image_dir = "nekochan"
  is_reg = true
  caption_prefix = "1girl"

[[datasets]]
resolution = 512
enable_bucket = false
num_repeats = 2

  [[datasets.subsets]]
  image_dir = "maid"
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("maid", "nekochan"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, data: DataSettings | None = None, name: str = "set.toml") -> tuple[DatasetSpec, ...]:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return read_dataset_file(path, data or DataSettings())


def test_subset_before_dataset_before_general_before_command_line() -> None:
    data = DataSettings(keep_tokens=9, caption_tag_dropout_rate=0.5, resolution=(64, 64), train_batch_size=7)
    one, two = read(WHOLE, data)
    maid, nekochan = one.subsets
    assert [row.captions.keep_tokens for row in (maid, nekochan, *two.subsets)] == [3, 2, 1]
    assert all(row.captions.tag_dropout == 0.5 and row.captions.shuffle and row.flip for row in one.subsets)
    assert (one.batch_size, two.batch_size) == (3, 7)
    assert (one.buckets.resolution, two.buckets.resolution) == ((256, 384), (512, 512))
    assert (one.buckets.enabled, two.buckets.enabled, one.buckets.step) == (True, False, 32)
    assert [(row.repeats, row.is_reg, row.class_tokens) for row in one.subsets] == [
        (6, False, "maid"),
        (1, True, None),
    ]
    assert (two.subsets[0].repeats, nekochan.captions.prefix, maid.caption_extension) == (2, "1girl", ".cap")


def test_json_says_the_same() -> None:
    import tomllib

    assert read(json.dumps(tomllib.loads(WHOLE)), name="set.json") == read(WHOLE)


def test_folders_may_be_seen_from_the_file(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "set.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "maid"\n')
    (folders / "elsewhere").mkdir()
    monkeypatch.chdir(folders / "elsewhere")
    (spec,) = read_dataset_file(folders / "set.toml", DataSettings())
    assert spec.subsets[0].folder == folders / "maid"


ONE = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "maid"\n'
WRONG = [
    ("train_batch_size = 2\nnetwork_dim = 4\n", "no [[datasets]]; give it as --config_file"),
    (
        ONE + "max_token_length = 225\n",
        "max_token_length: an option of the run; give it as --max_token_length or in --config_file",
    ),
    ("[genral]\nflip_aug = true\n" + ONE, "genral: unknown key, did you mean 'general'?"),
    (
        "[general]\nflip_agu = true\n" + ONE,
        "line 2: general.flip_agu: unknown key, did you mean 'flip_aug'?",
    ),
    (
        "[[datasets]]\nresolutoin = 64\n" + ONE[13:],
        "line 2: datasets[0].resolutoin: unknown key, did you mean 'resolution'?",
    ),
    (
        ONE + "num_repeat = 2\n",
        "line 4: datasets[0].subsets[0].num_repeat: unknown key, did you mean 'num_repeats'?",
    ),
    (ONE + "resolution = 64\n", "belongs in [general] or [[datasets]], not in [[datasets.subsets]]"),
    (
        "num_repeats = 2\n" + ONE,
        "belongs in [general] or [[datasets]] or [[datasets.subsets]], not in the file",
    ),
    ("[[datasets]]\nimage_dir = 'maid'\n" + ONE[13:], "belongs in [[datasets.subsets]], not in [[datasets]]"),
    (ONE + "num_repeats = 0\n", "line 4: datasets[0].subsets[0]: num_repeats: 0 is below 1"),
    (ONE + "flip_aug = 2\n", "flip_aug: expected true or false, got 2"),
    ("[[datasets]]\nbatch_size = 'x'\n" + ONE[13:], "datasets[0]: batch_size: expected a whole number"),
    (ONE + "metadata_file = [1]\n", "metadata_file: expected a"),
    (ONE + "face_crop_aug_range = [1, 2]\n", "use random_crop"),
    ("[general]\n", "has no [[datasets]]"),
    ("[[datasets]]\n", "has no [[datasets.subsets]]"),
    ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1\n", "image_dir: missing"),
    ("[datasets]\n", "datasets: must be tables, each under [[datasets]]"),
    ("general = 3\n" + ONE, "general: must be a table"),
    (ONE + ONE[13:], "maid is the folder of datasets[0].subsets[0] already"),
    (ONE + "is_reg = true\n", "has regularisation pictures only"),
    (ONE + "is_preserved = true\n", "every subset is_preserved"),
    ("[[datasets]]\nresolution = 4\n" + ONE[13:], "datasets[0]: resolution: 4x4 is too small"),
    (ONE + "conditioning_data_dir = 'nekochan'\n", "--masked_loss"),
    ("x = = 1\n", "not TOML"),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=[row[1] for row in WRONG])
def test_what_is_wrong_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert told in str(caught.value)
    assert str(caught.value).startswith("set.toml")
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there() -> None:
    with pytest.raises(
        InputError, match=r"line 3: datasets\[0\]\.subsets\[0\]\.image_dir: maids: no such folder"
    ):
        read(ONE.replace("maid", "maids"))


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("cache_info = true", "cache_info is not needed: sizes of pictures are read from their headers"),
        ("cache_info = false", ""),
        ("network_multiplier = 0.5", "network_multiplier is not needed: every picture is trained"),
        ("network_multiplier = 1.0", ""),
        ("custom_attributes = { artist = 'x' }", "custom_attributes: diff_output_preservation in it"),
    ],
)
def test_what_has_no_effect_is_taken_with_a_note(line: str, note: str) -> None:
    (plain,) = read(ONE)
    (spec,) = read(f"[general]\n{line}\n{ONE}{line}\n")
    assert (spec.subsets, spec.buckets) == (plain.subsets, plain.buckets)
    assert len(spec.notes) == bool(note)
    assert "".join(spec.notes).startswith(note)


def test_pictures_held_to_the_base_by_sd_scripts_own_name() -> None:
    held = (
        "\n[[datasets.subsets]]\nimage_dir = 'nekochan'\ncustom_attributes.diff_output_preservation = true\n"
    )
    (spec,) = read(ONE + held)
    assert [subset.is_preserved for subset in spec.subsets] == [False, True]
    assert spec.notes == (
        "custom_attributes: diff_output_preservation in it is taken as is_preserved, and nothing else is read",
    )
