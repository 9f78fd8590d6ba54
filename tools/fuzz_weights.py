"""Broken weight files by the thousand: no crash, no traceback, no memory beyond the file's size plus 50 MB.

    python tools/fuzz_weights.py --headers 1000000 --files 10000 [--seed 0]

Headers are broken in many ways and read by the engine's reader; small networks (.safetensors and .ckpt) are mutated
byte by byte and given to lora-inspect check, lora-resize, lora-extract and lora-merge, in this process. The same seed
gives the same cases.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors

ROOM = 50_000_000  # bytes
SECONDS = 20  # that a case may take
BORDERS = (
    -1,
    0,
    1,
    2,
    7,
    8,
    255,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    1.5,
    True,
    None,
    "1",
    [],
    {},
)


class Failure(Exception):
    """A case that went wrong, told so that it can be made again."""


def limit_memory() -> None:
    """Let nothing take more than ROOM beyond what the process has now (where the system can do that)."""
    try:
        import resource
    except ImportError:
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    now = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


# ------------------------------------------------------------------------------------------------ headers


def header_cases(rng: random.Random, count: int) -> Iterator[bytes]:
    """Whole files, most of them wrong in one way or in several."""
    makers: tuple[Callable[[random.Random], bytes], ...] = (broken_entry, broken_json, broken_length, noise)
    for _ in range(count):
        yield rng.choice(makers)(rng)


def sound_header(rng: random.Random) -> dict[str, Any]:
    header: dict[str, Any] = {}
    end = 0
    for number in range(rng.randrange(5)):
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        size = 4 * int(np.prod(shape)) if shape else 4
        name = f"lora_unet_{number}.lora_up.weight"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if rng.random() < 0.5:
        header["__metadata__"] = {"ss_network_dim": "4"}
    return header


def packed(text: bytes, rng: random.Random, data: int) -> bytes:
    length = len(text) if rng.random() < 0.95 else rng.choice([0, len(text) + 1, 2**40, 2**63, len(text) - 1])
    return max(0, length).to_bytes(8, "little") + text + bytes(data)


def broken_entry(rng: random.Random) -> bytes:
    header = sound_header(rng)
    data = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
    for _ in range(rng.randrange(3)):
        name = rng.choice(list(header) or ["x"])
        entry = header.get(name)
        if isinstance(entry, dict) and entry and rng.random() < 0.8:
            field = rng.choice(list(entry))
            if isinstance(entry[field], list) and entry[field] and rng.random() < 0.6:
                entry[field][rng.randrange(len(entry[field]))] = rng.choice(BORDERS)
            else:
                entry[field] = rng.choice([*BORDERS, "F4", "BF16", "Q8", ["F32"]])
        else:
            header[rng.choice([name, "", "\x00", "\ud800", "../x", "a" * 300])] = rng.choice(BORDERS)
    return packed(json.dumps(header).encode(), rng, max(0, data + rng.choice([0, 0, 0, 1, -1])))


def broken_json(rng: random.Random) -> bytes:
    text = bytearray(json.dumps(sound_header(rng)).encode())
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(text) + 1)
        if rng.random() < 0.5:
            text[place : place + rng.randrange(4)] = rng.choice(
                [
                    b"",
                    b"{",
                    b"[",
                    b'"',
                    b"NaN",
                    b"1e999",
                    b"\xff",
                    b"\x00",
                    b"-",
                    b"[" * 2000,
                    b"9" * 5000,
                    b"\\ud800",
                ]
            )
        elif text:
            text[place % len(text)] = rng.randrange(256)
    return packed(bytes(text), rng, rng.choice([0, 4, 64]))


def broken_length(rng: random.Random) -> bytes:
    text = json.dumps(sound_header(rng)).encode()
    length = rng.choice([0, 1, 7, len(text), 10**8, 10**8 + 1, 2**32, 2**63, 2**64 - 1, rng.getrandbits(64)])
    return (length.to_bytes(8, "little") + text + bytes(rng.randrange(64)))[: rng.randrange(200)]


def noise(rng: random.Random) -> bytes:
    start = rng.choice(
        [b"", b"PK\x03\x04", b"\x80\x02", b"GGUF", b"<html", (20).to_bytes(8, "little") + b"{"]
    )
    return start + rng.randbytes(rng.randrange(120))


def fuzz_headers(rng: random.Random, count: int) -> tuple[int, int]:
    """How many files were read, how many refused."""
    read = refused = 0
    for case in header_cases(rng, count):
        try:
            with open_tensors(io.BytesIO(case)) as file:
                for name in file.tensors:
                    file.raw(name)
            read += 1
        except InputError as error:
            if "\n" in str(error):
                raise Failure(f"more than one line: {error}") from error
            refused += 1
        except Exception as error:
            raise Failure(f"{type(error).__name__} {error} for {case[:400]!r}") from error
    return read, refused


# ------------------------------------------------------------------------------------------------ files


def sound_files(folder: Path) -> list[Path]:
    """Small files of several kinds, from which the broken ones are made."""
    rng = np.random.default_rng(0)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {
        f"{name}.lora_up.weight": rng.standard_normal((8, 2)).astype(np.float16),
        f"{name}.lora_down.weight": rng.standard_normal((2, 8)).astype(np.float16),
        f"{name}.alpha": np.asarray(1.0, np.float16),
    }
    loha = {f"{name}.hada_w{n}_{side}": rng.standard_normal((4, 4)) for n in (1, 2) for side in "ab"}
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0"
    base = {
        f"{key}.attn1.to_q.weight": rng.standard_normal((8, 8)).astype(np.float16),
        f"{key}.attn2.to_k.weight": rng.standard_normal((8, 768)).astype(np.float16),
        "model.diffusion_model.input_blocks.3.0.op.weight": rng.standard_normal((4, 4, 3, 3)).astype(
            np.float16
        ),
    }
    facts = {"ss_network_dim": "2", "ss_clip_skip": "2", "ss_tag_frequency": '{"a": {"1girl": 3}}'}
    for stem, tensors in (("lora", lora), ("loha", loha), ("base", base)):
        write_tensors(folder / f"{stem}.safetensors", tensors, facts, force=True)
    pickle = folder / "lora.ckpt"
    with zipfile.ZipFile(pickle, "w", zipfile.ZIP_STORED) as archive:
        # {"x": tensor of 4 float32}, as torch.save writes it.
        archive.writestr("archive/data.pkl", _pickled())
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
    return [folder / f"{stem}.safetensors" for stem in ("lora", "loha", "base")] + [pickle]


def _pickled() -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85\x89}tR"
    return b"\x80\x02}X\x18\x00\x00\x00lora_unet_x.lora_up.weig" + tensor + b"s."


def mutated(data: bytes, rng: random.Random) -> bytes:
    text = bytearray(data)
    if rng.random() < 0.4:  # numbers alone, so that more than the header is looked at
        for _ in range(rng.choice([1, 4, 30])):
            text[rng.randrange(len(text) * 3 // 4, len(text))] = rng.randrange(256)
        return bytes(text)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(text)) if text else 0
        kind = rng.randrange(5)
        if kind == 0 and text:
            text[place] = rng.randrange(256)
        elif kind == 1 and text:
            text[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del text[place : place + rng.randrange(1, 40)]
        elif kind == 3:
            text[place:place] = rng.randbytes(rng.randrange(1, 20))
        else:
            text[:] = text[: rng.randrange(len(text) + 1)]
    return bytes(text)


def fuzz_files(rng: random.Random, count: int, folder: Path) -> dict[int, int]:
    """How often each exit status came."""
    from lorapipe_inspect.cli import lora_inspect
    from lorapipe_merge.cli import lora_merge
    from lorapipe_resize.cli import lora_resize
    from lorapipe_resize.extract.cli import lora_extract

    sources = sound_files(folder)
    out = str(folder / "out.safetensors")
    base, lora = str(sources[2]), str(sources[0])
    statuses: dict[int, int] = {}
    for number in range(count):
        source = rng.choice(sources)
        path = folder / f"case{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), rng))
        if source is sources[2]:
            pair = rng.choice(([str(path), base], [base, str(path)]))
            run, words = rng.choice(
                (
                    (lora_merge, [str(path), lora, "-o", out, "--force"]),
                    (lora_extract, [*pair, "-o", out, "--force", "--conv-dim", "2", "--verify"]),
                    (lora_extract, [*pair, "-n", "--dim", "signal"]),
                )
            )
        else:
            choices = (
                (lora_inspect, ["check", str(path)]),
                (lora_inspect, ["zeros", str(path), "--json"]),
                (lora_resize, [str(path), "-o", out, "--new-rank", "1", "--force"]),
                (lora_extract, [str(path), base, "-o", out, "--force", "--verify"]),
                (lora_extract, [str(path), "-n"]),
                (lora_merge, [base, str(path), "-o", out, "--force"]),
            )
            run, words = rng.choice(choices)
        status, told = run_tool(run, words)
        statuses[status] = statuses.get(status, 0) + 1
        if status not in (0, 1, 2) or "unexpected error" in told or "Traceback" in told:
            kept = Path(tempfile.gettempdir()) / f"fuzz-{number}{source.suffix}"
            kept.write_bytes(path.read_bytes())
            raise Failure(f"case {number}, {kept}: {' '.join(words)}: status {status}, {told.strip()}")
    return statuses


def run_tool(tool: Any, words: list[str]) -> tuple[int, str]:
    """Exit status of a tool run in this process, and what it told."""
    out, told = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(told):
            tool.main(words)
    except SystemExit as end:
        return int(end.code or 0), told.getvalue()
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)
    return 0, told.getvalue()


def _too_long(*_: object) -> None:
    faulthandler.dump_traceback()
    os._exit(1)  # a thread that does not come back would be waited for


def main() -> int:
    """Run the cases; 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            fuzz_files(
                random.Random(options.seed + 1), 40, Path(folder)
            )  # what is loaded late is not the files' memory
            limit_memory()
            read, refused = fuzz_headers(random.Random(options.seed), options.headers)
            print(
                f"{options.headers:,} headers: {read:,} read, {refused:,} refused, {time.monotonic() - began:.0f} s"
            )
            statuses = fuzz_files(random.Random(options.seed), options.files, Path(folder))
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    shares = ", ".join(f"{count:,} ended with {status}" for status, count in sorted(statuses.items()))
    print(f"{options.files:,} files: {shares}; {time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
