"""Taggers from strangers: networks that name files elsewhere, sizes without end, lists that a terminal obeys."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from lorapipe_engine.command.records import read_records
from lorapipe_engine.errors import InputError
from lorapipe_engine.models.onnxfile import check_network, data_files
from lorapipe_tagger.models.labels import read_labels
from support.hostile import digest, fill, needs_links
from support.limited import GIB, Ended, run_limited

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"


def field(number: int, body: bytes) -> bytes:
    """A protobuf field with a length."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def tensor(location: str, name: bytes = b"more") -> bytes:
    """A tensor of four floats that lie in a file."""
    entries = [(b"location", location.encode()), (b"length", b"16"), (b"offset", b"0")]
    return (
        b"\x08\x04\x10\x01"
        + field(8, name)
        + b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries)
        + b"\x70\x01"
    )


# Every place of a model that may hold a tensor, and groups of the old kind in front of one.
PLACES = {
    "initializer": lambda body: field(7, field(5, body)),
    "sparse": lambda body: field(7, field(15, field(1, body))),
    "attribute": lambda body: field(7, field(1, field(5, field(1, b"value") + field(5, body)))),
    "attribute list": lambda body: field(7, field(1, field(5, field(10, body)))),
    "graph of an attribute": lambda body: field(7, field(1, field(5, field(6, field(5, body))))),
    "function": lambda body: field(25, field(7, field(5, field(5, body)))),
    "training": lambda body: field(20, field(1, field(5, body))),
    "behind a group": lambda body: b"\xa3\x06\x08\x01\xa4\x06" + field(7, field(5, body)),
}


def model_with(folder: Path, location: str, place: str = "initializer") -> Path:
    """A copy of the small model, with one more tensor, whose weights lie in ``location``."""
    folder.mkdir(exist_ok=True)
    shutil.copy(MODEL / "selected_tags.csv", folder)
    path = folder / "model.onnx"
    path.write_bytes((MODEL / "model.onnx").read_bytes() + PLACES[place](tensor(location)))
    return path


def tag(folder: Path, tmp_path: Path, *words: object, **more: object) -> Ended:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(pictures / "a.png")
    given = [pictures, "--model", folder, "--device", "cpu", "--no-cache", *words]
    return run_limited("lora-tag", given, memory=0, **more)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- captions elsewhere


@needs_links
@pytest.mark.parametrize("inner", ["", "deeper"])
def test_captions_are_not_written_behind_a_link(inner: str, tmp_path: Path) -> None:
    """Nor is a folder made there."""
    home, out, pictures = tmp_path / "home", tmp_path / "captions", tmp_path / "pictures"
    fill(pictures / "sub" / inner)
    fill(home)
    out.mkdir()
    (out / "sub").symlink_to(home)
    before = digest(home)
    given = [pictures, "-r", "--model", MODEL, "--device", "cpu", "--no-cache"]
    done = run_limited("lora-tag", [*given, "--output-dir", out, "--existing", "replace"], memory=0)
    assert done.code == 1
    assert done.lines[-1].startswith(f"lora-tag: error: {out / 'sub'}: a link, which is not followed")
    assert digest(home) == before
    assert [path.name for path in out.iterdir()] == ["sub"]


# -------------------------------------------------------------------------------- weights elsewhere


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_a_tensor_may_be(place: str, tmp_path: Path) -> None:
    path = model_with(tmp_path / "model", "../secret", place)
    assert list(data_files(path)) == ["../secret"]


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "a/../../secret", "..", "C:\\secret", "C:secret", "a//b", "", "a\0b"],
)
def test_weights_outside_the_folder(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from lorapipe_tagger.scoring.session import open_session

    opened: list[object] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *words, **more: opened.append(words))
    (tmp_path / "secret").write_bytes(b"x" * 16)
    path = model_with(tmp_path / "model", location)
    with pytest.raises(InputError, match="which is no file of its folder; do not use this model"):
        open_session(path, "cpu")
    assert opened == []


def test_weights_behind_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 16)
    path = model_with(tmp_path / "model", "data.bin")
    with pytest.raises(InputError, match="which is not beside it"):
        check_network(path)
    data = path.with_name("data.bin")
    data.symlink_to("../secret")
    with pytest.raises(InputError, match="a link out of its folder"):
        check_network(path)
    data.unlink()
    data.write_bytes(b"x" * 16)
    check_network(path)
    (path.parent / "more").symlink_to("..", target_is_directory=True)
    path = model_with(path.parent, "more/secret")
    with pytest.raises(InputError, match="a link out of its folder"):
        check_network(path)


