"""lora-inspect meta: showing metadata, and changing them without touching a tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.hashes import data_hash, network_hashes
from lorapipe_engine.files.tensorfile import TensorFile, open_tensors, write_tensors

METADATA = {
    "ss_network_dim": "4",
    "ss_output_name": "first",
    "ss_dataset_dirs": '{"3_cat": {"n_repeats": 3}}',
    "ss_datasets": "[]",
    "ss_tag_frequency": '{"3_cat": {"cat": 5, "solo ": 2}, "1_dog": {"dog": 4, "solo": 1}}',
    "note": "one\ntwo\x1b[31m",
}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "my net.safetensors"
    write_tensors(path, {"b": np.ones(300_000, np.float32), "a": np.arange(6, dtype=np.float16)}, METADATA)
    return path


def opened(path: Path) -> TensorFile:
    with open_tensors(path) as file:
        return file


def test_keys_are_shown_whole(network: Path, inspect: Any) -> None:
    assert inspect("meta", network, "ss_output_name").out == b"first\n"
    assert inspect("meta", network, "--key", "note").out == b"one\ntwo\x1b[31m\n"
    table = json.loads(inspect("meta", network, "ss_tag_frequency").out)
    assert table["1_dog"] == {"dog": 4, "solo": 1}
    lines = inspect("meta", network, "ss_network_dim", "ss_output_name").lines
    assert lines == ["ss_network_dim: 4", "ss_output_name: first"]
    done = inspect("meta", network, "ss_output_nam")
    assert (done.code, done.out) == (1, b"")
    assert done.err.endswith("no metadata 'ss_output_nam'; did you mean ss_output_name?\n")


def test_listing_escapes_and_cuts(network: Path, inspect: Any, tmp_path: Path) -> None:
    lines = inspect("meta", network).lines
    assert len(lines) == 1 + len(METADATA)
    assert "  note              one\\ntwo\\x1b[31m" in lines
    long = tmp_path / "long.safetensors"
    write_tensors(long, {}, {"k": "x" * 1000})
    assert inspect("meta", long).lines[1].endswith("xxx... (1,000 characters)")


def test_json_decodes_tables(network: Path, inspect: Any) -> None:
    record = json.loads(inspect("meta", network, "--json").out)
    assert record["file"] == str(network)
    assert record["metadata"]["ss_dataset_dirs"] == {"3_cat": {"n_repeats": 3}}
    assert record["metadata"]["ss_network_dim"] == "4"


def test_tags(network: Path, inspect: Any) -> None:
    assert inspect("meta", network, "--tags").lines[1:] == ["  5  cat", "  4  dog", "  3  solo"]
    assert inspect("meta", network, "--tags", "--top", 1).lines[1:] == ["  5  cat", "  and 2 more tags"]
    assert json.loads(inspect("meta", network, "--tags", "--json").out)["tags"] == {
        "cat": 5,
        "dog": 4,
        "solo": 3,
    }


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (None, "the file has no ss_tag_frequency"),
        ("{}", "ss_tag_frequency is empty"),
        ('{"3_cat": {"cat"', "ss_tag_frequency is no table of tags that can be read"),
    ],
)
def test_why_there_are_no_tags(stored: str | None, told: str, inspect: Any, tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {}, {} if stored is None else {"ss_tag_frequency": stored})
    assert inspect("meta", tmp_path / "a.safetensors", "--tags").lines[1:] == [f"  no tags: {told}"]


def test_changed_copy(network: Path, inspect: Any, tmp_path: Path) -> None:
    output = tmp_path / "new.safetensors"
    before = network.read_bytes()
    words = (
        "--set",
        "ss_output_name=an=other ✿",
        "--set",
        "new=1",
        "--unset",
        "ss_dataset*",
        "--unset",
        "note",
    )
    done = inspect("meta", network, *words, "-o", output)
    assert (done.code, done.lines) == (0, [str(output)])
    kept = {key: METADATA[key] for key in ("ss_network_dim", "ss_tag_frequency")}
    assert opened(output).metadata == kept | {"ss_output_name": "an=other ✿", "new": "1"}
    assert opened(output).tensors == opened(network).tensors
    assert list(opened(output).tensors) == list(opened(network).tensors)
    assert data_hash(output) == data_hash(network)
    assert network.read_bytes() == before


def test_in_place_and_stripped(network: Path, inspect: Any) -> None:
    digest = data_hash(network)
    assert inspect("meta", network, "--strip").code == 2
    assert opened(network).metadata == METADATA
    done = inspect("meta", network, "--strip", "--set", "kept=yes", "--force")
    assert (done.code, opened(network).metadata, data_hash(network)) == (0, {"kept": "yes"}, digest)
    inspect("meta", network, "--strip", "--force")
    assert opened(network).metadata == {}
    assert inspect("meta", network).lines[1] == "  no metadata"


def test_what_a_link_leads_to_is_not_changed(network: Path, inspect: Any, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(network)
    done = inspect("meta", link, "--strip", "--force")
    assert done.code == 2
    assert f"is a link; name the file that it leads to, {network}" in done.err
    assert link.is_symlink()
    assert opened(network).metadata == METADATA


def test_nothing_is_replaced_by_accident(network: Path, inspect: Any, tmp_path: Path) -> None:
    before = network.read_bytes()
    for words in (("-o", network), ("-o", tmp_path / "no" / "x.safetensors"), ("-o", "-", network)):
        done = inspect("meta", network, "--strip", *words)
        assert done.code in (1, 2)
        assert done.err.count("error: ") == 1
    assert network.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [network.name]


def test_the_hash_of_the_window_follows_the_metadata(inspect: Any, tmp_path: Path) -> None:
    """sshs_legacy_hash is of bytes at one MiB, whose place depends on the length of the ss_ entries."""
    rng = np.random.default_rng(0)
    tensors = {"a": rng.random(200_000), "b": rng.random(300_000).astype(np.float32)}
    hashes = network_hashes(tensors, METADATA)
    path, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    stored = {"sshs_model_hash": hashes.model, "sshs_legacy_hash": hashes.legacy}
    write_tensors(path, tensors, METADATA | stored)
    inspect("meta", path, "--set", "ss_training_comment=somewhat longer", "-o", output)
    found = opened(output).metadata
    expected = network_hashes(tensors, found)
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == expected
    assert found["sshs_legacy_hash"] != hashes.legacy
    inspect("meta", path, "--set", "modelspec.title=t", "-o", output, "--force")
    assert opened(output).metadata["sshs_legacy_hash"] == hashes.legacy


@pytest.mark.slow
def test_several_files_and_streams(network: Path, inspect: Any, shell: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(network.read_bytes())
    done = inspect("meta", network, other, "--unset", "note", "-o", tmp_path / "out")
    assert done.lines == [str(tmp_path / "out" / path.name) for path in (network, other)]
    done = inspect("meta", network, other, "ss_network_dim")
    assert done.lines == [f"{network}: 4", f"{other}: 4"]
    done = shell("lora-inspect meta 'my net.safetensors' --strip -o - | lora-inspect meta - --json")
    assert json.loads(done.stdout) == {"path": "-", "file": "-", "metadata": {}}


def test_folders_in_a_folder_keep_their_places(network: Path, inspect: Any, tmp_path: Path) -> None:
    source, output = tmp_path / "runs", tmp_path / "clean"
    for name in ("one/a", "two/a"):
        (source / name).parent.mkdir(parents=True)
        shutil.copy(network, source / f"{name}.safetensors")
    assert inspect("meta", source, "--strip", "-o", output).code == 2
    done = inspect("meta", source, "-r", "--strip", "-n")
    assert (done.code, done.lines, output.exists()) == (0, [], False)
    assert done.err.count("left out: ") == 2
    done = inspect("meta", source, "-r", "--strip", "-o", output)
    assert done.lines == [str(output / "one/a.safetensors"), str(output / "two/a.safetensors")]
    done = inspect("meta", output, "--recursive", "--json")
    assert [json.loads(line)["metadata"] for line in done.lines] == [{}, {}]


@pytest.mark.parametrize(
    ("words", "say"),
    [
        (["--set", "x"], "write KEY=VALUE"),
        (
            ["-o", "b.safetensors"],
            "--output has no use with showing metadata; it belongs to --set, --unset or --strip",
        ),
        (["--strip", "--tags", "-o", "b.safetensors"], "--tags has no use with --set, --unset or --strip"),
    ],
)
def test_wrong_usage(network: Path, inspect: Any, words: list[str], say: str) -> None:
    done = inspect("meta", network, *words)
    assert done.code == 2
    assert say in done.err


@pytest.mark.slow
def test_killed_in_the_middle(network: Path, shell: Any, tmp_path: Path) -> None:
    """A file size limit stands for a full disk: the old file stays, and nothing else."""
    before = network.read_bytes()
    done = shell("ulimit -f 500; trap '' XFSZ; lora-inspect meta 'my net.safetensors' --strip --force")
    assert done.returncode == 1
    assert done.stderr.count(b"error: ") == 1
    assert b"Traceback" not in done.stderr
    assert network.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [network.name]
