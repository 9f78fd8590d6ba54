"""Lists of paths and records: what one tool writes, the next one reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.command.records import (
    Record,
    expand_folders,
    find_files,
    format_path,
    format_record,
    read_list,
    read_records,
    write_record,
)
from lorapipe_engine.errors import InputError

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: "\0" not in name and name != "/")
BYTE_NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)
PATHS = (NAMES.filter(lambda name: name.encode("utf-8", "ignore").decode() == name) | BYTE_NAMES).map(Path)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.text().filter(lambda name: name != "path"), VALUES, max_size=4)


def listed(data: bytes) -> list[Record]:
    return list(read_list(io.BytesIO(data)))


@given(st.lists(st.builds(Record, PATHS, FIELDS), max_size=4))
def test_records_survive_a_pipe(records: list[Record]) -> None:
    out = io.BytesIO()
    for record in records:
        write_record(record, stdout=out)
    assert listed(out.getvalue()) == records
    for line in out.getvalue().splitlines():
        assert json.loads(line.decode())["path"]


@given(st.lists(PATHS, max_size=4))
def test_paths_survive_as_text(paths: list[Path]) -> None:
    out = io.BytesIO()
    for path in paths:
        write_record(Record(path, {"left": "out"}), jsonl=False, stdout=out)
    assert [record.path for record in listed(out.getvalue())] == paths


@given(st.lists(PATHS, min_size=1, max_size=4))
def test_paths_between_nul_bytes_are_exact(paths: list[Path]) -> None:
    data = b"\0".join(os.fsencode(path) for path in paths) + b"\0"
    assert [record.path for record in listed(data)] == paths


@given(st.binary(max_size=60))
def test_anything_is_read_or_refused(data: bytes) -> None:
    try:
        listed(data)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_mixed_list() -> None:
    data = '\ufeffa b.png\r\n\r\n {x\n{"file": "c.png", "score": 0.5}\r\n- \n   \nlast'.encode()
    assert listed(data) == [
        Record(Path("a b.png")),
        Record(Path(" {x")),
        Record(Path("c.png"), {"score": 0.5}),
        Record(Path("- ")),
        Record(Path("last")),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON record"),
        ('{"path": "a"} {', "no JSON record"),
        ("{" * 9, "no JSON record"),
        ('{"path": ' + "[" * 100_000, "no JSON record"),
        ('{"path": 1' + "0" * 5000 + "}", "no JSON record"),
        ("{}", 'has no "path"'),
        ('{"path": 3}', 'has no "path"'),
        ('{"path": ""}', 'has no "path"'),
        ('{"path": "a\\u0000b"}', 'has no "path"'),
        pytest.param(
            '{"path": "\\ud800"}',
            'has no "path"',
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has such names"),
        ),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"standard input, line 2: .*{reason}"):
        listed(f"fine\n{line}\n".encode())


def test_lists_as_windows_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UTF-16 of PowerShell, paths in quotes of its explorer, and a file whose name begins as JSON does."""
    monkeypatch.chdir(tmp_path)
    for name in ("a b.png", "{br}.png"):
        Path(name).touch()
    text = 'c.png\r\n"a b.png"\r\n"gone.png"\r\n{br}.png\r\n{"path": "d.png"}\r\n'
    wanted = ["c.png", "a b.png", '"gone.png"', "{br}.png", "d.png"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert [str(record.path) for record in listed(text.encode(encoding))] == wanted
    assert [str(record.path) for record in listed(b"\xff\xfeab\0c\0")] == ["\udcff\udcfeab", "c"]


def test_words_and_the_list_in_their_order() -> None:
    stdin = io.BytesIO(b"from list\n")
    found = [record.path.name for record in read_records(("a", "-", "{b"), stdin)]
    assert found == ["a", "from list", "{b"]
    assert [record.path.name for record in read_records((), io.BytesIO(b"x y\n"))] == ["x y"]


class Terminal(io.BytesIO):
    """What a person would type into."""

    def isatty(self) -> bool:
        return True


def test_nobody_is_left_waiting_at_a_terminal() -> None:
    with pytest.raises(InputError, match="name files or folders"):
        list(read_records((), Terminal()))


def test_text_on_a_terminal_and_json_in_a_pipe() -> None:
    record = Record(Path("a b"), {"score": 1})
    for stream, jsonl, expected in (
        (Terminal(), None, "a b"),
        (io.BytesIO(), None, '{"path": "a b", "score": 1}'),
        (Terminal(), True, '{"path": "a b", "score": 1}'),
        (io.BytesIO(), False, "a b"),
    ):
        write_record(record, jsonl=jsonl, stdout=stream)
        assert stream.getvalue().decode() == expected + "\n"
    out = Terminal()
    write_record(record, text="a b   1.0", stdout=out)
    assert out.getvalue() == b"a b   1.0\n"


def test_no_control_character_reaches_a_terminal() -> None:
    assert format_path(Path("a\x1b[31m\n\x9b")) == '{"path": "a\\u001b[31m\\n\\u009b"}'


def test_what_json_has_no_word_for() -> None:
    numpy = pytest.importorskip("numpy")
    data: dict[str, Any] = {"other": Path("b"), "score": numpy.float32(0.5), "size": numpy.array([1, 2])}
    found = json.loads(format_record(Record(Path("a"), data)))
    assert found == {"path": "a", "other": "b", "score": 0.5, "size": [1, 2]}
    with pytest.raises(TypeError, match="cannot stand in a record"):
        format_record(Record(Path("a"), {"x": object()}))
    with pytest.raises(ValueError, match="JSON compliant"):
        format_record(Record(Path("a"), {"x": float("nan")}))


def test_the_first_lines_do_not_wait_for_the_last() -> None:
    code = (
        "import sys\nfrom lorapipe_engine.command.records import read_records, write_record\n"
        "for record in read_records(()): write_record(record)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"first\n")
        process.stdin.flush()
        assert process.stdout.readline() == b'{"path": "first"}\n'
        process.stdin.write(b"second\n")
        process.stdin.close()
        assert process.stdout.read() == b'{"path": "second"}\n'


# -------------------------------------------------------------------------------- folders


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("b.SAFETENSORS", "a 1.safetensors", "a.txt", ".x.safetensors", "sub/c.safetensors"):
        touch(tmp_path / name)
    (tmp_path / "folder.safetensors").mkdir()
    records = [Record(tmp_path, {"note": 1}), Record(Path("no such file"))]
    found = list(expand_folders(records, (".safetensors",)))
    assert [record.path.name for record in found] == ["a 1.safetensors", "b.SAFETENSORS", "no such file"]
    assert found[0].data == {"note": 1}
    with pytest.raises(InputError, match=r"has no \.ckpt, \.pt files"):
        list(expand_folders(records, (".pt", ".ckpt")))


def test_folders_in_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "Z/1.png", "a.png", ".git/x.png", "b/.thumbs/y.png"):
        touch(tmp_path / name)
    found = find_files(tmp_path, {".png"}, recursive=True)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(
        {"Z/1.png", "a.png", "b/10.png", "b/2.png"}
    )


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("recursive", [False, True])
def test_loops_and_broken_links_are_passed_by(tmp_path: Path, recursive: bool) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to("a.png")
    found = find_files(tmp_path, {".png"}, recursive=recursive)
    assert [path.name for path in found] == ["a.png", "link.png"]


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all"
)
def test_a_locked_folder_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(InputError, match="locked: cannot be read"):
        find_files(tmp_path, {".png"}, recursive=True)


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize(
    "name", ["a.PNG", "b.c.png", "d", "e.", ".f.png", ".png", "g.txt", "h.pngx", "é ü.png"]
)
def test_a_file_is_found_by_the_suffix_that_a_path_has(tmp_path: Path, name: str, recursive: bool) -> None:
    (tmp_path / name).write_bytes(b"")
    path = tmp_path / name
    found = find_files(tmp_path, {".png", ""}, recursive=recursive)
    wanted = path.suffix.lower() in {".png", ""} and not name.startswith(".")
    assert found == ([path] if wanted else [])
