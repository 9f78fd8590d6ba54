"""Two steps of training on the demo base, in a process of their own: whether everything works together."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.errors import OutputError

LONGEST = 600.0  # seconds
SIDE = 64
OPTIONS = "--base demo --resolution 64 --max_train_steps 2 --max_token_length 75 --network_dim 4 --lr_warmup_steps 0"
_START = "from lorapipe_engine.cli import train_main; train_main()"


def trial_finding(device: str | None) -> Finding:
    """Train on two small pictures for two steps, and say how long it took."""
    name = "trial"
    if find_spec("lorapipe_demo") is None:
        mend = "pip install ./packages/demo in the repository"
        return Finding(name, "note", "left out: the demo base is not installed", mend)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="lorapipe-doctor-") as folder:
            ended = _train(Path(folder), device)
    except subprocess.TimeoutExpired:
        return Finding(name, "stop", f"two steps on the demo base did not end in {LONGEST:.0f} s")
    except (OSError, OutputError) as error:
        return Finding(
            name, "stop", f"no folder for it could be made ({error})", "make room for temporary files"
        )
    if ended.returncode == 0:
        return Finding(name, "ok", f"two steps on the demo base took {time.monotonic() - began:.0f} s")
    said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    last = said[-1] if said else f"it ended with {ended.returncode} and said nothing"
    return Finding(
        name, "stop", f"two steps on the demo base failed: {last}", "run it by hand with -v to see where"
    )


def _train(folder: Path, device: str | None) -> subprocess.CompletedProcess[bytes]:
    pictures = folder / "dataset" / "1_square"
    pictures.mkdir(parents=True)
    for number, colour in enumerate(((200, 30, 30), (30, 30, 200))):
        (pictures / f"{number}.png").write_bytes(one_colour_png(SIDE, colour))
        (pictures / f"{number}.txt").write_text("a square", encoding="utf-8")
    words = [*OPTIONS.split(), *(("--device", device) if device else ())]
    places = ["--train_data_dir", str(folder / "dataset"), "--output_dir", str(folder / "networks")]
    return subprocess.run(
        [sys.executable, "-c", _START, *words, *places],
        capture_output=True,
        timeout=LONGEST,
        stdin=subprocess.DEVNULL,
        # A launcher's variables are not this process's.
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    )


def one_colour_png(side: int, colour: tuple[int, int, int]) -> bytes:
    """A square PNG of one colour."""
    rows = (b"\0" + bytes(colour) * side) * side

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
