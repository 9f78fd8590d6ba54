"""``lora-inspect curves``: metrics and TensorBoard files of one or several runs, in the terminal and as pictures."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from lorapipe_inspect.curves.charts import charts_of, smoothed
from lorapipe_inspect.curves.read import Curve, Run, read_run
from support.commands import run

SVG = "{http://www.w3.org/2000/svg}"


def rows_of(steps: int, level: float = 0.1) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "seconds": step / 2,
            "loss/current": level + (0.05 if step % 2 else -0.05),
            "loss/average": level,
            "grad_norm": 1.0 / step,
            "lr/unet": 1e-4 * step / steps,
            **({"loss/validation/epoch_average": level / step} if step % 10 == 0 else {}),
        }
        for step in range(1, steps + 1)
    ]


def write_metrics(path: Path, rows: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_events(folder: Path, rows: list[dict[str, float]]) -> Path:
    """As TensorBoard's own writer has it."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = writer.EventFileWriter(str(folder))
    for row in rows:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items() if tag != "step"]
        file.add_event(Event(step=int(row["step"]), summary=Summary(value=values)))
    file.close()
    (path,) = folder.iterdir()
    return path


def test_in_the_terminal(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "mina.metrics.jsonl", rows_of(200))
    done = run("lora-inspect", "curves", path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    titles = [
        line for line in lines if line and not line.startswith(" ") and "|" not in line and "/" not in line
    ]
    assert titles == [
        "learning rate",
        "loss, means of 4 steps",
        "validation loss",
        "gradient norm, means of 4 steps",
        "grad_norm",
    ]
    assert sum(line.split() == ["0", "200"] for line in lines) == 4
    only = run("lora-inspect", "curves", path, "--only", "loss", "--smooth", "1").stdout
    assert only.splitlines()[:2] == ["loss", "loss/current"]


def test_losses_beside_the_loss_have_charts_of_their_own(tmp_path: Path) -> None:
    """The term of preservation, at one step in two, and the validation loss at each of its timesteps."""
    rows = rows_of(40)
    for row in rows[::2]:
        row["loss/preservation"] = 0.01 / row["step"]
    for row in rows[9::10]:
        row |= {f"loss/validation/epoch_at_{time}": time / 1e4 for time in (200, 800)}
        row["loss/validation/epoch_divergence"] = 0.1
        row |= {"figures/selectivity": 3.0, "figures/passes": 1.0}
    done = run("lora-inspect", "curves", write_metrics(tmp_path / "mina.metrics.jsonl", rows))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    titles = ["loss", "loss of preservation", "validation loss", "validation loss by timestep", "selectivity"]
    assert [line for line in lines if line in titles] == titles
    assert {"epoch_at_200", "epoch_at_800"} <= set(done.stdout.split())


def test_both_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    rows = rows_of(30)
    metrics = read_run(write_metrics(tmp_path / "metrics.jsonl", rows))
    events = read_run(write_events(tmp_path / "logs", rows))
    assert metrics.curves.keys() == events.curves.keys() - {"seconds"}
    for tag, curve in metrics.curves.items():
        assert curve.steps == events.curves[tag].steps
        assert curve.values == pytest.approx(events.curves[tag].values, rel=1e-6)  # float32 in the events


def test_tensors_of_newer_writers(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    file = writer.EventFileWriter(str(tmp_path / "logs"))
    tensors = [
        TensorProto(dtype=1, float_val=[0.5]),
        TensorProto(dtype=1, tensor_content=struct.pack("<f", 0.25)),
    ]
    for step, tensor in enumerate([*tensors, TensorProto(dtype=7, string_val=[b"text"])]):
        file.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="a", tensor=tensor)])))
    file.close()
    (path,) = (tmp_path / "logs").iterdir()
    assert read_run(path).curves == {"a": Curve([0, 1], [0.5, 0.25])}


def test_a_folder_and_several_runs(tmp_path: Path) -> None:
    write_metrics(tmp_path / "slow/mina.metrics.jsonl", rows_of(100, 0.2))
    write_metrics(tmp_path / "fast/mina.metrics.jsonl", rows_of(50, 0.1))
    (tmp_path / "fast/other.jsonl").write_text("{}\n")
    output = tmp_path / "runs.svg"
    done = run("lora-inspect", "curves", tmp_path / "slow", tmp_path / "fast", "-o", output, "--only", "loss")
    assert (done.returncode, done.stdout) == (0, "")
    root = ElementTree.parse(output).getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[0] == "loss, means of 2 steps"
    assert texts[-2:] == ["slow/mina", "fast/mina"]
    long, short = (line.attrib["points"].split() for line in root.iter(f"{SVG}polyline"))
    assert (len(long), len(short)) == (100, 50)
    # The shorter run ends in the middle.
    assert float(short[-1].split(",")[0]) == pytest.approx((90 + 936) / 2, abs=1)
    assert run("lora-inspect", "curves", tmp_path / "slow", "-o", output).returncode == 1
    png = tmp_path / "runs.png"
    assert run("lora-inspect", "curves", tmp_path / "slow", "-o", png).returncode == 0
    with Image.open(png) as picture:
        assert picture.size == (960, 4 * 480)


