"""The server: bound to this machine alone, until Ctrl-C or SIGTERM comes."""

from __future__ import annotations

import errno
import logging
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

from lorapipe_dataset.check.edit.gate import MOST_BYTES, Gate
from lorapipe_engine.errors import ConfigError

HOST = "127.0.0.1"
THREADS = 8  # a browser loads six pictures at once
TICK = 0.5  # seconds in which an interrupt is noticed on Windows


def bind(gate: Gate, port: int) -> Any:
    """A server of waitress that is bound to ``port``, 0 for a free one. Raises ConfigError for one that is taken."""
    import waitress

    # It would say that pictures wait for each other.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        server = waitress.create_server(
            gate,
            host=HOST,
            port=port,
            threads=THREADS,
            ident=None,
            max_request_body_size=MOST_BYTES,
            clear_untrusted_proxy_headers=True,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: another program has it; leave it out to get a free one"
            ) from error
        raise ConfigError(f"--port {port}: cannot be bound ({error.strerror})") from error
    gate.port = int(server.effective_port)
    return server


def serve(server: Any, close: Callable[[], None], *, open_at: str | None = None) -> None:
    """Answer until an interrupt comes; ``close`` waits for what is being written then. The interrupt goes on.

    ``open_at``: an address to open in the user's browser once there are answers.
    """
    stopped = threading.Event()

    def run() -> None:
        try:
            server.run()
        finally:
            stopped.set()

    # Of a thread its own, since waitress takes an interrupt for its own end.
    threading.Thread(target=run, daemon=True, name="lora-check server").start()
    try:
        if open_at is not None:
            webbrowser.open(open_at)
        while not stopped.wait(TICK):
            pass
    finally:
        close()