def test_the_hubs_cache_of_links_is_no_attack(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    model_with(blobs, "model.onnx.data").rename(blobs / "one")
    (blobs / "two").write_bytes(b"x" * 16)
    (snapshot / "model.onnx").symlink_to("../../blobs/one")
    (snapshot / "model.onnx.data").symlink_to("../../blobs/two")
    check_network(snapshot / "model.onnx")


@pytest.mark.slow
def test_a_network_with_weights_beside_it_runs(tmp_path: Path) -> None:
    path = model_with(tmp_path / "model", "data.bin")
    path.with_name("data.bin").write_bytes(bytes(16))
    assert tag(path.parent, tmp_path).code == 0


@pytest.mark.slow
def test_a_tensor_in_memory_is_no_file(tmp_path: Path) -> None:
    path = model_with(tmp_path / "model", "*/_ORT_MEM_ADDR_/*")
    ended = tag(path.parent, tmp_path)
    assert ended.code == 2
    assert "'*/_ORT_MEM_ADDR_/*', which is not beside it" in ended.lines[-1]


def test_damaged_networks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = (MODEL / "model.onnx").read_bytes()
    deep = field(5, tensor("../secret"))
    for _ in range(80):  # graphs inside each other
        deep = field(1, field(5, field(6, deep)))
    cut = whole + b"\x3a\xff\xff\xff\xff\x0f"
    for data in (b"", whole[:1000], b"\xff" * 50, b"\x07", whole + b"\x3b", cut, field(7, deep)):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be loaded"):
            check_network(path)


# -------------------------------------------------------------------------------- sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (["N", 100_000, 100_000, 3], "wants pictures of 100,000 x 100,000, more than 2,048"),
        ([100_000, 448, 448, 3], "wants 100,000 pictures of 448 x 448 at once"),
    ],
)
def test_a_network_that_wants_large_pictures(shape: list[int | str], words: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(MODEL / "selected_tags.csv", folder)
    count = len(read_labels(MODEL / "selected_tags.csv"))
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], count])],
        [numpy_helper.from_array(np.zeros((3, count), dtype=np.float32), "weights")],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    ended = tag(folder, tmp_path, seconds=60)
    assert ended.code == 2
    assert words in ended.lines[-1], ended.lines


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory is the Linux kernel's")
@pytest.mark.parametrize("name", ["selected_tags.csv", "tag_mapping.json"])
def test_a_list_of_tags_that_is_too_long(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(MODEL / "model.onnx", folder)
    with (folder / name).open("wb") as file:
        file.truncate(3 * GIB)
    with pytest.raises(InputError, match=r"3,221,225,472 bytes, more than a tagger's list of tags has"):
        read_labels(folder / name)


# -------------------------------------------------------------------------------- lists of tags

HIDDEN = ["\x1b]0;owned\x07", "\u202e", "\u2066", "\u200f", "\u061c", "\x9b31m", "\x00", "\u2028", "\u200b"]


@pytest.mark.parametrize("mark", HIDDEN)
def test_hidden_characters_in_tags(mark: str, tmp_path: Path) -> None:
    csv = tmp_path / "selected_tags.csv"
    csv.write_text(f'tag_id,name,category,count\n1,solo,0,9\n2,"red{mark}hair",0,9\n', encoding="utf-8")
    if mark not in ("\x00", "\u2028"):  # which end a row for Python, or the file for its reader of CSV
        with pytest.raises(InputError) as error:
            read_labels(csv)
        code = next(f"U+{ord(letter):04X}" for letter in mark if not letter.isprintable())
        assert f"{csv}, line 3: the tag 'red" in str(error.value)
        assert f"the control or directional character {code}" in str(error.value)
    mapping = tmp_path / "tag_mapping.json"
    rows = {"0": {"tag": "solo", "category": "General"}, "1": {"tag": f"red{mark}", "category": "General"}}
    mapping.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"tag_mapping\.json, output 1: the tag 'red"):
        read_labels(mapping)


def test_letters_of_all_scripts_are_no_hidden_characters(tmp_path: Path) -> None:
    csv = tmp_path / "selected_tags.csv"
    names = ["^_^", "初音ミク", "saint_(ñandú)", "with\u3000space", "שלום", "🐈"]
    csv.write_text("tag_id,name,category\n" + "".join(f"1,{name},0\n" for name in names), encoding="utf-8")
    assert read_labels(csv).names == names


