"""Sizes of files as people write them."""

from __future__ import annotations

import re

from lorapipe_engine.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str, option: str) -> int:
    """Bytes of "20MB", "20 MiB", "1.5G" or "20000000". Raises ConfigError, naming the option, for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise ConfigError(f"{option} {text}: not a size; write 20MB, 20MiB or a number of bytes")
    return size
