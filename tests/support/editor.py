"""``lora-check --edit`` as a process of its own, and a client that speaks HTTP with it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_CODE = "from lorapipe_dataset.check.cli import main; main()"


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Editor:
    """A running server; it is killed when the block ends, if it did not end itself."""

    def __init__(self, folder: Path, *words: object, before: str = "") -> None:
        """``before``: Python code that is run first."""
        command = [
            sys.executable,
            "-c",
            f"{before}\n{_CODE}",
            "--edit",
            str(folder),
            "--json",
            "--no-browser",
        ]
        self.process = subprocess.Popen(
            [*command, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.record: dict[str, Any] = json.loads(line)
        self.port = int(self.record["port"])
        self.base = "/" + str(self.record["url"]).split("/", 3)[3]

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit status and what stderr had."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A request with the path as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str = "") -> Reply:
        """A request below the secret."""
        return self.ask("GET", self.base + path)

    def post(self, path: str, **body: Any) -> Reply:
        """A request with a JSON object."""
        return self.ask(
            "POST", self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )

    def state(self) -> dict[str, Any]:
        """All pictures and findings."""
        return self.get("api/state").json

    def pictures(self) -> dict[str, dict[str, Any]]:
        """The pictures by their names."""
        return {Path(one["path"]).name: one for one in self.state()["pictures"] if not one.get("gone")}

    def edit(self, action: str, *names: str, **more: Any) -> dict[str, Any]:
        """An edit of pictures by their names (none: of all), with the versions that they have now."""
        there = self.pictures()
        chosen = [there[name] for name in names or there]
        reply = self.post(
            "api/edit",
            action=action,
            ids=[one["id"] for one in chosen],
            versions={one["id"]: one["version"] for one in chosen},
            **more,
        )
        assert reply.status == 200, reply.body
        return reply.json

    def undo(self) -> dict[str, Any]:
        """The last edit taken back."""
        reply = self.post("api/undo")
        assert reply.status == 200, reply.body
        return reply.json

    def wait_for(self, since: int) -> dict[str, Any]:
        """What changed after a revision, as soon as anything did."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            answer = self.get(f"api/changes?since={since}").json
            if answer["revision"] > since:
                return answer
            time.sleep(0.02)
        raise AssertionError("nothing changed")


@contextmanager
def editing(folder: Path, *words: object) -> Iterator[Editor]:
    """A server of a folder for a block."""
    with Editor(folder, *words) as editor:
        yield editor


def held(folder: Path) -> dict[str, bytes]:
    """The bytes of a folder's files, but for what the journals keep."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lorapipe" not in path.parts
    }
