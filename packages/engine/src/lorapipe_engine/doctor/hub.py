"""The hub: whether it answers, by which way, and whether what is needed of it lies here already."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.masking import masked
from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.errors import LoraError
from lorapipe_engine.models.bases import DEMO, resolve_base
from lorapipe_engine.models.clip_tokenizer import CACHED, CLIP_REPOSITORY, TOKENIZER_FILES

PATIENCE = 5.0  # seconds
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Hub:
    """The hub's address, and why it cannot be had; ``reason`` is empty where it answers."""

    address: str
    reason: str

    @property
    def answers(self) -> bool:
        """Whether files can be fetched from it."""
        return not self.reason


def hub_cache() -> Path:
    """Where the hub's client keeps what it has fetched."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return root.expanduser() / "hub"


def ask_hub() -> Hub:
    """Ask the hub for its front page, by the proxies of the environment."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        return Hub(address, "HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        # Something answered; a proxy that wants a password, or a wall, is no hub.
        return Hub(address, "" if error.code in (403, 404, 405, 429) else f"HTTP {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Hub(address, str(getattr(reason, "strerror", None) or reason)[:120] or type(error).__name__)
    return Hub(address, "")


def hub_finding(hub: Hub, base: str | None) -> Finding:
    """Whether the hub can be reached, and whether the run wants it: for a base by its hub id that is not here."""
    proxies = urllib.request.getproxies()
    ways = ", ".join(f"{kind} by {masked(_plain(address))}" for kind, address in sorted(proxies.items()))
    way = f" ({ways})" if ways else ""
    if hub.answers:
        return Finding("hub", "ok", f"{hub.address} answers{way}; it keeps files in {hub_cache()}")
    mend = (
        "set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy, or bring the files by hand: bases and VAEs as "
        "files, the tokenizer by --tokenizer_dir"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        mend = "unset it to fetch files, or bring them by hand"
    text = f"{hub.address} does not answer{way}: {hub.reason}"
    wanted = base is not None and is_hub_id(base)
    if wanted and not _snapshots(str(base)):
        return Finding("hub", "stop", f"{text}; and {base} is not in {hub_cache()}", mend)
    return Finding("hub", "note", text, mend)


def base_finding(base: str | None) -> Finding | None:
    """Whether the base is there; None without one, and for one that the hub has."""
    if base is None:
        return None
    try:
        place = resolve_base(base)
    except LoraError as error:
        return Finding("base", "stop", str(error))
    return Finding("base", "ok", str(place)) if isinstance(place, Path) else None


def tokenizer_finding(hub: Hub, base: str | None, given: Path | None) -> Finding:
    """Whether CLIP's tokenizer can be had: of the folder given, beside the base, out of the hub's cache, of the hub."""
    name = "tokenizer"
    files = " and ".join(TOKENIZER_FILES)
    if given is not None:
        if _has_tokenizer(given):
            return Finding(name, "ok", str(given))
        return Finding(
            name, "stop", f"{given} has no {files}", "name the folder that has them by --tokenizer_dir"
        )
    if base == DEMO:
        return Finding(name, "ok", "the demo base has its own")
    for folder in (*_beside(base), *_cached()):
        if _has_tokenizer(folder):
            return Finding(name, "ok", str(folder))
    if hub.answers:
        return Finding(name, "ok", f"not here yet; the first run fetches it from {CLIP_REPOSITORY}")
    return Finding(
        name,
        "stop",
        f"none beside the base nor in {hub_cache()}, and the hub does not answer",
        f"put {files} of {CLIP_REPOSITORY} into a folder and name it by --tokenizer_dir",
    )


def is_hub_id(base: str) -> bool:
    """Whether a base is meant by its name on the hub."""
    return not Path(base).expanduser().exists() and base != DEMO and base.count("/") == 1


def _beside(base: str | None) -> Sequence[Path]:
    if base is None:
        return ()
    path = Path(base).expanduser()
    if path.is_dir():
        return (path / "tokenizer", path)
    if path.exists():
        return (path.parent / "tokenizer", path.parent)
    return tuple(folder / "tokenizer" for folder in _snapshots(base)) if is_hub_id(base) else ()


def _cached() -> list[Path]:
    return [snapshot / folder for repository, folder in CACHED for snapshot in _snapshots(repository)]


def _snapshots(repository: str) -> list[Path]:
    folder = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _has_tokenizer(folder: Path) -> bool:
    return all((folder / name).is_file() for name in TOKENIZER_FILES) or (folder / "tokenizer.json").is_file()


def _plain(address: str) -> str:
    """A proxy's address without the name and the password that may stand in it."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