def test_what_is_not_a_number_is_told(tmp_path: Path) -> None:
    rows = rows_of(10)
    rows[4]["loss/current"] = math.nan
    rows[5]["loss/current"] = math.inf
    path = write_metrics(tmp_path / "metrics.jsonl", rows)
    with path.open("a") as file:
        file.write('{"step": 11, "loss/cur')
    done = run("lora-inspect", "curves", path, "--json")
    assert done.returncode == 0
    assert "loss/current: 2 values are NaN or infinite, and left out" in done.stderr
    assert "line 11 is cut short" in done.stderr
    curves = json.loads(done.stdout)["curves"]
    assert curves["loss/current"][0] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert "seconds" not in curves


def test_a_run_that_went_on_counts_its_later_rows(tmp_path: Path) -> None:
    path = write_metrics(
        tmp_path / "metrics.jsonl", [{"step": step, "a": value} for step, value in ((1, 1), (2, 2), (2, 5))]
    )
    assert read_run(path).curves["a"] == Curve([1, 2], [1, 5])


def test_runs_that_record_different_losses_stand_on_one_chart() -> None:
    ours = Run(Path("a"), {"loss/current": Curve([1, 2], [1, 2]), "loss/average": Curve([1], [1])})
    theirs = Run(
        Path("b"),
        {"loss/average": Curve([1, 2], [3, 4]), "lr/d*lr/unet": Curve([1], [1]), "lr/unet": Curve([1], [9])},
    )
    rate, loss = charts_of([ours, theirs], ["a", "b"], ["rate", "loss"], [], 1)
    assert [(line.name, list(line.values)) for line in loss.lines] == [
        ("a current", [1, 2]),
        ("b average", [3, 4]),
    ]
    assert [list(line.values) for line in rate.lines] == [[1]]


def test_running_means() -> None:
    assert smoothed([1, 2, 3, 10], 2) == pytest.approx([1, 1.5, 2.5, 6.5])


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.jsonl", b"", "has no curves in it"),
        (
            "metrics.jsonl",
            b'{"a": 1}\n',
            'line 1: no row of a run\'s metrics: it has no whole number as "step"',
        ),
        ("metrics.jsonl", b"[1]\n", "line 1: no row"),
        ("metrics.jsonl", b"\xff\xfe\n", "line 1: no row of a run's metrics (not UTF-8)"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n", "nested too deeply"),
        ("events.out.tfevents.1", b"no events file", "no TensorBoard file"),
        ("a\x1b[31m.jsonl", b"x\n", "a\\x1b[31m.jsonl, line 1: no row"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = run("lora-inspect", "curves", tmp_path / name)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_events_file(tmp_path: Path) -> None:
    path = write_events(tmp_path / "logs", rows_of(5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    done = run("lora-inspect", "curves", path)
    assert done.returncode == 0
    assert "record 6 is cut short" in done.stderr
    path.write_bytes(whole)
    damaged(path)
    done = run("lora-inspect", "curves", path)
    assert (done.returncode, "damaged in record 6" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--only", "los"],
            "--only los: none of rate, loss, timesteps, validation, figures, norms, did you mean 'loss'?",
        ),
        (["--tag", "loss/x"], "loss/x: the runs have loss/current"),
        (["--tag", "a", "--only", "loss"], "exclude each other"),
        (["-o", "a.pdf"], "a.pdf: a chart is written as .png or .svg"),
        (["--json", "--smooth", "3"], "goes with no other option"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "empty: has no metrics.jsonl and no TensorBoard files"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, words: list[str], told: str) -> None:
    write_metrics(tmp_path / "metrics.jsonl", rows_of(5))
    (tmp_path / "empty").mkdir()
    done = run("lora-inspect", "curves", "metrics.jsonl", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_broken_run_among_several(tmp_path: Path) -> None:
    good = write_metrics(tmp_path / "a.metrics.jsonl", rows_of(5))
    (tmp_path / "b.metrics.jsonl").write_text("nonsense\n")
    done = run("lora-inspect", "curves", good, tmp_path / "b.metrics.jsonl", "--json")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["file"] == str(good)
