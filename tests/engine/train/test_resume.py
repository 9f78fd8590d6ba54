"""A run that is killed and started again gives bit for bit the network of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.settings import OptimizerSettings  # noqa: E402
from lorapipe_engine.train.optimizers import (  # noqa: E402
    build_optimizer,
    check_arguments,
    rates_of,
    write_rates,
)
from lorapipe_engine.train.results.state import Kept, State, save_state, take_up  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import kill_often, stopped_after  # noqa: E402

FIXED = (
    "--base demo --max_token_length 75 --network_dim 2 --device cpu --output_name net --save_precision float "
    "--state_interval 0 --seed 5 --shuffle_caption --caption_tag_dropout_rate 0.2 --network_dropout 0.1 "
    "--network_args rank_dropout=0.1 module_dropout=0.1 conv_dim=1 --flip_aug --gradient_accumulation_steps 2"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes, so that there are several buckets."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    folder = draw_concept(root, TRIGGER, pictures=6, repeats=2, seed=3)
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(path) as picture:
            sized = picture.resize([(64, 64), (96, 64), (64, 96)][index % 3])
        if index % 2:  # half of it counts where transparency is a mask
            sized.putalpha(Image.linear_gradient("L").resize(sized.size))
        sized.save(path)
    return root


def words(data: Path, out: Path, *more: str) -> list[str]:
    sizes = [
        "--resolution",
        "64",
        "--min_bucket_reso",
        "32",
        "--max_bucket_reso",
        "128",
        "--bucket_reso_steps",
        "32",
    ]
    return [*FIXED.split(), *sizes, "--train_data_dir", str(data), "--output_dir", str(out), *more]


def run(data: Path, out: Path, *more: str) -> int:
    """Run in this process; the exit status."""
    return status_of(lora_train, *words(data, out, *more))


# How often each run is killed: a few times, or as often as this variable says (20 for the full count).
KILLS = int(os.environ.get("LORAPIPE_KILLS", "3"))
KILLED = {
    "AdamW": ["--optimizer_type", "AdamW", "--learning_rate", "1e-2"],
    "Prodigy": ["--optimizer_type", "Prodigy", "--learning_rate", "1"],
    # Regularisation, masks, crops and colours drawn anew, validation between the steps, a rate for each block and role.
    "everything": [
        *("--optimizer_type", "AdamW", "--unet_lr", "1e-2", "--text_encoder_lr", "5e-3"),
        *("--reg_data_dir", "REG", "--masked_loss", "--alpha_mask", "--random_crop", "--color_aug"),
        *("--validation_split", "0.2", "--validate_every_n_steps", "4", "--scale_weight_norms", "1"),
        *("--caption_dropout_rate", "0.1", "--keep_tokens", "1", "--train_batch_size", "2"),
        *("--network_args", "loraplus_lr_ratio=4"),
        *("down_lr_weight=cosine+.25", "mid_lr_weight=0.5"),
    ],
    # Latents and text states from a cache on disk, which is killed while it is written too.
    "cached text": [
        *(
            "--optimizer_type",
            "AdamW",
            "--unet_lr",
            "1e-2",
            "--network_train_unet_only",
            "--train_batch_size",
            "2",
        ),
        *("--cache_text_encoder_outputs_to_disk", "--cache_latents_to_disk", "--text_cache_variants", "3"),
        *("--caption_dropout_rate", "0.2", "--cache_dir", "CACHE"),
    ],
}


@pytest.fixture(scope="module")
def regularisation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=3, seed=8)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", KILLED)
def test_killed_again_and_again(case: str, data: Path, regularisation: Path, tmp_path: Path) -> None:
    if case == "Prodigy":
        pytest.importorskip("pytorch_optimizer")
    epochs = 2 + KILLS * 2 // 5 * (2 if case == "everything" else 1)
    more = ["--max_train_epochs", str(epochs), *KILLED[case]]
    more = [str(regularisation) if word == "REG" else word for word in more]
    calm_words, killed_words = (
        [word.replace("CACHE", str(tmp_path / name)) for word in more] for name in "ab"
    )
    assert run(data, tmp_path / "calm", *calm_words) == 0
    kill_often(words(data, tmp_path / "killed", *killed_words), kills=KILLS, seconds=60 + 40 * KILLS)
    calm, killed = (load_file(tmp_path / name / "net.safetensors") for name in ("calm", "killed"))
    assert calm.keys() == killed.keys()
    for key in calm:
        assert torch.equal(calm[key], killed[key]), key
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "calm")
    assert not (tmp_path / "killed" / "net.state").exists()


@pytest.mark.parametrize(("given", "found"), [(None, "AUTO"), ("AVX2", "AVX2")])
def test_products_are_the_same_on_a_busy_machine(given: str | None, found: str) -> None:
    """MKL is told so before it is used; a setting of the user's own stays."""
    outside = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    code = "import os, lorapipe_engine.train.session; print(os.environ['MKL_CBWR'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**outside, **({"MKL_CBWR": given} if given else {})},
    )
    assert done.stdout.strip() == found