LONG = "9" * 5000
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("selected_tags.csv", f"tag_id,name,category\n1,a,{LONG}\n", "is no category"),
        ("selected_tags.csv", "tag_id,name,category\n1,a,1e999\n", "is no category"),
        ("selected_tags.csv", f"tag_id,name,category\n1,{'a' * 200_000},0\n", "cannot be read as CSV"),
        ("tag_mapping.json", f'{{"0": {LONG}}}', "a number of too many digits"),
        ("tag_mapping.json", f'{{"{LONG}": {{"tag": "a", "category": "General"}}}}', "no list of tags"),
        ("tag_mapping.json", f'{{"0": {DEEP}}}', "nested too deeply"),
        ("tag_mapping.json", '{"0": {"tag": [1], "category": "General"}}', "which is no text"),
        ("tag_mapping.json", '{"0": {"tag": "a", "category": 1e999}}', "a number that is too large"),
        ("tag_mapping.json", '{"0": NaN}', "NaN is no number"),
    ],
)
def test_numbers_and_depths_of_lists(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert words in str(error.value)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f'{{"path": "a.png", "x": {LONG}}}', "a number of too many digits"),
        (f'{{"path": "a.png", "x": {DEEP}}}', "nested too deeply"),
        ('{"path": "a.png", "x": 1e999}', "a number that is too large"),
        ('{"path": "a.png", "x": NaN}', "NaN is no number"),
        ('{"path": "a.png", "x": ' + "9" * 400 + ".5}", "a number that is too large"),
    ],
)
def test_numbers_and_depths_of_records(line: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        list(read_records(["-"], io.BytesIO(line.encode())))
    assert str(error.value) == f"standard input, line 1: no JSON record ({words})"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["lora-tag", "lora-clean", "lora-repeats", "lora-check"])
def test_records_of_pipes(command: str) -> None:
    ended = run_limited(command, ["-"], memory=0, stdin=b'{"path": "a.png", "x": 1e999}')
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert "no JSON record (a number that is too large)" in ended.lines[0]


@pytest.mark.parametrize("text", [LONG, DEEP, '{"posts": 1e999}'])
def test_numbers_and_depths_of_sidecars(text: str, tmp_path: Path) -> None:
    from lorapipe_dataset.sidecars import read_sidecar

    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_sidecar(path)
    assert "not readable as JSON" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_counts_of_a_vocabulary(tmp_path: Path) -> None:
    from lorapipe_dataset.texts.vocabulary import read_vocabulary

    path = tmp_path / "tags.csv"
    path.write_text(f"tag_id,name,category,count\n1,a,0,{LONG}\n")
    with pytest.raises(InputError, match="a count of 5,000 digits"):
        read_vocabulary(path)
    path.write_text("tag_id,name,category,count\n1,a,0,\u00b2\n", encoding="utf-8")
    assert read_vocabulary(path).counts == {"a": 0}


# -------------------------------------------------------------------------------- captions that are links


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("skip", "file"),
        ("append", "file"),
        ("merge", "nothing"),
        ("prepend", "itself"),
        ("replace", "file"),
        ("replace", "nothing"),
        ("append", "inside"),
    ],
)
def test_captions_that_are_links(mode: str, kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    caption = pictures / "a.txt"
    inside = pictures / "other.caption"
    inside.write_text("words inside\n")
    target = {"file": secret, "nothing": tmp_path / "none", "itself": caption, "inside": inside}[kind]
    secret.write_text("my secret\n")
    caption.symlink_to(target)
    ended = tag(MODEL, tmp_path, "--existing", mode)
    assert secret.read_text() == "my secret\n"
    assert inside.read_text() == "words inside\n"
    assert not (tmp_path / "none").exists()
    assert b"my secret" not in ended.out + ended.err
    if kind == "inside":
        assert ended.code == 0
        assert caption.read_text().count("words inside") == 1
    else:
        assert ended.code == 1
        words = "cannot be read" if kind == "itself" else "a link out of the dataset"
        assert any(f"a.txt: {words}" in line for line in ended.lines), ended.lines
        assert caption.is_symlink()
    assert not list(pictures.glob(".lorapipe?*"))  # but for what --undo needs
