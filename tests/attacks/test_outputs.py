"""Outputs: no link is followed, nothing is replaced unasked, whatever stands in their places and whenever it came."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.attacks import LINKS, SECRET, digest, plant
from support.called import status_of
from support.dataset import draw_data

RACES = 200


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's outside of what is written to."""
    return tmp_path / "home" / "victim"


def network(path: Path, rank: int = 4) -> Path:
    rng = np.random.default_rng(3)
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": rng.standard_normal((rank, 320)).astype(np.float32),
        f"{name}.lora_up.weight": rng.standard_normal((320, rank)).astype(np.float32),
        f"{name}.alpha": np.asarray(rank, dtype=np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors)
    return path


# -------------------------------------------------------------------------------- tools on networks


def merge(source: Path, target: Path, *more: str) -> int:
    from lorapipe_merge.cli import lora_merge

    return status_of(lora_merge, "--networks", f"{source}:0.5", f"{source}:0.25", "-o", target, *more)


def resize(source: Path, target: Path, *more: str) -> int:
    from lorapipe_resize.cli import lora_resize

    return status_of(lora_resize, source, "--new_rank", "2", "-o", target, *more)


def meta(source: Path, target: Path, *more: str) -> int:
    from lorapipe_inspect.cli import lora_inspect

    return status_of(lora_inspect, "meta", source, "--set", "a=b", "-o", target, *more)


def delta(source: Path, target: Path, *more: str) -> int:
    from lorapipe_inspect.cli import lora_inspect

    return status_of(lora_inspect, "delta", source, "-o", target, *more)


def plot(_source: Path, target: Path, *more: str) -> int:
    pytest.importorskip("torch")
    from lorapipe_engine.cli import lora_train

    overwrite = ["--overwrite"] if more else []
    return status_of(lora_train, "--plot_lr", f"{target}.svg", "--max_train_steps", "3", *overwrite)


TOOLS: tuple[Callable[..., int], ...] = (merge, resize, meta, delta, plot)


def planted(tool: Callable[..., int], kind: str, victim: Path, folder: Path) -> tuple[Path, Path, Path]:
    """A network, the output that a tool is asked for, and the file that it makes there, where something lies."""
    source, out = network(folder / "in.safetensors"), folder / "out" / "result"
    place = Path(f"{out}.svg") if tool is plot else out
    plant(kind, place, victim)
    return source, out, place


