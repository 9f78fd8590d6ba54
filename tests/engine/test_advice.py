"""Advice before a run: a run that earns each line, one that does not; and the configuration that --suggest prints."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapipe_engine.advice.advice import ROWS, Planned, advice
from lorapipe_engine.advice.suggest import VALUES_OF_RANK
from lorapipe_engine.cli import lora_train
from lorapipe_engine.datasets.leading import leading_tag
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.models.families import get_family
from lorapipe_engine.settings import (
    DataSettings,
    LossSettings,
    ModelSettings,
    NetworkSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
)

TAGS = ("cat", "tree", "rain", "hat")
STEPS = 4000


def write_dataset(root: Path, captions: list[str], folder: str = "2_mayuri", side: int = 64) -> Path:
    (root / folder).mkdir(parents=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (side, side), (number, 90, 20)).save(root / folder / f"{number}.png")
        (root / folder / f"{number}.txt").write_text(caption)
    return root


@pytest.fixture(scope="module")
def triggered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures whose captions begin with one word."""
    captions = [f"mayuri, {TAGS[n % 4]}, {TAGS[(n + 1) % 4]}" for n in range(10)]
    return write_dataset(tmp_path_factory.mktemp("triggered"), captions)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures whose captions begin as they do everywhere."""
    return write_dataset(
        tmp_path_factory.mktemp("plain"), [f"1girl, {TAGS[n % 4]}, night" for n in range(10)]
    )


def planned(folder: Path, steps: int = STEPS, **options: Any) -> Planned:
    """A run of these options."""

    def part(kind: type) -> Any:
        return kind(**{name: value for name, value in options.items() if name in kind.__dataclass_fields__})

    data = replace(part(DataSettings), train_data_dir=folder, resolution=(64, 64), min_bucket_reso=64)
    settings = TrainSettings(
        model=part(ModelSettings),
        data=data,
        network=part(NetworkSettings),
        optimizer=part(OptimizerSettings),
        loss=part(LossSettings),
        run=part(RunSettings),
    )
    return Planned(settings=settings, dataset=scan(data), steps=steps)


# (the row, what a line of it says, options that earn it, options that do not)
EARNED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("low_alpha", "to 0.016 of itself", {"network_alpha": 1.0, "network_dim": 64}, {"network_alpha": 16.0}),
    # Alpha scales nothing of these.
    *(
        (
            "low_alpha",
            "to 0.016 of itself",
            {"network_alpha": 1.0, "network_dim": 64, "algorithm": "loha"},
            {"network_alpha": 1.0, "network_dim": 64, **other},
        )
        for other in (
            {"algorithm": "full"},
            {"algorithm": "IA3"},
            {"algorithm": "boft"},
            {"algorithm": None, "network_module": "networks.oft"},
            {"algorithm": None, "network_module": "lycoris.kohya", "network_args": ("factor=8", "algo=lokr")},
        )
    ),
    (
        "low_alpha",
        "raise unet_lr up to 1e-3, or network_alpha to 16",
        {"network_alpha": 8.0, "network_dim": 64},
        {"network_alpha": 1.0, "network_dim": 64, "unet_lr": 1e-3},
    ),
    (
        "low_alpha",
        "at rate 0.0001",
        {"network_alpha": 2.0, "network_dim": 32, "optimizer_type": "AdamW8bit"},
        {"network_alpha": 2.0, "network_dim": 32, "optimizer_type": "Prodigy"},
    ),
    (
        "length_for_kind",
        "4,000 pictures shown in the run are few for a style, which takes 8,000 to 12,000 and else learns too little",
        {"kind": "style"},
        {"kind": "character"},
    ),
    (
        "length_for_kind",
        "are many for a character, which takes 2,000 to 7,000 and else burns",
        {"kind": "character", "gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 4},
    ),
    ("large_batch", "large for 10 pictures", {"train_batch_size": 4}, {"train_batch_size": 2}),
    (
        "trigger_in_front",
        "begin with 'mayuri', and shuffle_caption moves it",
        {"shuffle_caption": True},
        {"shuffle_caption": True, "keep_tokens": 1},
    ),
    (
        "trigger_in_front",
        "stand in one order",
        {},
        {"shuffle_caption": True, "keep_tokens_separator": "|||"},
    ),
    (
        "patience_beyond_the_end",
        "early_stop 5: the run is measured 2 times, so it cannot end early",  # of 200 epochs
        {"early_stop": 5, "early_stop_by": ("figures",), "save_every_n_epochs": 150},
        {"early_stop": 5, "early_stop_by": ("figures",)},
    ),
    (
        "patience_beyond_the_end",
        "early_stop 2: the run is measured once",
        {"early_stop": 2, "validate_every_n_steps": 3000},
        {"early_stop": 2, "validate_every_n_steps": 1000},
    ),
]


@pytest.mark.parametrize(("row", "words", "earns", "does_not"), EARNED)
def test_a_run_that_earns_a_line_and_one_that_does_not(
    triggered: Path, row: str, words: str, earns: dict[str, Any], does_not: dict[str, Any]
) -> None:
    (tell,) = (one for one in ROWS if one.__name__ == row)
    (line,) = tell(planned(triggered, **earns))
    assert words in line
    assert line in advice(planned(triggered, **earns))
    assert list(tell(planned(triggered, **does_not))) == []


def test_every_row_is_tried() -> None:
    assert {row.__name__ for row in ROWS} == {row for row, *_ in EARNED}


def test_what_begins_captions_by_habit_is_no_trigger(plain: Path) -> None:
    assert advice(planned(plain, shuffle_caption=True)) == []
    assert leading_tag(["solo, cat"] * 9) is None
    assert leading_tag(["mayuri, cat"] * 4) is None
    assert leading_tag(["Shiina_Mayuri, cat", *["shiina mayuri, hat"] * 4]) == "Shiina_Mayuri"


def test_a_dry_run_says_it_once(triggered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lorapipe_demo")
    words = [
        "--base",
        "demo",
        "--resolution",
        "64",
        "--device",
        "cpu",
        "--output_dir",
        str(tmp_path),
        "--dry-run",
    ]
    more = ["--kind", "style", "--network_alpha", "1", "--network_dim", "64", "--keep_tokens", "1"]
    with pytest.raises(SystemExit) as ended:
        lora_train.main([str(triggered), *words, *more])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert said.count("network_alpha 1 of network_dim 64") == 1
    assert said.count("are few for a style") == 1
    assert "begin with" not in said


# ------------------------------------------------------------------------ half precision


def test_values_that_half_precision_loses() -> None:
    underflow = pytest.importorskip("lorapipe_engine.train.results.underflow")
    small = np.full((4, 4), 1e-9, np.float32)
    large = np.full((4, 4), 1e-3, np.float32)
    note = underflow.underflow_note([small, large, np.zeros(100, np.float32)])
    assert note.startswith("16 of 32 values are too small for fp16 and become zero in the file (50%)")
    assert underflow.underflow_note([large, np.zeros(100, np.float32)]) is None


# ------------------------------------------------------------------------ --suggest


def suggested(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """The options that are suggested, and the file."""
    with pytest.raises(SystemExit) as ended:
        lora_train.main(["--suggest", *words])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    tables = tomllib.loads(captured.out)
    return {name: value for table in tables.values() for name, value in table.items()}, captured.out


def test_a_suggestion_is_a_configuration_with_reasons(
    triggered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, text = suggested(
        capsys, str(triggered), "--kind", "character", "--vram", "12", "--network_dim", "16"
    )
    assert options["train_data_dir"] == str(triggered)
    assert (options["vram"], options["network_dim"], options["network_alpha"]) == ("12", 16, 4)
    assert (options["shuffle_caption"], options["keep_tokens"]) == (True, 1)
    assert options["max_train_epochs"] == 200
    assert options["train_batch_size"] == 2
    assert options["bucket_no_upscale"] is True
    lines = text.splitlines()
    for number, line in enumerate(lines):
        assert " = " not in line or line.startswith("#") or lines[number - 1].startswith("# ")
    # The file is taken, with another option beside it.
    file = tmp_path / "mayuri.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        lora_train.main(["--config_file", str(file), "--print_config"])
    assert ended.value.code == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert all(
        options[name] == value for table in shown.values() for name, value in table.items() if name in options
    )


def test_a_style_is_suggested_otherwise(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, text = suggested(capsys, str(plain), "--kind", "style")
    assert options["network_args"] == ["conv_dim=32", "conv_alpha=32"]
    assert options["network_alpha"] == options["network_dim"] == 64
    assert options["lr_scheduler"] == "cosine_warm_restarts"
    assert options["keep_tokens"] == 0
    assert "vram" not in options
    assert "75 to 150 pictures are usual for a style" in text
    prodigy, _ = suggested(capsys, str(plain), "--kind", "style", "--optimizer_type", "Prodigy")
    assert (prodigy["learning_rate"], prodigy["lr_scheduler"], "unet_lr" in prodigy) == (
        1.0,
        "constant",
        False,
    )


def test_sentences_are_not_shuffled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = ["mayuri stands under an old tree and looks at the rain"] * 6
    options, _ = suggested(capsys, str(write_dataset(tmp_path, captions)), "--kind", "character")
    assert options["shuffle_caption"] is False


def test_the_base_decides_resolution_and_rank(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lorapipe_demo")
    options, text = suggested(capsys, str(plain), "--kind", "character", "--base", "demo")
    assert options["resolution"] == [64, 64]
    assert "SD 1.x is taken here" not in text
    assert options["text_encoder_lr"] == [5e-5]
    unknown, text = suggested(capsys, str(plain), "--kind", "character")
    assert "SD 1.x is taken here" in text
    assert "text_encoder_lr" not in unknown
    assert "files of 72 MiB in half precision" in text


@pytest.mark.parametrize(
    "words", [[], ["--kind", "character", "--dry-run"], ["--kind", "character", "--doctor"], ["--json"]]
)
def test_what_a_suggestion_needs(plain: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lora_train.main(["--suggest", str(plain), *words])
    assert ended.value.code == 2


@pytest.mark.slow
def test_sizes_are_those_of_the_published_layers() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from support.full_bases import CLIP_L, OPENCLIP_H, UNETS

    def values(module: Any) -> int:
        if isinstance(module, torch.nn.Linear):
            return int(module.in_features + module.out_features)
        return int(module.in_channels + module.out_channels) if isinstance(module, torch.nn.Conv2d) else 0

    for family, name in (("sd1", "sd15"), ("sd2", "sd21"), ("sdxl", "sdxl")):
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**UNETS[name])
        blocks = [m for m in unet.modules() if type(m).__name__ == "Transformer2DModel"]
        assert (
            sum(values(layer) for block in blocks for layer in block.modules()) == VALUES_OF_RANK[family][0]
        )
    for family, encoder in (("sd1", CLIP_L), ("sd2", OPENCLIP_H)):
        width, inner = encoder["hidden_size"], encoder["intermediate_size"]
        assert VALUES_OF_RANK[family][1] == encoder["num_hidden_layers"] * (8 * width + 2 * (width + inner))
    # 162 MiB for SDXL's rank of 32, as the page of training says.
    assert round(sum(VALUES_OF_RANK["sdxl"]) * 2 * get_family("sdxl").rank / 2**20) == 162
