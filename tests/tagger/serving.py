"""A server of the kind that lora-tag asks for sentences: a real one, in a thread, that answers as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SENTENCE = "A girl in a white hoodie holds a book."
Answer = tuple[int, dict[str, str], bytes]


def answer(text: str | None = SENTENCE, ending: str = "stop", **more: Any) -> Answer:
    """A chat completion as servers write it."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    return as_json({"choices": [{"message": message, "finish_reason": ending}], **more})


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


class Server(ThreadingHTTPServer):
    """Answers with what ``say`` gives for the number of the question (from 0) and its body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say: Callable[[int, dict[str, Any]], Answer] = lambda _number, _question: answer()
        self.questions: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.guard = threading.Lock()
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def words(self) -> list[str]:
        return [question["messages"][0]["content"][0]["text"] for question in self.questions]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.reply(as_json({"data": [{"id": "first-model"}, {"id": "second"}]}))

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            number = len(self.server.questions)
            self.server.questions.append(question)
            self.server.asked.append(("POST", self.path))
            self.server.headers.append(dict(self.headers))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            said = self.server.say(number, question)
        finally:
            with self.server.guard:
                self.server.now -= 1
        self.reply(said)

    def reply(self, said: Answer) -> None:
        status, headers, body = said
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass
