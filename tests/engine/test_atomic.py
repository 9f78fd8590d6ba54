from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.writing.atomic import atomic_write, check_output

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path, force=True) as file:
        raise error(file.write(b"half"))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="--force"), atomic_write(path):
        pass
    assert path.read_bytes() == b"old"
    with atomic_write(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with pytest.raises(OutputError, match="another program"), atomic_write(path):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["out.bin"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "no" / "out.bin", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "out.bin", force=True)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError, match="free"):
        check_output(tmp_path / "out.bin", force=False, size=1 << 62)


@POSIX
def test_devices_are_not_replaced() -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(Path("/dev/null"), force=True)


@POSIX
def test_the_mode_of_a_replaced_file_stays_and_new_ones_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with atomic_write(path):
        pass
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o640)
    with atomic_write(path, force=True):
        pass
    assert path.stat().st_mode & 0o777 == 0o640


@POSIX
def test_a_full_disk_gives_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from lorapipe_engine.files.writing.atomic import atomic_write\n"
        "from lorapipe_engine.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_write(Path(sys.argv[1]), force=True) as file: file.write(bytes(100000))\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    code = (
        "import sys, time; from pathlib import Path; from lorapipe_engine.files.writing.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1]), force=True) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(number)
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == b"old"
    left = [name for name in names(tmp_path) if name != "out.bin"]
    # Nothing can be tidied up after a kill; what stays is hidden and has a suffix that no tool reads.
    assert left == [] if number == signal.SIGINT else all(name.endswith(".tmp") for name in left)
