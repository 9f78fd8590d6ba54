"""The Hugging Face hub: whether it answers, and its client kept quiet about its tries."""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator


def why_unreachable() -> str | None:
    """Why the hub is not asked; None if it answers. The client itself would try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return None
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=5):
            return None
    except OSError:
        return f"no connection to {address.hostname}"


def first_line(error: BaseException) -> str:
    """An error's message cut to its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client's talk about its tries off the screen; what ends them is told once, by us."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
