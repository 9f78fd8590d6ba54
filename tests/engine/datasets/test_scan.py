"""Scanning: captions, regularisation pictures in turn, masks."""

from __future__ import annotations

from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")

from click.testing import CliRunner  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.datasets.described import dataset_notes, folder_lines  # noqa: E402
from lorapipe_engine.datasets.record import dataset_record  # noqa: E402
from lorapipe_engine.datasets.scan import _in_turn, scan  # noqa: E402
from lorapipe_engine.errors import ConfigError, InputError  # noqa: E402
from lorapipe_engine.networks.metadata import training_metadata  # noqa: E402
from lorapipe_engine.settings import DataSettings  # noqa: E402


def draw(folder: Path, count: int, size: tuple[int, int] = (64, 64), caption: str | None = "a, b") -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", size).save(folder / f"{index}.png")
        if caption is not None:
            (folder / f"{index}.txt").write_text(caption)
    return folder


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 60))
def test_in_turn_until_there_are_enough(repeats: list[int], wanted: int) -> None:
    given_ = _in_turn(range(len(repeats)), repeats, wanted)
    total = sum(given_.values())
    # No more than what the last one's own repeats bring too much.
    assert wanted <= total < wanted + max(repeats)
    if len(given_) == len(repeats):
        more = [given_[index] - count for index, count in enumerate(repeats)]
        assert max(more) - min(more) <= 1
        assert sorted(more, reverse=True) == more
    else:  # what is not needed is not used
        assert list(given_.values()) == repeats[: len(given_)]