def rows_of(out: Path) -> list[dict[str, object]]:
    """What was recorded of every step, but for the clock."""
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def stopped(data: Path, tmp_path: Path) -> Path:
    """A run that was stopped by Ctrl-C after three steps."""
    with stopped_after(3):
        assert run(data, tmp_path / "out", "--max_train_steps", "6") == 130
    return tmp_path / "out"


def test_interrupted_goes_on(stopped: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (stopped / "net.state").exists()
    assert run(data, stopped, "--max_train_steps", "6") == 0
    assert "going on after step 3 of 6" in capsys.readouterr().err
    assert not (stopped / "net.state").exists()
    assert run(data, stopped, "--max_train_steps", "6") == 1  # finished: its result is not replaced unasked


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--network_dim", "4"], "network_dim was 2, is 4"),
        (["--learning_rate", "0.5"], "learning_rate was None, is 0.5"),
        (["--max_train_steps", "9"], "max_train_steps was 6, is 9"),
    ],
)
def test_another_run_is_not_gone_on_with(
    more: list[str], told: str, stopped: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (stopped / "net.state").read_bytes()
    for dry in ([], ["--dry_run"]):
        assert run(data, stopped, "--max_train_steps", "6", *more, *dry) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert told in error
        assert "--overwrite" in error
    assert (stopped / "net.state").read_bytes() == before


def test_a_dry_run_tells_whether_the_run_goes_on(
    stopped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, stopped, "--max_train_steps", "6", "--dry_run") == 0
    assert "goes on from its state" in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(data, other)
    next(other.rglob("*.txt")).write_text("another caption")
    assert run(other, stopped, "--max_train_steps", "6", "--dry_run") == 2
    assert "this run began with other pictures, captions or repeats" in capsys.readouterr().err
    assert run(other, stopped, "--max_train_steps", "6", "--dry_run", "--overwrite") == 0
    assert "from the start" in capsys.readouterr().out


def test_a_run_that_goes_on_with_another_rate_has_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ("--lr_scheduler", "constant", "--text_encoder_lr", "1e-3")
    begun = tmp_path / "begun"
    more = ("--unet_lr", "1e-2", "--save_state_on_train_end")
    assert run(data, begun, "--max_train_steps", "2", *fixed, *more) == 0
    on = ("--max_train_steps", "4", "--resume", str(begun / "net-end.state"), *fixed)
    assert run(data, tmp_path / "on", *on, "--unet_lr", "1e-4") == 0
    assert "unet_lr was 0.01, is 0.0001" in capsys.readouterr().err
    rates = [(row["step"], row["lr/textencoder"], row["lr/unet"]) for row in rows_of(tmp_path / "on")]
    assert rates == [(step, pytest.approx(1e-3), pytest.approx(1e-4)) for step in (3, 4)]
    capsys.readouterr()
    assert run(data, tmp_path / "less", *on, "--unet_lr", "0") == 2
    said = capsys.readouterr().err
    assert "resume: the state trains textencoder, unet, and this run textencoder; a rate of 0" in said


def test_rates_of_a_state_take_the_place_of_those_that_a_graph_reads(tmp_path: Path) -> None:
    """A tensor in their place would be read once, when the step is captured."""

    def made() -> Kept:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        network = attach([model], [Target("unet", "one", model[0])], NetworkPlan(rank=2, alpha=1.0))
        settings = OptimizerSettings(optimizer_type="AdamW", learning_rate=1e-3)
        rates = rates_of(settings, tuple(network.groups))
        optimizer = build_optimizer("AdamW", check_arguments("AdamW", ()), network.groups, rates)
        return Kept(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), None)

    one, other = made(), made()
    write_rates(one.optimizer, [5e-4])
    save_state(tmp_path / "net.state", State(began=0.0), one, {})
    rate = other.optimizer.param_groups[0]["lr"]
    take_up(tmp_path / "net.state", {}, other)
    assert isinstance(rate, torch.Tensor)
    assert other.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(5e-4)


def test_other_pictures(
    stopped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_concept(tmp_path / "other", TRIGGER, pictures=5, repeats=2, seed=4)
    assert run(tmp_path / "other", stopped, "--max_train_steps", "6") == 2
    assert "other pictures" in capsys.readouterr().err
    assert run(tmp_path / "other", stopped, "--max_train_steps", "6", "--overwrite") == 0


def test_no_state(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "odd.state"
    odd.write_bytes(b"nothing")
    assert run(data, tmp_path / "out", "--resume", str(odd)) == 2
    assert "odd.state" in capsys.readouterr().err
    assert run(data, tmp_path / "out", "--resume", str(tmp_path / "missing.state")) == 2
    assert "no such file" in capsys.readouterr().err
