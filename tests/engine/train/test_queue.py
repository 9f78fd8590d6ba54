"""Several runs in one process: each gives, bit for bit, what it gives alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import OutputError  # noqa: E402
from lorapipe_engine.models.bases import demo_base  # noqa: E402
from lorapipe_engine.settings import ModelSettings, RunSettings  # noqa: E402
from lorapipe_engine.train.base import load  # noqa: E402
from lorapipe_engine.train.base.model import BaseModel  # noqa: E402
from lorapipe_engine.train.base.shelf import Shelf, base_key  # noqa: E402
from lorapipe_engine.train.data import prepare  # noqa: E402
from lorapipe_engine.train.results.outputs import check_outputs  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import kill_often  # noqa: E402

KILLS = int(os.environ.get("LORAPIPE_KILLS", "3"))
COMMON = """
pretrained_model_name_or_path = "demo"
resolution = 64
max_train_steps = 4
network_dim = 2
max_token_length = 75
device = "cpu"
save_precision = "float"
save_every_n_steps = 1
validation_split = 0.3
"""
# The second merges a network into the base and has no state when it is killed, the third trains with dropout.
RUNS = {
    "first": "state_interval = 0\n",
    "second": 'network_module = "networks.loha"\nbase_weights = ["WEIGHTS"]\nflip_aug = true\n',
    "third": "state_interval = 0\nseed = 7\ngradient_checkpointing = true\nnetwork_dropout = 0.1\n",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[Path]:
    """The configurations of three runs."""
    root = tmp_path_factory.mktemp("runs")
    text = COMMON + f'train_data_dir = "{data}"\noutput_dir = "{root}"\noutput_name = "weights"\n'
    (root / "weights.toml").write_text(text)
    assert train(root / "weights.toml", "--max_train_steps", "1", "--unet_lr", "1e-2") == 0
    for name, more in RUNS.items():
        more = more.replace("WEIGHTS", str(root / "weights.safetensors"))
        (root / f"{name}.toml").write_text(
            f'{COMMON}train_data_dir = "{data}"\noutput_name = "{name}"\n{more}unet_lr = 1e-2\n'
        )
    return [root / f"{name}.toml" for name in RUNS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Path:
    """What each of them leaves when it is trained by itself."""
    root = tmp_path_factory.mktemp("alone")
    for file in files:
        assert train(file, "--output_dir", root) == 0
    return root


def train(*words: object) -> int:
    return status_of(lora_train, *words)


def check_same(out: Path, alone: Path, names: Iterator[str] | list[str] = list(RUNS)) -> None:  # noqa: B006
    for name in names:
        for file in sorted(alone.glob(f"{name}*.safetensors")):
            expected, found = load_file(file), load_file(out / file.name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), file.name
        assert not (out / f"{name}.state").exists()


@pytest.mark.slow
def test_a_queue_gives_what_single_runs_give(
    files: list[Path],
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The base is read once, its pictures are encoded once for each set of them."""
    reads: list[Any] = []
    real = load.load_base
    monkeypatch.setattr(load, "load_base", lambda *words, **more: reads.append(words) or real(*words, **more))
    encoded: list[int] = []
    encode = prepare.encode_all
    monkeypatch.setattr(
        prepare, "encode_all", lambda jobs, *more: encoded.append(len(jobs)) or encode(jobs, *more)
    )
    assert train(*files, "--output_dir", tmp_path) == 0
    assert len(reads) == 1
    # To train on, for validation, and mirrored too; the third run has the first one's.
    assert encoded == [3, 1, 6]
    check_same(tmp_path, alone)
    out, told = capsys.readouterr()
    assert [Path(line).stem for line in out.splitlines() if "-" not in Path(line).stem] == list(RUNS)
    rows = told.splitlines()[-4:]
    assert rows[0].split() == ["run", "loss", "validation", "files", "time", "last", "file"]
    assert [row.split()[0] for row in rows[1:]] == [str(file) for file in files]
    assert all(row.split()[3] == "5" and row.endswith(".safetensors") for row in rows[1:])
    # Given again, nothing is left to do, and nothing changes.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert train(*files, "--output_dir", tmp_path) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert capsys.readouterr().out == out
    # With another result of the same name in its place it is not done.
    (tmp_path / "third.safetensors").write_bytes(b"precious")
    assert train(*files, "--output_dir", tmp_path) == 2
    assert (tmp_path / "third.safetensors").read_bytes() == b"precious"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again(files: list[Path], alone: Path, tmp_path: Path) -> None:
    words = [*map(str, files), "--output_dir", str(tmp_path)]
    kill_often(words, kills=KILLS, seconds=180 + 60 * KILLS)
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_next_begins(
    files: list[Path], alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(files[0].read_text().replace('"first"', '"bad"').replace("1e-2", "1e30"))
    assert train(files[0], bad, files[2], "--output_dir", tmp_path) == 1
    told = capsys.readouterr().err
    assert f"lora-train: {bad}: error: step " in told
    assert "the loss is nan" in told
    assert told.splitlines()[-3].split()[:2] == [str(bad), "failed"]
    assert told.splitlines()[-1].startswith("lora-train: error: 1 of 3 runs failed")
    check_same(tmp_path, alone, ["first", "third"])


# ------------------------------------------------------------------------------------------- what is kept


def facts_of(base: BaseModel) -> dict[str, Any]:
    """Everything of the modules that a run may change."""
    found: dict[str, Any] = {}
    for part, root in enumerate((base.denoiser, base.vae, *base.text_encoders)):
        for name, module in root.named_modules():
            own = {key for key in vars(module) if key != "_forward_hooks_with_kwargs"}
            flags = getattr(module, "gradient_checkpointing", None)
            found[f"{part} {name}"] = (type(module), module.training, own, flags, len(module._forward_hooks))
        for name, tensor in root.state_dict(keep_vars=True).items():
            found[f"{part}.{name}"] = (
                tensor.dtype,
                tensor.device,
                tensor.requires_grad,
                tensor.numpy().tobytes(),
            )
    return found


@pytest.mark.parametrize("copies_weights", [True, False])
def test_what_is_kept_is_what_a_fresh_load_gives(copies_weights: bool) -> None:
    """Whatever a run does to the modules; where it gets weights that are shared it moves them away before."""
    shelf = Shelf(wanted=(key := base_key(ModelSettings(), demo_base(), torch.float32)))
    expected = facts_of(load.load_base(demo_base()))
    for _ in range(3):
        base = shelf.base(key, lambda: load.load_base(demo_base()), copies_weights=copies_weights)
        assert facts_of(base) == expected
        spoil(base, copies_weights)
        assert facts_of(base) != expected
    assert shelf.reused == 2
    shelf.wanted = None
    last = shelf.base(key, lambda: pytest.fail("read again"), copies_weights=copies_weights)
    assert facts_of(last) == expected
    assert facts_of(shelf.base(key, lambda: load.load_base(demo_base()), copies_weights=True)) == expected


def spoil(base: BaseModel, in_place: bool) -> None:
    for root in (base.denoiser, base.vae, *base.text_encoders):
        if not in_place:
            root.to(torch.float64)  # as another device, another memory
        with torch.no_grad():
            for parameter in root.parameters():
                parameter.add_(1)
        root.train()
        for module in root.modules():
            module.forward = lambda *_: None
            module.gradient_checkpointing = True
        first, _ = next(root.named_children())
        setattr(root, first, torch.nn.Identity())


def test_a_base_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "base.safetensors"
    file.write_bytes(demo_base().read_bytes())
    before = base_key(ModelSettings(), file, torch.float32)
    assert before == base_key(ModelSettings(), file, torch.float32)
    assert before != base_key(ModelSettings(), file, torch.float16)
    assert before != base_key(ModelSettings(vae=str(demo_base())), file, torch.float32)
    os.utime(file, (1, 1))
    assert before != base_key(ModelSettings(), file, torch.float32)


# ------------------------------------------------------------------------------------------- bad input

BAD = [
    (["--vary", "unet_rl=1,2"], "vary: no option 'unet_rl', did you mean 'unet_lr'?"),
    (["--vary", "unet_lr"], "vary: 'unet_lr' is not of the form NAME=VALUE,VALUE"),
    (["--vary", "unet_lr="], "is not of the form"),
    (["--vary", "unet_lr=1e-4,0.0001"], "vary: unet_lr: 1e-4 and 0.0001 are one value; give each once"),
    (["--vary", "unet_lr=1e-4,1e-4"], "vary: unet_lr: 1e-4 twice is one value; give each once"),
    (["--vary", "unet_lr=1e-4,,2e-4"], "unet_lr: expected a number, got '' (from --vary)"),
    (["--vary", "unet_lr=1e-4,fast"], "unet_lr: expected a number, got 'fast' (from --vary)"),
    (["--vary", "network_dim=8,0"], "network_dim: 0 is below 1 (from --vary)"),
    (["--vary", "flip_aug=true,maybe"], "flip_aug: expected true or false, got 'maybe' (from --vary)"),
    (["--vary", "network_dim=8,16", "--network_dim", "4"], "vary: network_dim is given as an option too"),
    (["--vary", "network_dim=8", "--vary", "network-dim=16"], "vary: network_dim is given twice"),
    (["--vary", "output_name=a,b"], "vary: output_name cannot be varied"),
    (
        [
            "--vary",
            f"seed={','.join(map(str, range(100)))}",
            "--vary",
            f"network_dim={','.join(map(str, range(1, 101)))}",
        ],
        "vary: 10,000 runs, 1,000 are the most of one command; at ten minutes a run they would take 69 days",
    ),
    (["FIRST", "SECOND", "--output_name", "same"], "both write "),
    (["FIRST", "EPOCH"], "both may write "),
    (["STATE", "FIRST"], "both may write "),
    (["FIRST", "nowhere.toml"], "nowhere.toml: "),
    (["FIRST", "nowhere"], "nowhere: does not exist, and no folder of pictures either"),
    (["DATA", "DATA"], "a second folder"),
    (["DATA", "--train_data_dir", "x"], "train_data_dir: given twice"),
    (["FIRST", "BROKEN"], "broken.toml, line 1): network_dim: expected a whole number"),
    (["FIRST", "SECOND", "--print-config"], "--print_config shows one run; here are 2"),
    (["FIRST", "SECOND", "--plot-lr"], "--plot_lr shows one run"),
    (["FIRST", "--dry-run", "--print-config"], "it excludes --dry_run"),
]


@pytest.mark.parametrize(("words", "line"), BAD)
def test_bad_input(
    words: list[str],
    line: str,
    files: list[Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('network_dim = "many"\n')
    places = {"FIRST": files[0], "SECOND": files[1], "DATA": data, "BROKEN": broken}
    for name, ending in (("EPOCH", "-000001-ema"), ("STATE", "-end")):
        places[name] = tmp_path / f"{name}.toml"
        places[name].write_text(f'output_name = "{next(iter(RUNS)).upper()}{ending}"\n')
    out = tmp_path / "out"
    given = [places.get(word, word) for word in words]
    # A word behind an option that takes several would be one of its.
    assert train(*given, "--base", "demo", "--output_dir", out) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert all(part in told for part in line.split("): "))
    assert not out.exists()


def test_all_are_checked_before_the_first_begins(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("one", 'optimizer_args = ["speed=9"]\n'), ("two", 'network_weights = "nowhere"\n')):
        (tmp_path / f"{name}.toml").write_text(files[0].read_text().replace('"first"', f'"{name}"') + more)
    out = tmp_path / "out"
    assert train(files[0], tmp_path / "one.toml", tmp_path / "two.toml", "--output_dir", out) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[0].startswith(f"lora-train: {tmp_path / 'one.toml'}: error: ")
    assert told[1].startswith(f"lora-train: {tmp_path / 'two.toml'}: error: ")
    assert told[2] == "lora-train: error: 2 of 3 runs cannot begin, so none was begun"
    assert not out.exists()


def test_a_dry_run_shows_the_plan(
    files: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = files[0].read_text().replace("unet_lr = 1e-2", "").replace("network_dim = 2", "")
    (tmp_path / "x.toml").write_text(
        "\n".join(line for line in text.splitlines() if "train_data" not in line)
    )
    varied = ["--vary", "unet_lr=1e-4,2e-4", "--vary", "network-dim=2,4"]
    assert train(tmp_path / "x.toml", data, *varied, "--output_dir", out, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"first-unet_lr={rate}-network_dim={dim}" for rate in ("1e-4", "2e-4") for dim in (2, 4)]
    assert len(lines) == 5
    for line, name in zip(lines, names, strict=False):
        assert "4 steps in 1.33 epochs, 3 pictures, " in line
        assert f"to {out / name}, from the start" in line
    assert lines[-1] == "4 of 4 runs to do, 16 steps: 16 s at one step a second"
    assert not out.exists()


def test_what_no_queue_has_written_stays(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("mine", "[]", '{"asked": {}, "ended": {"files": {"../x": "0"}}}', "[" * 5000):
        (tmp_path / "first.run.json").write_text(text)
        assert train(*files[::2], "--output_dir", tmp_path, "--dry-run") == 2
        assert "is not what a queue remembers of a run" in capsys.readouterr().err
        assert (tmp_path / "first.run.json").read_text() == text


@pytest.mark.parametrize(
    ("name", "is_result"),
    [
        ("net-2", False),
        ("net-step5", False),
        ("net-end", False),
        ("net-000002", True),
        ("net-step00000005-ema", True),
        ("net-best", True),
        ("net-ema", True),
        ("net", True),
    ],
)
def test_a_run_with_a_longer_name_is_another_run(name: str, is_result: bool, tmp_path: Path) -> None:
    (tmp_path / f"{name}.safetensors").touch()
    with pytest.raises(OutputError, match="exists from an earlier run") if is_result else nullcontext():
        check_outputs(RunSettings(output_dir=tmp_path, output_name="net"))


@pytest.mark.parametrize("words", [["FIRST", "--dry-run"], ["FIRST", "SECOND"], ["FIRST"]])
@pytest.mark.parametrize("inner", ["", "deeper"])
def test_no_run_begins_where_nothing_can_be_written(
    words: list[str], inner: str, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    given = [{"FIRST": files[0], "SECOND": files[1]}.get(word, word) for word in words]
    assert train(*given, "--output_dir", tmp_path / "taken" / inner) in (1, 2)
    told = capsys.readouterr().err
    line = f"output_dir: {tmp_path / 'taken' / inner}: cannot write there ("
    assert told.count(line) == len(words) - ("--dry-run" in words)
    assert "run 1" not in told
