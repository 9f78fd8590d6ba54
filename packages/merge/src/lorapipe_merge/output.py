"""Writing a merged file: its header first, then every tensor in pieces, by a few threads, each to its place.

Memory is bounded by the pieces, whatever the size of the file: a thread has one buffer for what it reads and one for
what it computes. Files are read, not mapped, since mapped pages would count as memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.process.processors import processors
from lorapipe_engine.files.dtypes import DTYPE_BITS, decode, encode
from lorapipe_engine.files.halves import decode_f16, encode_bf16, encode_f16
from lorapipe_engine.files.tensorfile import TensorFile, WeightFile

Array = NDArray[Any]
T = TypeVar("T")

PIECE = 1 << 20  # numbers worked on at once by a thread
COPY = 1 << 23  # bytes copied at once: other threads can write in between
KEPT = 1 << 24  # bytes of a buffer that is used again
FLUSHED = 1 << 26  # bytes after which the system is told to begin with the disk
_F32 = "F32"


class Target:
    """The file that is being written; threads may share it. A context manager.

    Where it is to replace a file, and so must be on the disk before that, what is written is flushed behind the
    writers: the flush at the end then has little left to wait for.
    """

    def __init__(self, file: BinaryIO, size: int, *, replaces: bool = False) -> None:
        self._file = file
        self._replaces = replaces
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None
        self._unflushed = 0
        file.truncate(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown(cancel_futures=True)
        # The system tells of a failed flush once, so it must not be lost here.
        if error is None and self._flush is not None:
            self._flush.result()

    def write_at(self, data: Any, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data).cast("B")
        size = len(view)
        if not hasattr(os, "pwrite"):  # Windows
            with self._lock:
                self._file.seek(offset)
                self._file.write(view)
            return
        while view:
            done = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[done:], offset + done
        self._wrote(size)

    def copy_at(self, source: TensorFile, key: str, start: int, stop: int, offset: int) -> int:
        """Have the system copy bytes of a tensor to ``offset``; how many it did."""
        done = source.copy_into(key, self._file.fileno(), offset, start, stop)
        self._wrote(done)
        return done

    def _wrote(self, count: int) -> None:
        if not self._replaces:
            return
        with self._lock:
            self._unflushed += count
            if self._unflushed < FLUSHED or (self._flush is not None and not self._flush.done()):
                return
            if self._flush is not None:
                self._flush.result()
            self._unflushed = 0
            self._flush = self._flusher.submit(_flush, self._file.fileno())


def _flush(descriptor: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


class Buffers(threading.local):
    """Memory that a thread uses again for every piece: new memory costs more than the work on it."""

    def __init__(self) -> None:
        self._kept: dict[str, Array] = {}

    def take(self, name: str, count: int, dtype: Any) -> Array:
        """``count`` numbers, of any value. Larger ones than a piece are not kept."""
        size = count * np.dtype(dtype).itemsize
        if size > KEPT:
            return np.empty(count, dtype)
        kept = self._kept.get(name)
        if kept is None or kept.nbytes < size:
            kept = self._kept[name] = np.empty(size, np.uint8)
        return kept[:size].view(dtype)


def bytes_of(array: Array) -> memoryview:
    """The memory of an array, as bytes."""
    return memoryview(array).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers


def read_numbers(file: WeightFile, key: str, start: int, stop: int, buffers: Buffers) -> Array:
    """Numbers ``start`` to ``stop`` of a tensor in row-major order as float32."""
    dtype = file.tensors[key].dtype
    width = DTYPE_BITS[dtype] // 8
    values = buffers.take("values", stop - start, np.float32)
    if dtype == _F32:
        file.raw_into(key, bytes_of(values), start * width)
        return values
    raw = buffers.take("raw", (stop - start) * width, np.uint8)
    file.raw_into(key, bytes_of(raw), start * width)
    if dtype == "F16":
        return decode_f16(raw.view(np.uint16), values)
    values[:] = decode(dtype, bytes_of(raw), (stop - start,))
    return values


def encode_numbers(values: Array, dtype: str, buffers: Buffers) -> Array:
    """float32 numbers in the file's type; "F32", "F16", "BF16", "F64"."""
    if dtype == _F32:
        return values
    if dtype == "F16":
        return encode_f16(values, buffers.take("encoded", values.size, np.uint16))
    if dtype == "BF16":
        return encode_bf16(values, buffers.take("encoded", values.size, np.uint16))
    return np.asarray(encode(values, dtype).data)


def copy_tensor(file: WeightFile, key: str, target: Target, offset: int, buffers: Buffers) -> None:
    """The tensor's bytes as they are."""
    size = file.tensors[key].size
    for start in range(0, size, COPY):
        stop = min(size, start + COPY)
        if isinstance(file, TensorFile):
            start += target.copy_at(file, key, start, stop, offset + start)
        if start < stop:
            piece = buffers.take("copy", stop - start, np.uint8)
            file.raw_into(key, bytes_of(piece), start)
            target.write_at(piece, offset + start)


def run_jobs(jobs: Iterable[Callable[[], T]], threads: int, done: Callable[[T], None]) -> None:
    """Run jobs in a few threads; ``done`` gets what each returns. The first error, or Ctrl-C, ends them all."""
    waiting = iter(jobs)
    running: set[Future[T]] = set()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in waiting:
                running.add(pool.submit(job))
                if len(running) >= 2 * threads:
                    running = _collect(running, done)
            while running:
                running = _collect(running, done)
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _collect(running: set[Future[T]], done: Callable[[T], None]) -> set[Future[T]]:
    finished, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        done(future.result())
    return rest


def thread_count() -> int:
    """Threads worth having: the cores this process may use, at most four, for each has its buffers."""
    return min(4, processors())
