"""``--early_stop_by figures``: cells drawn after each saved epoch, judged by lora-grid; where the run ends, and what is
kept."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")
pytest.importorskip("PIL")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.command.process.programs import Ran, find_program, run_program  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.settings.early_stop import WORDS, ByFigures, read_early_stop_by  # noqa: E402
from lorapipe_engine.train import judging  # noqa: E402
from lorapipe_engine.train.judging import Verdict  # noqa: E402
from lorapipe_inspect.grid.settings import BestSettings, FigureSettings  # noqa: E402

GRID = find_program("lora-grid")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(GRID is None, reason="lora-grid is not installed beside this Python"),
]

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_dim 2 --lr_scheduler constant --train_batch_size 2 --state_interval 0 --seed 4"
)
STILL = ["--unet_lr", "1e-30", "--text_encoder_lr", "1e-30"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=2, repeats=1, seed=3)
    # Two steps of the sampler show as much as is needed here.
    (root / "prompts.txt").write_text(f"{TRIGGER}, 1girl, tea --w 32 --h 32 --s 2 --d 7\na red car\n")
    return root


def train(data: Path, out: Path, *more: object) -> int:
    words = [*FIXED.split(), "--train_data_dir", str(data), "--output_dir", str(out)]
    if "--early_stop_by" not in more:
        words += ["--early_stop_by", "figures"]
    words += ["--sample_prompts", str(data / "prompts.txt"), *map(str, more)]
    with pytest.raises(SystemExit) as stop:
        lora_train.main(words)
    return int(stop.value.code or 0)


def net(path: Path) -> dict[str, Any]:
    return load_file(path)


def is_same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.equal(first[key], second[key]) for key in first | second)


def curve(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["figures/selectivity"]) for row in rows if "figures/selectivity" in row]


def cells_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "net-judged" / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def told_of(row: dict[str, Any]) -> dict[str, Any]:
    """A record without what is another's in another run."""
    return {name: value for name, value in row.items() if name not in ("path", "run")}


# ------------------------------------------------------------------------------------------------- runs


