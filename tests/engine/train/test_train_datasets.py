"""Datasets of a file, trained on the real command line: regularisation, masks, augmentation, weights in captions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

from safetensors import safe_open  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from support import tiny  # noqa: E402
from support.called import status_of  # noqa: E402


def train(*words: object) -> int:
    fixed = (
        "--device cpu --network_dim 2 --max_token_length 75 --output_name net --save_precision float --quiet"
    )
    return status_of(lora_train, *fixed.split(), *words)


def traces(folder: Path) -> list[tuple[dict[str, Any], list[str]]]:
    """The first forward pass of each traced step, and its pictures."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name[2:]: file.get_tensor(name) for name in file.keys() if name[:2] == "0."}  # noqa: SIM118
            found.append((tensors, [Path(name).name for name in json.loads(file.metadata()["0.files"])]))
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in folders ``train``, ``reg`` and ``masks`` (black but for the left third)."""
    root = tmp_path_factory.mktemp("pictures")
    folder = draw_concept(root, "mirelune", pictures=6, repeats=1, seed=1)
    for name in ("train", "reg", "masks"):
        (root / name).mkdir()
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(path) as picture:
            home = root / ("train" if index < 4 else "reg")
            # A frame around it, so that there is something to cut.
            framed = Image.new("RGB", (96, 64), "white")
            framed.paste(picture.resize((64, 64)), (16, 0))
            framed.save(home / f"{index}.png")
        (home / f"{index}.txt").write_text(path.with_suffix(".txt").read_text())
        mask = Image.new("L", (96, 64), 0)
        mask.paste(255, (0, 0, 48, 64))
        mask.save(root / "masks" / f"{index}.png")
    return root


def test_two_datasets_of_a_file(pictures: Path, tmp_path: Path) -> None:
    tiny.save_checkpoint(tiny.build("sdxl"), tmp_path / "base.safetensors")
    (tmp_path / "set.toml").write_text(
        f"""
        [general]
        enable_bucket = false
        [[datasets]]
        resolution = 64
        batch_size = 2
          [[datasets.subsets]]
          image_dir = "{pictures}/train"
          random_crop = true
          color_aug = true
          flip_aug = true
          conditioning_data_dir = "{pictures}/masks"
          caption_prefix = "(red:1.3),"
          [[datasets.subsets]]
          image_dir = "{pictures}/reg"
          is_reg = true
        [[datasets]]
        resolution = 32
          [[datasets.subsets]]
          image_dir = "{pictures}/train"
          alpha_mask = true
        """
    )
    words = ["--base", tmp_path / "base.safetensors", "--dataset_config", tmp_path / "set.toml"]
    words += ["--output_dir", tmp_path / "out", "--masked_loss", "--prior_loss_weight", "0.25"]
    words += ["--weighted_captions", "--min_snr_gamma", "0", "--learning_rate", "1e-3"]
    words += ["--max_train_epochs", "1", "--trace_steps", *range(8)]
    assert train(*words) == 0
    found = traces(tmp_path / "out/trace")
    assert len(found) == 8  # 4 + 4 pictures in twos, then 4 alone
    first = [row for row in found if row[0]["latents"].shape[-1] == 16]
    for tensors, names in first:
        for index, name in enumerate(names):
            is_reg = int(name[0]) >= 4
            assert float(tensors["loss_weights"][index]) == pytest.approx(0.25 if is_reg else 1)
            assert is_reg == bool((tensors["mask"][index] == 1).all())
            assert tensors["size_ids"][index, 4:].tolist() == [64, 64]
    assert sum(name[0] >= "4" for _, names in first for name in names) == 4
    crops = {float(left) for tensors, _ in first for left in tensors["size_ids"][:, 3]}
    assert len(crops) > 2
    second = [row for row in found if row[0]["latents"].shape[-1] == 8]
    assert all(bool((tensors["mask"] == 1).all()) for tensors, _ in second)
    with open_tensors(tmp_path / "out/net.safetensors") as file:
        datasets = json.loads(file.metadata["ss_datasets"])
    assert [row["num_reg_images"] for row in datasets] == [4, 0]


def test_masked_parts_teach_nothing(pictures: Path, tmp_path: Path) -> None:
    """Only what masks show has a loss: the trace's losses are those of the masked difference."""
    words = [
        "--base",
        "demo",
        "--train_data_dir",
        tmp_path / "set",
        "--resolution",
        "64",
        "--no_enable_bucket",
    ]
    (tmp_path / "set").mkdir()
    (tmp_path / "set/1_mirelune").symlink_to(pictures / "train")
    words += [
        "--masked_loss",
        "--conditioning_data_dir",
        pictures / "masks",
        "--output_dir",
        tmp_path / "out",
    ]
    assert train(*words, "--max_train_steps", "2", "--trace_steps", "0,1") == 0
    for tensors, _ in traces(tmp_path / "out/trace"):
        mask = tensors["mask"]
        assert mask[0, 0].mean() == pytest.approx(0.5)
        again = ((tensors["prediction"] - tensors["target"]).square() * mask).mean(dim=(1, 2, 3))
        torch.testing.assert_close(tensors["losses"], again)


def test_lora_repeats_writes_what_is_read(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("lorapipe_dataset")
    code = "from lorapipe_dataset.repeats.cli import main; main()"
    words = ["-o", tmp_path / "set.toml", "--resolution", "64", "--repeats", "1", "--concept", "mirelune"]
    subprocess.run(
        [sys.executable, "-c", code, pictures / "train", *map(str, words)], check=True, capture_output=True
    )
    more = ["--dataset_config", tmp_path / "set.toml", "--output_dir", tmp_path / "out"]
    assert train("--base", "demo", *more, "--max_train_epochs", "1") == 0
    with open_tensors(tmp_path / "out/net.safetensors") as file:
        assert json.loads(file.metadata["ss_dataset_dirs"]) == {"train": {"n_repeats": 1, "img_count": 4}}
