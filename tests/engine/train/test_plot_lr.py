"""``lora-train --plot-lr``: curves in the terminal and as pictures, without a base model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lorapipe_engine.cli import lora_train
from lorapipe_engine.pictures.charts import Line, text_chart

SVG = "{http://www.w3.org/2000/svg}"


def plot(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(lora_train, ["--plot-lr", *words])
    return found.exit_code, found.stdout, found.stderr


def test_in_the_terminal() -> None:
    code, out, _ = plot("--max_train_steps", "1600", "--lr_scheduler", "cosine", "--learning_rate", "1e-4")
    assert code == 0
    title, *rows = out.splitlines()
    assert title == "AdamW, cosine, warm-up 80, 1600 steps"
    assert rows[0] == "te1, unet: up to 0.0001"
    assert rows[-1].split() == ["0", "1600"]
    # The highest point stands near the left, after the warm-up; the last column is at the bottom.
    assert rows[1].startswith("0.0001 |")
    assert rows[1].rstrip()[-1] != "|"
    assert len(rows[1].rstrip()) < len(rows[-3].rstrip())


@pytest.mark.slow
def test_neither_torch_nor_models_are_imported() -> None:
    code = (
        "import sys\n"
        "from lorapipe_engine.cli import lora_train\n"
        "try: lora_train.main(['--plot-lr', '--lr_scheduler', 'linear'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'PIL') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_letters_where_there_is_no_unicode() -> None:
    chart = text_chart([Line("a", [0, 1, 2, 3]), Line("b", [3, 3, 3, 3])], columns=40, rows=4, braille=False)
    assert chart.isascii()
    rows = chart.splitlines()
    assert rows[:2] == ["a (*)", "b (o)"]
    assert set(rows[2].partition("|")[2]) == {"o"}


def test_every_value_of_a_long_curve_shows() -> None:
    values = [0.0] * 10_000
    values[5_000] = 1.0  # a single step
    chart = text_chart([Line("a", values)], columns=60, rows=5, braille=False)
    assert "*" in chart.splitlines()[1]


def test_as_svg(tmp_path: Path) -> None:
    target = tmp_path / "rates.svg"
    code, out, _ = plot(str(target), "--max_train_steps", "400", "--unet_lr", "1e-4")
    assert (code, out.strip()) == (0, str(target))
    lines = ElementTree.parse(target).getroot().findall(f"{SVG}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, pair.split(","))) for pair in lines[1].attrib["points"].split()]
    assert len(points) == 400
    assert min(points, key=lambda point: point[1]) == points[20]  # y grows downwards; 5 % of 400 steps


@pytest.mark.slow
def test_as_png(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    target = tmp_path / "rates.png"
    code, _, _ = plot(str(target), "--lr_scheduler", "constant", "--max_train_steps", "5000")
    assert code == 0
    with image.open(target) as picture:
        assert picture.size == (960, 480)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10_000)}
    assert (0x1F, 0x6F, 0xB4) in colours
    code, _, err = plot(str(target))
    assert code == 1
    assert "exists already" in err
    assert plot(str(target), "--overwrite")[0] == 0


def test_adafactor_shows_its_own_rate() -> None:
    code, out, err = plot("--optimizer_type", "AdaFactor", "--lr_scheduler", "cosine")
    assert code == 0
    assert "times the size of each tensor" in out
    assert "cosine is not used" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rates.jpg",), ".png or .svg"),
        (("--max_train_epochs", "3"), "--train_data_dir"),
        (("--lr_scheduler", "cosin"), "did you mean cosine"),
        (("--optimizer_type", "Prodigy", "--unet_lr", "1", "--text_encoder_lr", "0.5"), "must be equal"),
    ],
)
def test_what_cannot_be_drawn(words: tuple[str, ...], message: str) -> None:
    code, _, err = plot(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