@pytest.mark.parametrize("kind", [*LINKS, "foreign"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_replaces_nothing_unasked(
    tool: Callable[..., int], kind: str, victim: Path, tmp_path: Path
) -> None:
    source, out, _ = planted(tool, kind, victim, tmp_path)
    before = digest(tmp_path)
    code = tool(source, out)
    after = digest(tmp_path)
    if kind == "link to a folder" and tool in (resize, meta):
        # A folder that the user names as output may be a link, as a home may; only new files come into it.
        assert code == 0
        assert after.pop("home/in.safetensors")
    else:
        assert code in (1, 2)
    assert after == before


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_replaces_the_link_itself_when_asked(
    tool: Callable[..., int], kind: str, victim: Path, tmp_path: Path
) -> None:
    source, out, place = planted(tool, kind, victim, tmp_path)
    before = digest(tmp_path, tmp_path / "out")
    code = tool(source, out, "--force")
    after = digest(tmp_path, tmp_path / "out")
    if kind == "link to a folder" and tool in (resize, meta):
        assert after.pop("home/in.safetensors")
    elif kind == "link to a folder" and tool is merge:
        assert code == 2  # it asks for a file's name
    else:
        assert code == 0
        assert place.is_file()
        assert not place.is_symlink()
    assert after == before


@pytest.mark.parametrize("form", ["file", "folder"])
def test_metadata_are_not_changed_through_a_link(form: str, tmp_path: Path) -> None:
    """A folder of networks from a stranger, one of which is a link to a network of the user's."""
    from lorapipe_inspect.cli import lora_inspect

    mine = network(tmp_path / "home" / "mine.safetensors")
    link = tmp_path / "theirs" / "a.safetensors"
    link.parent.mkdir()
    link.symlink_to(mine)
    before = digest(tmp_path)
    word = link if form == "file" else link.parent
    assert status_of(lora_inspect, "meta", word, "--strip", "--force") == 2
    assert digest(tmp_path) == before


# -------------------------------------------------------------------------------- a model's folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A diffusers folder of one layer."""
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    weights = {"down_blocks.0.attentions.0.proj_in.weight": np.ones((320, 320, 1, 1), np.float16)}
    weights["conv_in.weight"] = np.ones((320, 4, 3, 3), np.float16)
    weights["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = np.ones(
        (320, 768), np.float16
    )
    write_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors", weights)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    return folder


def merge_folder(model: Path, out: Path) -> int:
    from lorapipe_merge.cli import lora_merge

    return status_of(lora_merge, model, network(model.parent / "in.safetensors"), "-o", out)


def test_a_merge_clears_no_folder_away(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "merged"
    mine = tmp_path / "out" / ".lorapipe-merged.tmp"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    assert merge_folder(model, out) == 0
    assert (mine / "notes.txt").read_text() == "mine"
    assert (out / "vae" / "config.json").read_text() == "{}"
    assert {path.name for path in out.parent.iterdir()} == {"merged", mine.name}


@pytest.mark.parametrize("kind", ["link", "link to a folder", "loop", "pipe"])
def test_a_merge_copies_nothing_from_outside_of_the_model(
    kind: str, model: Path, victim: Path, tmp_path: Path
) -> None:
    place = model / "vae" / "notes.txt"
    if kind == "loop":
        (model / "vae" / "again").symlink_to(".")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        plant(kind, place, victim)
    assert merge_folder(model, tmp_path / "merged") == 2
    assert not (tmp_path / "merged").exists()


def test_the_hubs_own_links_are_copied(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    shutil.copytree(model, snapshot)
    blobs.mkdir()
    config = snapshot / "vae" / "config.json"
    config.rename(blobs / "45")
    config.symlink_to("../../../blobs/45")
    assert merge_folder(snapshot, tmp_path / "merged") == 0
    assert (tmp_path / "merged" / "vae" / "config.json").read_text() == "{}"
    assert not (tmp_path / "merged" / "vae" / "config.json").is_symlink()


# -------------------------------------------------------------------------------- training

PLACES = (
    "net.metrics.jsonl",
    "net.state",
    "net.safetensors",
    "net-000001.safetensors",
    "net-end.state",
    "sample/net_e000001_00.png",
    "trace/step-000000.safetensors",
)
FOLDERS = ("sample", "logs", "trace")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("lorapipe_demo")
    root = draw_data(tmp_path_factory, pictures=2)
    (root / "prompts.txt").write_text("1girl --s 1 --w 64 --h 64\n")
    return root


def train(pictures: Path, out: Path, *more: str | Path) -> int:
    from lorapipe_engine.cli import lora_train

    fixed = (
        "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --network_dim 2 "
        "--max_train_epochs 2 --sample_every_n_epochs 1 --trace_steps 0 --save_state --network_train_unet_only"
    )
    files = ["--train_data_dir", pictures, "--output_dir", out, "--sample_prompts", pictures / "prompts.txt"]
    return status_of(lora_train, *fixed.split(), *files, *more)


@pytest.mark.parametrize("kind", [*LINKS, "foreign"])
@pytest.mark.parametrize("place", PLACES)
def test_training_begins_on_no_file_of_others(
    place: str, kind: str, pictures: Path, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(kind, tmp_path / "out" / place, victim)
    before = digest(tmp_path)
    # 1 for what exists already; 2 for a record or a state, which would be read, and the last state where it is a link.
    is_read = place in ("net.metrics.jsonl", "net.state")
    is_linked_state = place == "net-end.state" and kind not in ("hard link", "foreign")
    assert train(pictures, tmp_path / "out") == (2 if is_read or is_linked_state else 1)
    assert digest(tmp_path) == before
    assert str(tmp_path / "out" / place) in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("place", FOLDERS)
def test_training_writes_through_no_link_to_a_folder(
    place: str, more: tuple[str, ...], pictures: Path, victim: Path, tmp_path: Path
) -> None:
    victim.parent.mkdir()
    # What an earlier run was killed at; it is not removed elsewhere.
    (victim.parent / ".lorapipe-0.tmp").write_bytes(SECRET)
    os.utime(victim.parent / ".lorapipe-0.tmp", (1, 1))
    plant("link to a folder", tmp_path / "out" / place, victim)
    before = digest(tmp_path)
    assert train(pictures, tmp_path / "out", *more) == 2
    assert digest(tmp_path) == before


def test_training_that_may_overwrite_replaces_links_themselves(
    pictures: Path, victim: Path, tmp_path: Path
) -> None:
    out, kinds = tmp_path / "out", iter([*LINKS, *LINKS])
    for place in PLACES:
        plant(next(kinds), out / place, victim.with_name(place.replace("/", "-")))
    before = digest(tmp_path, out)
    assert train(pictures, out, "--overwrite") == 0
    assert digest(tmp_path, out) == before
    assert not (out / "net.state").exists()
    for place in PLACES:
        if place != "net.state":
            assert (out / place).is_file(), place
            assert not (out / place).is_symlink(), place
            assert os.lstat(out / place).st_nlink == 1, place
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_curves_of_a_run_that_left_nothing_else_are_kept(pictures: Path, tmp_path: Path) -> None:
    """The user's own run, killed before its first state: the same command begins anew, and nothing is lost."""
    row = '{"step": 1, "seconds": 0.5, "loss/current": 0.25}\n'
    (tmp_path / "net.metrics.jsonl").write_text(row)
    assert train(pictures, tmp_path) == 0
    assert (tmp_path / "net.metrics-1.jsonl").read_text() == row
    assert len((tmp_path / "net.metrics.jsonl").read_text().splitlines()) == 4


def test_links_that_come_while_training_runs(
    pictures: Path, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As soon as the run has begun its curves, they and the folder of samples become links."""
    out, ended = tmp_path / "out", threading.Event()
    victim.parent.mkdir()
    victim.write_bytes(SECRET)

    def exchange() -> None:
        metrics = out / "net.metrics.jsonl"
        while not ended.is_set() and not metrics.exists():
            time.sleep(0.0005)
        metrics.unlink()
        metrics.symlink_to(victim)
        (out / "sample").symlink_to(victim.parent)
        for folder in out.glob("logs/*/network_train"):
            for events in folder.iterdir():
                events.unlink()
                events.symlink_to(victim)

    thread = threading.Thread(target=exchange)
    thread.start()
    code = train(pictures, out)
    ended.set()
    thread.join()
    assert {path.name: path.read_bytes() for path in victim.parent.iterdir()} == {victim.name: SECRET}
    assert code == 1
    assert "sample: is a link" in capsys.readouterr().err.splitlines()[-1]


# -------------------------------------------------------------------------------- races


@pytest.fixture
def swapping(victim: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder ``out`` whose subfolder ``sub``, and the file ``file`` in it, become links and back all the time."""
    out, ended = tmp_path / "out", threading.Event()
    (out / "real").mkdir(parents=True)
    victim.parent.mkdir()
    victim.write_bytes(SECRET)

    def swap() -> None:
        while not ended.is_set():
            for target in ("real", victim.parent):
                (out / "new").symlink_to(target) if target != "real" else (out / "new").mkdir()
                shutil.rmtree(out / "sub", ignore_errors=True)
                (out / "sub").unlink(missing_ok=True) if (out / "sub").is_symlink() else None
                (out / "new").rename(out / "sub")
                if target == "real":
                    (out / "sub" / "file").symlink_to(victim)

    def go() -> None:
        while not ended.is_set():
            try:
                swap()
            except OSError:  # the other side was in between
                (out / "new").unlink(missing_ok=True) if (out / "new").is_symlink() else shutil.rmtree(
                    out / "new", ignore_errors=True
                )

    thread = threading.Thread(target=go)
    thread.start()
    yield out
    ended.set()
    thread.join()


def test_writing_into_a_folder_that_is_swapped_for_a_link(swapping: Path, victim: Path) -> None:
    from lorapipe_engine.files.writing.atomic import atomic_write, open_growing

    ends = {"written": 0, "refused": 0}
    for number in range(RACES * 50):
        path = swapping / "sub" / "file"
        try:
            if number % 2:
                with atomic_write(path, force=True, inside=swapping) as file:
                    file.write(b"ours")
            else:
                with open_growing(path, b"ours", force=True, inside=swapping) as file:
                    file.write(b" and more")
            ends["written"] += 1
        except (LoraError, OSError):
            ends["refused"] += 1
        if number >= RACES and min(ends.values()) > 10:
            break
    assert {path.name: path.read_bytes() for path in victim.parent.iterdir()} == {victim.name: SECRET}
    assert min(ends.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("tool", [meta])
def test_an_output_that_becomes_a_link_while_the_tool_runs(
    tool: Callable[..., int], victim: Path, tmp_path: Path
) -> None:
    source, out, ended = network(tmp_path / "in.safetensors"), tmp_path / "out.safetensors", threading.Event()
    victim.parent.mkdir()
    victim.write_bytes(SECRET)

    def swap() -> None:
        while not ended.is_set():
            link = tmp_path / "link"
            link.symlink_to(victim)
            link.rename(out)
            out.unlink(missing_ok=True)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(RACES):
            tool(source, out, "--force")
    finally:
        ended.set()
        thread.join()
    assert victim.read_bytes() == SECRET
    assert os.lstat(victim).st_nlink == 1
    tool(source, out, "--force")
    with open_tensors(out) as file:
        assert file.metadata["a"] == "b"


# -------------------------------------------------------------------------------- a state that is rescued


def test_a_state_is_rescued_to_a_folder_of_its_own(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not under a fixed name in a folder that others write to."""
    pytest.importorskip("torch")
    import tempfile

    from lorapipe_engine.errors import OutputError
    from lorapipe_engine.train.results.state import StateKeeper

    shared = tmp_path / "shared"
    plant("foreign", shared / "net.state", victim)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    full = tmp_path / "full" / "net.state"

    def save(path: Path) -> None:
        if path == full:
            raise OutputError("full")
        write_tensors(path, {"a": np.zeros(3, np.float32)}, force=True)

    told = StateKeeper(full, 0, save).rescue()
    assert (shared / "net.state").read_bytes() == SECRET
    (folder,) = (path for path in shared.iterdir() if path.is_dir())
    assert str(folder / "net.state") in told
    assert "--resume" in told
    assert folder.stat().st_mode & 0o077 == 0 or os.name == "nt"


# -------------------------------------------------------------------------------- caches


def test_caches_are_not_written_through_links(
    pictures: Path, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    victim.parent.mkdir()
    for name in ("latents", "text"):
        plant("link to a folder", cache / name, victim.with_name(f"{name}-victim") / "file")
    before = digest(tmp_path, tmp_path / "out")
    options = ["--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk", "--cache_dir", cache]
    assert train(pictures, tmp_path / "out", *options) == 0
    assert digest(tmp_path, tmp_path / "out") == before


def test_entries_of_a_cache_that_are_links_or_of_another_form_are_made_again(
    pictures: Path, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    options = ["--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk", "--cache_dir", cache]
    assert train(pictures, tmp_path / "first", *options) == 0
    latents = sorted(cache.glob("latents/*/*.safetensors"))
    texts = sorted(cache.glob("text/*/*.safetensors"))
    assert len(latents) == 2
    assert texts
    # One is exchanged for a link to something of the right form, one for what has another form.
    plant("link", tmp_path / "spare", latents[0])
    moved = victim.parent / "latents"
    victim.parent.mkdir()
    latents[0].rename(moved)
    latents[0].symlink_to(moved)
    for path, name in ((latents[1], "latents"), (texts[0], "hidden")):
        path.unlink()
        write_tensors(path, {name: np.zeros((8, 3), np.float32)})
    kept = moved.read_bytes()
    capsys.readouterr()
    assert train(pictures, tmp_path / "second", *options) == 0
    told = capsys.readouterr().err
    assert "2 entries of the cache damaged or a link, and not used" in told
    assert "1 entry of the cache damaged or a link, and not used" in told
    assert moved.read_bytes() == kept
    assert not latents[0].is_symlink()
    first, second = (tmp_path / name / "net.safetensors" for name in ("first", "second"))
    with open_tensors(first) as one, open_tensors(second) as other:
        assert all((one.read(key) == other.read(key)).all() for key in one.tensors)
