"""Where an OpenAI-compatible server is asked, out of the address that the user gives."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from lorapipe_engine.command.masking import remember_secrets
from lorapipe_engine.errors import ConfigError

CHAT = "/chat/completions"
OPTION = "--caption-url"


@dataclass(frozen=True)
class Address:
    """A server: ``chat`` and ``models`` are paths with their query, ``shown`` the address without user and query,
    ``login`` the value of ``Authorization`` that the address itself holds.
    """

    secure: bool
    host: str
    port: int | None
    chat: str
    models: str
    shown: str
    login: str | None


def parse_address(text: str) -> Address:
    """The server that ``http://HOST:PORT/v1`` means, with or without ``/chat/completions``. Raises ConfigError."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        # Without its words, which may be a password.
        raise ConfigError(f"{OPTION}: no address; give one such as {_SUCH}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{OPTION}: needs http:// or https:// and a host, such as {_SUCH}")
    if not text.strip().isascii() or not text.strip().isprintable() or " " in text.strip():
        raise ConfigError(f"{OPTION}: has letters that no address has; give one such as {_SUCH}")
    if parts.fragment:
        raise ConfigError(f"{OPTION}: # and what follows it has no use in the address; leave it out")
    base = parts.path.rstrip("/").removesuffix(CHAT)
    query = f"?{parts.query}" if parts.query else ""
    place = parts.netloc.rpartition("@")[2]
    return Address(
        secure=parts.scheme == "https",
        host=parts.hostname,
        port=port,
        chat=f"{base}{CHAT}{query}",
        models=f"{base}/models{query}",
        shown=f"{parts.scheme}://{place}{base}",
        login=_login(parts.netloc),
    )


_SUCH = "http://127.0.0.1:8080/v1"


def _login(netloc: str) -> str | None:
    user, mark, _ = netloc.rpartition("@")
    if not mark:
        return None
    remember_secrets([user, unquote(user.partition(":")[2])])
    return f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