def test_regularisation_pictures_come_as_often_as_the_others(tmp_path: Path) -> None:
    draw(tmp_path / "train/3_maid", 3)
    draw(tmp_path / "reg/1_girl", 2, caption=None)
    dataset = scan(DataSettings(train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg"))
    reg = [row for row in dataset.pictures if dataset.subset_of(row).is_reg]
    assert ([row.repeats for row in reg], [row.caption for row in reg]) == ([5, 4], ["girl", "girl"])
    assert (dataset.count(is_reg=False), dataset.count(is_reg=True)) == (9, 9)
    assert folder_lines(dataset)[1] == (
        "1_girl: 2 regularisation pictures, 9 an epoch, 2 without a caption ('girl' is used)"
    )


def test_metadata_of_folders(tmp_path: Path) -> None:
    draw(tmp_path / "train/3_maid", 3)
    draw(tmp_path / "reg/1_girl", 2, caption="Girl, b")
    data = DataSettings(train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg", resolution=(64, 64))
    found = dataset_record(data, scan(data))
    assert (found["num_train_images"], found["num_reg_images"]) == (9, 9)
    assert found["dataset_dirs"] == {"3_maid": {"n_repeats": 3, "img_count": 3}}
    assert found["reg_dataset_dirs"] == {"1_girl": {"n_repeats": 1, "img_count": 2}}
    assert found["tag_frequency"] == {"3_maid": {"a": 3, "b": 3}, "1_girl": {"girl": 2, "b": 2}}
    assert found["bucket_info"] == {
        "buckets": {"0": {"resolution": [64, 64], "count": 18}},
        "mean_img_ar_error": 0,
    }
    written = training_metadata(found)
    assert written["ss_resolution"] == "(64, 64)"
    assert "ss_datasets" not in written


def test_metadata_of_a_dataset_file(tmp_path: Path) -> None:
    draw(tmp_path / "maid", 2)
    draw(tmp_path / "girl", 1)
    path = tmp_path / "set.toml"
    path.write_text(
        f"[[datasets]]\nresolution = 64\nbatch_size = 2\n[[datasets.subsets]]\nimage_dir = '{tmp_path}/maid'\n"
        f"num_repeats = 2\n[[datasets.subsets]]\nimage_dir = '{tmp_path}/girl'\nis_reg = true\n"
        f"[[datasets]]\nresolution = 128\n[[datasets.subsets]]\nimage_dir = '{tmp_path}/maid'\n"
    )
    data = DataSettings(dataset_config=path)
    found = dataset_record(data, scan(data))
    one, two = found["datasets"]
    assert (one["num_train_images"], one["num_reg_images"], two["num_train_images"]) == (4, 4, 2)
    assert (one["batch_size_per_device"], one["resolution"], two["resolution"]) == (2, [64, 64], [128, 128])
    assert [(row["image_dir"], row["is_reg"], row["num_repeats"]) for row in one["subsets"]] == [
        ("maid", False, 2),
        ("girl", True, 1),
    ]
    written = training_metadata(found)
    assert written["ss_num_train_images"] == "6"
    assert "ss_resolution" not in written
    assert set(written) >= {"ss_datasets", "ss_dataset_dirs", "ss_tag_frequency"}


def test_folders_of_the_command_line_are_left_out_with_a_file(tmp_path: Path) -> None:
    draw(tmp_path / "maid", 1)
    path = tmp_path / "set.toml"
    path.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path}/maid'\n")
    data = DataSettings(dataset_config=path, train_data_dir=tmp_path / "nowhere")
    assert dataset_notes(data, scan(data)) == ["train_data_dir is not used: dataset_config names the folders"]


def test_empty_caption_files_are_counted(tmp_path: Path) -> None:
    folder = draw(tmp_path / "train/1_maid", 2)
    (folder / "0.txt").write_text(" \n")
    dataset = scan(DataSettings(train_data_dir=tmp_path / "train"))
    assert folder_lines(dataset) == ["1_maid: 2 pictures x 1, 1 with an empty caption"]
    assert dataset.pictures[0].caption == ""


def masked(root: Path, *, masks: Path | None = None, alpha: bool = False) -> DataSettings:
    return DataSettings(train_data_dir=root, masked_loss=True, conditioning_data_dir=masks, alpha_mask=alpha)


def test_masks_are_found_by_name(tmp_path: Path) -> None:
    draw(tmp_path / "train/1_maid", 2, (100, 60))
    draw(tmp_path / "masks/1_maid", 2, (50, 30))
    draw(tmp_path / "flat", 2, (200, 120))
    for masks, home in (("masks", "masks/1_maid"), ("flat", "flat")):
        found = scan(masked(tmp_path / "train", masks=tmp_path / masks)).pictures
        assert [row.mask for row in found] == [tmp_path / home / f"{index}.png" for index in range(2)]


@pytest.mark.torch
def test_a_mask_that_the_concepts_folder_lacks_is_looked_for_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    draw(tmp_path / "train/1_maid", 2, (100, 60))
    draw(tmp_path / "masks", 2, (100, 60))
    draw(tmp_path / "masks/1_maid", 1, (50, 30))
    places = [tmp_path / "masks/1_maid/0.png", tmp_path / "masks/1.png"]
    found = scan(masked(tmp_path / "train", masks=tmp_path / "masks")).pictures
    assert [row.mask for row in found] == places
    words = ["--base", "demo", "--dry_run", "--masked_loss", "--train_data_dir", str(tmp_path / "train")]
    words += ["--conditioning_data_dir", str(tmp_path / "masks")]
    done = CliRunner().invoke(lora_train, words)
    assert done.exit_code == 0, done.output
    places[1].unlink()
    done = CliRunner().invoke(lora_train, words)
    assert done.exit_code == 2
    assert f"1.png: has no mask {tmp_path / 'masks/1_maid/1.png'}, nor {places[1]}" in done.stderr


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    folder = draw(tmp_path / "train/1_maid", 3, (100, 60))
    masks = draw(tmp_path / "masks", 1, (60, 60))
    with pytest.raises(InputError, match=r"1\.png: has no mask .*1\.png \(and 1 more pictures without one\)"):
        scan(masked(tmp_path / "train", masks=masks))
    for index in (1, 2):
        (folder / f"{index}.png").unlink()
    with pytest.raises(InputError, match=r"0\.png: a mask of 60x60 for 0\.png of 100x60"):
        scan(masked(tmp_path / "train", masks=masks))
    with pytest.raises(ConfigError, match="needs masks"):
        scan(masked(tmp_path / "train"))
    with pytest.raises(ConfigError, match="--masked_loss"):
        scan(DataSettings(train_data_dir=tmp_path / "train", conditioning_data_dir=masks))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda reg: None, "reg: no such folder"),
        (lambda reg: reg.mkdir(), "it is empty"),
        (lambda reg: (reg / "1_girl").mkdir(parents=True), "1_girl: no pictures in it"),
    ],
)
def test_regularisation_without_pictures(make: object, told: str, tmp_path: Path) -> None:
    draw(tmp_path / "train/1_maid", 1)
    make(tmp_path / "reg")  # type: ignore[operator]
    with pytest.raises(InputError, match=told):
        scan(DataSettings(train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "reg"))


def test_one_folder_for_both_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "train/1_maid", 1)
    with pytest.raises(ConfigError, match="a folder of their own"):
        scan(DataSettings(train_data_dir=tmp_path / "train", reg_data_dir=tmp_path / "train"))