def test_it_stops_where_nothing_gets_better_and_goes_on_bit_for_bit(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that learns nothing is at its best after the first epoch. Interrupted while an epoch is judged, and
    where lora-grid fails, the same command ends the same."""
    words = [*STILL, "--max_train_epochs", 9, "--early_stop", 2]
    calm, again = tmp_path / "calm", tmp_path / "again"
    assert train(data, calm, *words) == 0
    names = sorted(path.name for path in calm.glob("*.safetensors"))
    kinds = ("-000001", "-000002", "-000003", "-best", "")
    assert names == [f"net{kind}.safetensors" for kind in kinds]
    assert is_same(calm / "net-best.safetensors", calm / "net-000001.safetensors")
    with open_tensors(calm / "net-best.safetensors") as file:
        assert (file.metadata["ss_epoch"], file.metadata["ss_steps"]) == ("1", "1")
    assert [step for step, _ in curve(calm)] == [1, 2, 3]
    assert len({value for _, value in curve(calm)}) == 1
    said = capfd.readouterr()
    assert str(calm / "net-best.safetensors") in said.out.splitlines()
    real, count, what = run_program, 0, "interrupt"

    def run(*args: Any, **more: Any) -> Ran:
        nonlocal count
        count += 1
        if count == 3 and what == "interrupt":
            raise KeyboardInterrupt
        ran = real(*args, **more)
        return replace(ran, status=3, told="lora-grid: error: no room\n") if count == 3 else ran

    with monkeypatch.context() as patch:
        patch.setattr(judging, "run_program", run)
        assert train(data, again, *words) == 130
        count, what = 0, "fail"
        assert train(data, again, *words) == 1
    told = capfd.readouterr().err
    assert "early_stop_by: lora-grid: no room" in told
    assert "the last good state is" in told
    assert train(data, again, *words) == 0
    assert curve(again) == curve(calm)
    assert [told_of(row) for row in cells_of(again)] == [told_of(row) for row in cells_of(calm)]
    for one, other in zip(cells_of(again), cells_of(calm), strict=True):
        assert Path(one["path"]).read_bytes() == Path(other["path"]).read_bytes()
    for name in names:
        assert is_same(again / name, calm / name)


def test_the_best_is_what_lora_grid_takes(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With an average, drawn in the network's place; both are kept. The words are those of the command on its cells."""
    words = ["--unet_lr", "2e-2", "--text_encoder_lr", "2e-2", "--max_train_epochs", 4, "--early_stop", 9]
    words += ["--ema_decay", "0.5", "--sample_ema"]
    assert train(data, tmp_path, *words) == 0
    told = capfd.readouterr().err
    assert GRID is not None
    list_of_cells = str(tmp_path / "net-judged" / "cells.jsonl")
    record = json.loads(run_program(GRID, [list_of_cells, "--best", "--json", "--trigger", TRIGGER]).output)
    values = {row["name"]: row["value"] for row in record["best"]["values"]}
    assert [value for _, value in curve(tmp_path)] == pytest.approx([*values.values()])
    assert len({*values.values()}) == 4
    taken = record["best"]["name"] or record["best"]["ties"][0]
    epoch = [*values].index(taken) + 1
    with open_tensors(tmp_path / "net-best.safetensors") as file:
        assert file.metadata["ss_epoch"] == str(epoch)
    saved = "net" if epoch == 4 else f"net-{epoch:06d}"
    for kind in ("", "-ema"):
        assert is_same(tmp_path / f"net-best{kind}.safetensors", tmp_path / f"{saved}{kind}.safetensors")
    assert (
        f"best: {tmp_path / 'net-best.safetensors'}, after step {epoch} (epoch {epoch}): selectivity " in told
    )
    for line in record["lines"]:
        assert line in told
    cells = cells_of(tmp_path)
    assert len(cells) == 24 * 5  # the base's, and four epochs'
    assert {(row["size"], row["steps"], row["cfg"]) for row in cells} == {("32x32", 2, 7.5)}
    assert {row["seed"] for row in cells} == set(range(7, 15))
    assert {row["prompt"] for row in cells} == {f"{TRIGGER}, 1girl, tea", "1girl, tea", "a red car"}


def test_it_changes_nothing_of_the_training(data: Path, tmp_path: Path) -> None:
    """Nor is anything drawn where it is not asked for. Text states are cached, the first steps are as ever."""
    words = ["--unet_lr", "1e-3", "--network_train_unet_only", "--cache_text_encoder_outputs"]
    words += ["--max_train_epochs", 2, "--gradient_checkpointing", "--gradient_accumulation_steps", 2]
    words += ["--train_batch_size", 1, "--flow_model", "--preserve", f"trigger={TRIGGER}"]
    assert train(data, tmp_path / "judged", *words, "--early_stop", 5) == 0
    assert train(data, tmp_path / "plain", *words) == 0
    assert is_same(tmp_path / "judged" / "net.safetensors", tmp_path / "plain" / "net.safetensors")
    assert not (tmp_path / "plain" / "net-judged").exists()
    assert not (tmp_path / "plain" / "net-best.safetensors").exists()


def test_an_encoder_judges_by_held_out_pictures(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    draw_concept(tmp_path / "kept", TRIGGER, pictures=2, repeats=1, seed=9)
    words = ["--early_stop", 1, "--early_stop_by", "figures", "encoder=demo", f"held_out={tmp_path / 'kept'}"]
    assert train(data, tmp_path / "out", *STILL, "--max_train_epochs", 3, *words) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/net.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "figures/encoder" in row] == [1, 2]


def test_a_run_that_goes_on_elsewhere_looks_anew(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*STILL, "--early_stop", 5]
    one = tmp_path / "one"
    assert train(data, one, *words, "--max_train_epochs", 2, "--save_state_on_train_end") == 0
    capfd.readouterr()
    more = ["--max_train_epochs", 4, "--resume", one / "net-end.state"]
    assert train(data, tmp_path / "two", *words, *more) == 0
    told = capfd.readouterr().err
    assert "net-best.safetensors is not there, so the best network is looked for from here on" in told
    assert "has no cells of these prompts from epoch 1, 2, so they are not judged" in told
    assert [step for step, _ in curve(tmp_path / "two")] == [3, 4]
    assert is_same(tmp_path / "two" / "net-best.safetensors", tmp_path / "two" / "net-000003.safetensors")


# ------------------------------------------------------------------------------------------------- what lora-grid says


def record_of(values: list[float], failed: tuple[int, ...], ties: tuple[int, ...], taken: int | None) -> Any:
    return {
        "networks": [
            {"name": f"n{epoch}", "values": {"file": f"net-{epoch}"}} for epoch in range(1, len(values) + 1)
        ],
        "best": {
            "figure": "selectivity",
            "name": None if taken is None else f"n{taken}",
            "ties": [f"n{epoch}" for epoch in ties],
            "values": [{"name": f"n{place}", "value": value} for place, value in enumerate(values, 1)],
            "failed": {f"n{epoch}": ["chroma"] for epoch in failed},
        },
        "lines": ["take it"],
    }


@pytest.mark.parametrize(
    ("values", "failed", "ties", "taken", "best", "worse", "kept"),
    [
        ([1.0, 3.0, 2.0], (), (2,), 2, 2, 1, 2),
        ([1.0, 2.9, 3.0], (), (2, 3), 2, 3, 0, 2),  # as good as the highest, and earlier
        ([1.0, 1.0, 1.0], (), (1, 2, 3), None, 1, 2, 1),  # it cannot tell
        ([1.0, 2.0, 9.0], (3,), (2,), 2, 2, 1, 2),  # burnt
        ([9.0, 9.5], (1, 2), (), None, None, 2, None),
    ],
)
def test_the_highest_that_passes_every_gate_counts(
    values: list[float],
    failed: tuple[int, ...],
    ties: tuple[int, ...],
    taken: int | None,
    best: int | None,
    worse: int,
    kept: int | None,
) -> None:
    epochs = {f"net-{epoch}": epoch for epoch in range(1, len(values) + 1)}
    verdict = Verdict.of(record_of(values, failed, ties, taken), epochs)
    assert (verdict.best, verdict.worse, verdict.kept) == (best, worse, kept)


# ------------------------------------------------------------------------------------------------- what is refused


def test_its_words_are_options_of_lora_grid() -> None:
    known = {field.name for kind in (FigureSettings, BestSettings) for field in fields(kind)}
    assert set(WORDS) <= known
    asked = read_early_stop_by(["figures", "encoder=demo", "held-out=kept", "by=encoder"])
    assert asked == ByFigures((("encoder", "demo"), ("held_out", "kept"), ("by", "encoder")))
    assert asked.options == ["--encoder", "demo", "--held-out", "kept", "--by", "encoder"]
    assert read_early_stop_by([]) is read_early_stop_by(["loss"]) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["figure"], "the first word is loss or figures, not 'figure', did you mean 'figures'?"),
        (["loss", "encoder=a"], "loss takes no further words"),
        (["figures", "encoder"], "is not of the form name=value"),
        (["figures", "encodr=a"], "did you mean 'encoder'?"),
        (["figures", "by=clip", "by=dino"], "by is given twice"),
    ],
)
def test_words_that_mean_nothing(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_early_stop_by(words)
    assert told in str(error.value)


REFUSED = [
    (["--early_stop_by", "figures", "encoder=demo"], "early_stop_by: lora-grid: "),
    (["--early_stop_by", "figures", "by=ccip"], "early_stop_by: lora-grid: --by ccip: "),
    (["--early_stop_by", "figures", "dino=none.onnx", "held_out=none"], "early_stop_by: lora-grid: "),
    (["--save_last_n_epochs", "2"], "save_last_n_epochs removes them"),
    (["--metadata_trigger_phrase", "nobody"], "no caption has the trigger 'nobody'"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[row[1][-20:] for row in REFUSED])
def test_what_cannot_be_judged_is_refused_in_one_line(
    words: list[str], told: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, "--early_stop", 2, *words, "--dry_run") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("lora-train: error: ")
    assert told in lines[0]


def test_without_the_program_or_a_trigger_or_saves(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare" / "1_1girl"
    bare.mkdir(parents=True)
    picture = next((data / f"1_{TRIGGER}").glob("*.png"))
    (bare / picture.name).write_bytes(picture.read_bytes())
    (bare / f"{picture.stem}.txt").write_text("1girl, solo")
    assert train(bare.parent, tmp_path / "out", "--early_stop", 2, "--sample_prompts", "a cat\na dog") == 2
    assert "no word is common enough in the captions to be the trigger" in capfd.readouterr().err
    pairs = tmp_path / "pairs.toml"
    pairs.write_text('[[pairs]]\npositive = "smile"\n')
    words = [*FIXED.split(), "--slider", str(pairs), "--early_stop", "2", "--output_dir", str(tmp_path)]
    words += ["--early_stop_by", "figures"]
    with pytest.raises(SystemExit) as stop:
        lora_train.main(words)
    assert stop.value.code == 2
    assert "a slider has none" in capfd.readouterr().err
    monkeypatch.setattr(judging, "find_program", lambda _: None)
    assert train(data, tmp_path, "--early_stop", 2) == 2
    assert "lora-grid's, which is not installed beside this Python: pip install" in capfd.readouterr().err


def test_alone_it_does_nothing_and_an_earlier_judging_stays(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, "--dry_run") == 0
    assert "early_stop_by does nothing without early_stop" in capfd.readouterr().err
    (tmp_path / "net-judged").mkdir()
    assert train(data, tmp_path, "--early_stop", 2, "--dry_run") == 1
    assert "net-judged exists from an earlier run" in capfd.readouterr().err
