"""lora-check buckets: what the trainer does, from headers only."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from lorapipe_engine.cli import lora_train
from lorapipe_engine.datasets.spec import bucket_rule
from lorapipe_engine.settings import DataSettings

GOLDEN: list[dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[2] / "data/train/b_buckets.json.gz").read_bytes())
)
SIZES = [(512, 512), (1000, 600), (600, 1000), (97, 333), (2000, 300), (64, 64), (1215, 832)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for folder, repeats in (("3_maid", SIZES[:4]), ("10_neko chan", SIZES[4:])):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number, size in enumerate(repeats):
            Image.new("RGB", size).save(tmp_path / "set" / folder / f"{number}.png")
    turned = Image.new("RGB", (300, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "set/3_maid/turned.jpg", exif=exif)
    return tmp_path / "set"


OPTIONS = [
    {"resolution": (768, 768)},
    {"resolution": (512, 512), "min_bucket_reso": 320, "max_bucket_reso": 640, "bucket_reso_steps": 32},
    {"resolution": (64, 64), "bucket_reso_steps": 16},
    {"resolution": (512, 768), "enable_bucket": False},
    {"resolution": (256, 256), "bucket_no_upscale": True, "bucket_reso_steps": 32},
]


@pytest.mark.torch
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_the_trainer(check: Any, dataset: Path, options: dict[str, Any]) -> None:
    data = pytest.importorskip("lorapipe_engine.train.data.examples")
    settings = DataSettings(train_data_dir=dataset, **options)
    assert bucket_rule(settings) == data.bucket_rule(settings)
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            words += [
                f"--{name.replace('_', '-')}",
                ",".join(map(str, value)) if isinstance(value, tuple) else value,
            ]
    rows = check("buckets", dataset, *words, "--json").records
    pictures = data.scan(settings).pictures
    assert {row["path"] for row in rows} == {str(picture.path) for picture in pictures}
    found = {row["path"]: row for row in rows}
    for picture in pictures:
        row = found[str(picture.path)]
        assert tuple(row["image"]) == picture.size
        assert tuple(row["bucket"]) == picture.placement.bucket
        assert tuple(row["resized"]) == picture.placement.resized
        assert tuple(row["crop"]) == picture.placement.crop
        assert row["repeats"] == picture.repeats


def test_the_table(check: Any, dataset: Path) -> None:
    done = check("buckets", dataset, "--resolution", 512, "--train-batch-size", 4)
    assert done.code == 0
    assert "portrait" in done.out
    lines = done.out.splitlines()
    assert lines[1].split() == ["512x512", "2", "13", "29%", "0.0%", "1", "of", "4"]
    assert "cut most:" in lines[-1]


def test_pictures_without_a_bucket_are_told(check: Any, dataset: Path) -> None:
    (dataset / "3_maid/broken.png").write_bytes(b"\x89PNG")
    (dataset / "3_maid/empty.png").touch()
    done = check("buckets", dataset, "--bucket-no-upscale", "--bucket-reso-steps", 128, "--json")
    problems = {Path(row["path"]).name: row["error"] for row in done.records if "error" in row}
    assert (done.code, set(problems)) == (1, {"1.png", "3.png", "broken.png", "empty.png"})
    assert problems["empty.png"] == "empty file"
    assert "smaller than one bucket step of 128" in problems["1.png"]
    assert done.err.count("error:") == 4


def test_only_headers_are_read(check: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((900, 700), 80).save(whole)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cut.png").write_bytes(whole.read_bytes()[:200])
    (row,) = check("buckets", tmp_path / "set", "--json").records
    assert (row["image"], row["bucket"]) == ([900, 700], [576, 448])


def test_paths_come_through_pipes(check: Any, dataset: Path) -> None:
    one = dataset / "3_maid/1.png"
    (row,) = check("buckets", "--json", stdin=json.dumps({"path": str(one)}).encode()).records
    assert (row["path"], row["repeats"]) == (str(one), 3)


def test_pictures_that_are_not_trained_are_left_out(check: Any, dataset: Path) -> None:
    Image.new("RGB", (9, 9)).save(dataset / "stray.png")
    done = check("buckets", dataset, "--json")
    assert len(done.records) == len(SIZES) + 1
    assert "1 pictures lie outside the folders N_concept" in done.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["missing"], "missing: no such folder"),
        (["."], "no pictures found"),
        ([".", "--resolution", "wide"], "resolution: expected a whole number, got 'wide'"),
        (["set", "--bucket-reso-steps", "20"], "20 is not a multiple of 8"),
        (
            ["set", "--min-bucket-reso", "512", "--max-bucket-reso", "256"],
            "min_bucket_reso: 512 is above max_bucket_reso, 256; lower the first or raise the second",
        ),
        ([".", "--reslution", "64"], "no option --reslution, did you mean --resolution?"),
    ],
)
def test_errors_take_one_line(
    check: Any, draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    if words[0] == "set":
        draw("set/a.png")
    monkeypatch.chdir(tmp_path)
    done = check("buckets", *words)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert text in done.err


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['resolution']}-{case['bucket_no_upscale']}")
def test_agrees_with_the_reference(check: Any, tmp_path: Path, case: dict[str, Any]) -> None:
    expected = {}
    for number, row in enumerate(case["images"]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png_header(*row["image"]))
        expected[str(path)] = (row["image"], row["bucket"], row["resized"], row["crop_xy_in_resized"])
    words = [
        word
        for name in ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
        for word in (f"--{name.replace('_', '-')}", str(case[name]).strip("[]").replace(" ", ""))
    ]
    words += ["--bucket-no-upscale"] * case["bucket_no_upscale"]
    rows = check("buckets", tmp_path, *words, "--json").records
    found = {row["path"]: (row["image"], row["bucket"], row["resized"], row["crop"]) for row in rows}
    assert found == expected


def png_header(width: int, height: int) -> bytes:
    """A PNG up to where its pixels would begin."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.torch
def test_bounds_that_contradict_each_other_are_refused_everywhere(
    check: Any, dataset: Path, tmp_path: Path
) -> None:
    """In lora-check's report too, and by lora-train with the place where they stand."""
    pytest.importorskip("torch")
    words = ("--min-bucket-reso", "512", "--max-bucket-reso", "256")
    done = check(dataset, *words)
    assert (done.code, "min_bucket_reso: 512 is above max_bucket_reso, 256" in done.err) == (2, True)
    # Where no bounds count, none contradict each other; the default lower one gives way.
    assert check("buckets", dataset, "--resolution", 64, "--max-bucket-reso", 128).code == 0
    assert check("buckets", dataset, *words, "--bucket-no-upscale", "--bucket-reso-steps", 8).code == 0
    file = tmp_path / "dataset.toml"
    file.write_text(
        "[[datasets]]\nmin_bucket_reso = 512\nmax_bucket_reso = 256\n"
        f"[[datasets.subsets]]\nimage_dir = '{dataset / '3_maid'}'\n"
    )
    train = ["--base", "demo", "--dry_run"]
    for given, place in (
        (
            [
                "--train_data_dir",
                str(dataset),
                *(word.replace("-bucket-reso", "_bucket_reso") for word in words),
            ],
            "",
        ),
        (["--dataset_config", str(file)], f"{file}: datasets[0]: "),
    ):
        told = CliRunner().invoke(lora_train, [*train, *given])
        assert told.exit_code == 2
        assert f"{place}min_bucket_reso: 512 is above max_bucket_reso, 256; lower" in told.stderr
