"""Commands called in this process, and what they leave."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest

Out = TypeVar("Out", str, bytes)


@dataclass(frozen=True)
class Result(Generic[Out]):
    """What a run of a command left: its status, and what it wrote to both streams."""

    code: int
    out: Out
    err: str

    @property
    def text(self) -> str:
        return self.out if isinstance(self.out, str) else self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Kind = TypeVar("Kind", bound=Result[Any])


def status_of(command: Any, *words: object) -> int:
    """Call a command with its words; its exit status."""
    with pytest.raises(SystemExit) as end:
        command.main([str(word) for word in words])
    return int(end.value.code or 0)


def caller(
    command: Any,
    kind: type[Kind],
    monkeypatch: pytest.MonkeyPatch,
    captured: pytest.CaptureFixture[bytes],
    *,
    text: bool,
) -> Callable[..., Kind]:
    """What a fixture gives for calling one command: ``run("a.png", "--json", stdin=b"")``. ``text``: its output is."""

    def run(*words: object, stdin: bytes | str = b"") -> Kind:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        code = status_of(command, *words)
        out, err = captured.readouterr()
        return kind(code, out.decode() if text else out, err.decode())

    return run
