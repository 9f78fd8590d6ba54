"""Who may ask the server: this machine's own browser, with the secret that was printed, from the page itself.

Another program of the web may reach a port of this machine through the user's browser. So a request needs the secret in
its path; a host name that a stranger's address was made to point here with is refused, and so is a page of another
origin. What is refused gets an empty answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]
App = Callable[[Environ, Start], Iterable[bytes]]

MOST_BYTES = 4 << 20  # of a request's body
JSON = "application/json"
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
STATUS = {
    403: "403 Forbidden",
    404: "404 Not Found",
    405: "405 Method Not Allowed",
    413: "413 Content Too Large",
    415: "415 Unsupported Media Type",
}


class Gate:
    """A WSGI application in front of another. ``port`` is known once the server is bound.

    ``ticket``: a path that leads to the page once. A browser's command line, on which it stands, can be read by all
    users of the machine.
    """

    def __init__(self, app: App, secret: str, ticket: str | None = None) -> None:
        self._app = app
        self._secret = secret.encode("ascii")
        self._tickets = [] if ticket is None else [f"/{ticket}"]
        self.port = 0

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        def start_guarded(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            names = {name.lower() for name, _ in headers}
            extra = [*HEADERS, ("Cache-Control", "no-store")]
            return start(status, [*headers, *(row for row in extra if row[0].lower() not in names)], *more)

        if self._takes_ticket(environ):
            start_guarded(
                "303 See Other", [("Location", f"/{self._secret.decode()}/"), ("Content-Length", "0")]
            )
            return []
        refused = self._refuse(environ)
        if refused is None:
            return self._app(environ, start_guarded)
        start_guarded(STATUS[refused], [("Content-Length", "0")])
        return []

    def _takes_ticket(self, environ: Environ) -> bool:
        if self._host_of(environ) is None or environ.get("PATH_INFO") not in self._tickets:
            return False
        self._tickets.clear()
        return True

    def _host_of(self, environ: Environ) -> str | None:
        """The name by which the server was asked, None for one that is not its own."""
        host = environ.get("HTTP_HOST", "")
        return host if host in (f"127.0.0.1:{self.port}", f"localhost:{self.port}") else None

    def _refuse(self, environ: Environ) -> int | None:
        """The status that a request is refused with; None for one that may pass, its secret taken off the path."""
        host = self._host_of(environ)
        if host is None:
            return 403
        before, slash, rest = environ.get("PATH_INFO", "").removeprefix("/").partition("/")
        if not hmac.compare_digest(before.encode("latin-1", "replace"), self._secret) or not slash:
            return 404
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin != f"http://{host}":
            return 403
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD", "POST"):
            return 405
        if method == "POST":
            if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != JSON:
                return 415
            if int(environ.get("CONTENT_LENGTH") or 0) > MOST_BYTES:
                return 413
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = f"/{before}", f"/{rest}"
        return None
