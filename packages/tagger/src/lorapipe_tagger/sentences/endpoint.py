"""One question to a server over HTTP: to the host that the user named and no other.

The standard library's ``http.client`` knows no proxies and follows no redirects. A question has one limit of time for
all of it, and is asked again, after growing pauses, where the server says that it is busy.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.masking import masked
from lorapipe_engine.command.text import one_line
from lorapipe_tagger.sentences.address import OPTION, Address
from lorapipe_tagger.sentences.failures import Hopeless, NoSentence, Unavailable

FIRST_PAUSE = 0.5  # seconds; each further one is twice as long
LONGEST_PAUSE = 60.0
MOST_BYTES = 4 << 20  # of an answer
_CONNECT_SECONDS = 10.0
_SHOWN = 200  # letters of what a server says
_SIGHT = ("image", "vision", "multimodal", "multi-modal", "mmproj")
_BUSY = 429


@dataclass(frozen=True)
class Reply:
    """What came: the status, headers by small names, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_page(self) -> bool:
        """Whether it is a page for a browser."""
        kind = self.headers.get("content-type", "")
        return "html" in kind or self.body.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))

    @property
    def words(self) -> str:
        """What a server says of its error, in a line; empty where it says nothing."""
        text = self.body.decode("utf-8", "replace")
        if self.is_page:
            return "an HTML page"
        with suppress(NoJson):
            text = said(parse_json(text)) or text
        line = masked(one_line(text))  # a server may say the key that it was given
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def said(value: object) -> str:
    """The message in an error of a server, as the programs have it: error.message, error, message or detail."""
    if not isinstance(value, dict):
        return ""
    error = value.get("error", value)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


class Endpoint:
    """A server. Several threads may ask at once. ``seconds``: the limit of time for an answer, ``retries``: how often a
    question is asked again.
    """

    def __init__(self, address: Address, *, key: str | None, seconds: float, retries: int) -> None:
        self.address = address
        self._login = f"Bearer {key}" if key else address.login
        self._seconds, self._retries = seconds, retries
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def stop(self) -> None:
        """End all questions that wait for an answer, and let none begin."""
        self._stopped.set()
        with self._lock:
            for one in self._open:
                _shut(one)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """The answer of status 200. Raises NoSentence for this question, Hopeless for all."""
        pause, reply, lost = FIRST_PAUSE, None, ""
        for trial in range(self._retries + 1):
            if trial and self._stopped.wait(max(pause, _asked_pause(reply))):
                break
            pause = min(LONGEST_PAUSE, 2 * pause) if trial else pause
            reply, lost = None, ""
            try:
                reply = self._once(method, path, body)
            except ConnectionError as error:
                lost = error.strerror or str(error) or type(error).__name__
                continue
            if reply.status == 200:
                return reply
            self._judge(reply)
        if self._stopped.is_set():
            raise Hopeless("stopped")
        where, tries = (
            self.address.shown,
            "tried " + (f"{self._retries + 1} times" if self._retries else "once"),
        )
        if reply is None:
            raise Hopeless(
                f"{OPTION}: {where} cannot be reached ({one_line(lost)}, {tries}); is the server running?"
            )
        raise Unavailable(
            f"no sentence: the server is busy or in trouble (status {reply.status}, {tries}): {reply.words}; see its "
            "log, or give fewer --caption-jobs"
        )

    def _judge(self, reply: Reply) -> None:
        """Raise what an answer of another status than 200 means; not for one that is worth asking again."""
        status, words, where = reply.status, reply.words, self.address.shown
        if 300 <= status < 400:
            to = one_line(reply.headers.get("location", "nowhere"))
            raise Hopeless(
                f"{OPTION}: {where} leads on to {to}, which is not followed; give that address if you mean it"
            )
        if status in (401, 403):
            raise Hopeless(f"{OPTION}: {where} wants a key (status {status}: {words}); see --caption-key")
        if status in (404, 405):
            raise Hopeless(
                f"{OPTION}: {where} has nothing there (status {status}: {words}); is the address right, which mostly "
                "ends with /v1, and the name of --caption-model?"
            )
        if any(word in words.lower() for word in _SIGHT) and not reply.is_page and status >= 400:
            raise Hopeless(
                f"{OPTION}: the model takes no pictures (status {status}: {words}); load one that sees (llama.cpp: "
                "with --mmproj)"
            )
        if status != _BUSY and status < 500:
            raise NoSentence(f"no sentence: the server refuses the question (status {status}): {words}")

    def _once(self, method: str, path: str, body: bytes | None) -> Reply:
        """One answer of any status. Raises ConnectionError where there is none, Unavailable where it is late."""
        kind = HTTPSConnection if self.address.secure else HTTPConnection
        link = kind(self.address.host, self.address.port, timeout=min(_CONNECT_SECONDS, self._seconds))
        late = threading.Event()
        try:
            link.connect()
            line = link.sock
            line.settimeout(self._seconds)
            with self._lock:
                self._open.add(line)
                if self._stopped.is_set():
                    _shut(line)
            clock = threading.Timer(self._seconds, _end, (late, line))
            clock.daemon = True
            clock.start()
            try:
                return self._exchange(link, method, path, body)
            finally:
                clock.cancel()
                with self._lock:
                    self._open.discard(line)
        except ssl.SSLError as error:
            raise Hopeless(
                f"{OPTION}: {self.address.shown}: no safe connection ({one_line(error)})"
            ) from error
        except socket.gaierror as error:
            raise Hopeless(f"{OPTION}: {self.address.shown}: no such host ({error.strerror})") from error
        except (OSError, HTTPException) as error:
            if late.is_set() or (isinstance(error, TimeoutError) and link.sock is not None):
                raise Unavailable(
                    f"no sentence: no answer within {self._seconds:g} s; give --caption-timeout more, or fewer "
                    "--caption-jobs"
                ) from error
            if isinstance(error, ConnectionError):
                raise
            raise ConnectionError(one_line(error) or type(error).__name__) from error
        finally:
            link.close()

    def _exchange(self, link: HTTPConnection, method: str, path: str, body: bytes | None) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": "lora-tag"}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        headers |= {"Authorization": self._login} if self._login else {}
        link.request(method, path, body=body, headers=headers)
        response = link.getresponse()
        data = response.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise NoSentence(f"no sentence: an answer of more than {MOST_BYTES >> 20} MiB")
        if response.length:
            raise ConnectionError("the answer broke off")
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, data)


def _end(late: threading.Event, line: socket.socket) -> None:
    late.set()
    _shut(line)


def _shut(line: socket.socket) -> None:
    # Not SSLSocket's own, which another thread may be reading from.
    with suppress(OSError):
        socket.socket.shutdown(line, socket.SHUT_RDWR)


def _asked_pause(reply: Reply | None) -> float:
    """The seconds that the server asks to wait for, as far as they are bearable."""
    text = reply.headers.get("retry-after", "") if reply else ""
    return min(LONGEST_PAUSE, float(text)) if text.isascii() and text.isdigit() else 0.0
