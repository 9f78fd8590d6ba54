"""Commands that start warm: one process has imported torch and the models, and forks for each run of a command.

To import them takes most of the time of a training of a few steps. ``warm_folder()`` has programs named as ours that
need torch; each hands its words, streams, folder and environment to the server, passes signals on, and ends as its run
ends. What is tested of the start itself is tested without.

    python warm.py SOCKET    serves until its standard input ends
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

SERVED = ("lora-train", "lora-sample", "torchrun", "warm-python")
IMPORTED = (
    "lorapipe_engine.train.session",
    "lorapipe_engine.train.queue",
    "lorapipe_engine.train.sample.cells",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "torch._dynamo",
    "torch.utils.tensorboard",
)
# Passed on to the run; before it is known which, they wait.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys
signals = {signals}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
words = [{name!r}, *sys.argv[1:]]
ignored = [n for n in signals if signal.getsignal(n) is signal.SIG_IGN]
order = dict(words=words, folder=os.getcwd(), environment=dict(os.environ), ignored=ignored)
text = json.dumps(order).encode()
socket.send_fds(link, [len(text).to_bytes(4, "big")], [0, 1, 2])
link.sendall(text)
run = int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")
for number in set(signals) - set(ignored):
    signal.signal(number, lambda number, _: os.kill(run, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
status = int.from_bytes(link.recv(4, socket.MSG_WAITALL) or b"\\1\\0", "big")
if os.WIFSIGNALED(status):
    signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.WEXITSTATUS(status))
"""


@cache
def warm_folder() -> Path:
    """A folder of programs for the front of a PATH; their server ends with this process."""
    place = tempfile.TemporaryDirectory(prefix="lorapipe-warm-")
    folder, address = Path(place.name), str(Path(place.name) / "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    until = time.monotonic() + 120
    while not Path(address).exists():
        assert server.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    for name in SERVED:
        program = folder / name
        names = [int(number) for number in SIGNALS]
        program.write_text(
            PROGRAM.format(python=sys.executable, name=name, address=address, signals=names), encoding="utf-8"
        )
        program.chmod(0o755)

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(20)
        place.cleanup()

    atexit.register(end)
    return folder


# ------------------------------------------------------------------------------------------------- the server


def serve(address: str) -> None:
    """Fork for each order that comes, and tell its program how the run ended; with a program its run is killed."""
    before = dict(os.environ)
    for name in IMPORTED:
        import_module(name)
    mains = {
        entry.name: entry.load() for entry in entry_points(group="console_scripts") if entry.name in SERVED
    }
    mains["warm-python"] = _python
    imported = {name: text for name, text in os.environ.items() if before.get(name) != text}
    runs: dict[int, socket.socket] = {}
    ended, wake = socket.socketpair()
    for end in (ended, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.soon")
    listener.listen(64)
    Path(f"{address}.soon").rename(address)
    with selectors.DefaultSelector() as waiting:
        for source in (listener, ended, sys.stdin):
            waiting.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is ended:
                    with contextlib.suppress(BlockingIOError):
                        ended.recv(4096)
                    _tell_ends(runs, waiting)
                elif key.fileobj is listener:
                    link, _ = listener.accept()
                    order, streams = _read_order(link)
                    if order is None:  # its program was killed before it had said all
                        link.close()
                        continue
                    run = os.fork()
                    if not run:
                        signal.set_wakeup_fd(-1)
                        _run(order, streams, mains, imported)
                    for stream in streams:
                        os.close(stream)
                    runs[run] = link
                    waiting.register(link, selectors.EVENT_READ)
                    with contextlib.suppress(OSError):
                        link.sendall(run.to_bytes(4, "big"))
                else:  # its program has ended before its run, unless the run has ended at the same moment
                    for run in [run for run, link in runs.items() if link is key.fileobj]:
                        waiting.unregister(key.fileobj)
                        os.kill(run, signal.SIGKILL)


def _tell_ends(runs: dict[int, socket.socket], waiting: selectors.BaseSelector) -> None:
    for run, link in list(runs.items()):
        found, status = os.waitpid(run, os.WNOHANG)
        if found:
            with contextlib.suppress(KeyError):
                waiting.unregister(link)
            with contextlib.suppress(OSError):
                link.sendall(status.to_bytes(4, "big"))
            link.close()
            del runs[run]


def _read_order(link: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    streams: list[int] = []
    try:
        length, streams, *_ = socket.recv_fds(link, 4, 3)
        text = link.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        return json.loads(text), streams
    except (OSError, ValueError):
        for stream in streams:
            os.close(stream)
        return None, []


def _run(order: dict[str, Any], streams: list[int], mains: dict[str, Any], imported: dict[str, str]) -> None:
    """Be the program: never returns."""
    status = 1
    try:
        os.setsid()
        for number in (*SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number in order["ignored"] else signal.SIG_DFL)
        if signal.SIGINT not in order["ignored"]:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for to, stream in enumerate(streams):
            os.dup2(stream, to)
        os.closerange(3, 256)
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _writer(1, "strict")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")  # type: ignore[misc]
        os.environ.clear()
        os.environ.update(imported | order["environment"])
        os.chdir(order["folder"])
        sys.argv = order["words"]
        if threads := os.environ.get("OMP_NUM_THREADS"):
            import_module("torch").set_num_threads(int(threads))
        try:
            status = mains[sys.argv[0]]() or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]  # Python itself waits for threads first
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _python() -> None:
    """``warm-python``: what ``python FILE``, ``python -m MODULE`` and ``python -c CODE`` do."""
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    kind, *words = sys.argv[1:]
    if kind == "-c":
        sys.argv = [kind, *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102  it is what -c does
    elif kind == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [kind, *words], [str(Path(kind).parent)]
        runpy.run_path(kind, run_name="__main__")


def _writer(number: int, errors: str) -> io.TextIOWrapper:
    by_line = os.isatty(number) or number == 2
    raw = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=errors, line_buffering=by_line)


if __name__ == "__main__":
    serve(sys.argv[1])
