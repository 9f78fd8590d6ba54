"""What is merged: names with their ratios, and the open network files."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, open_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.read import network_path, require_understood
from lorapipe_merge.matching import Applied
from lorapipe_merge.settings import STREAM


def with_ratios(names: Sequence[str]) -> list[tuple[str, float | None]]:
    """Names with their own ratios: "file:0.8", None without. A file whose own name ends like that is taken as it is.

    Raises ConfigError for a ratio that is not finite.
    """
    return [_with_ratio(name) for name in names]


def _with_ratio(name: str) -> tuple[str, float | None]:
    path, colon, number = name.rpartition(":")
    if not colon or not path or Path(name).exists():
        return name, None
    try:
        ratio = float(number)
    except ValueError:
        return name, None
    if not math.isfinite(ratio):
        raise ConfigError(f"{name}: the ratio is not a finite number")
    return path, ratio


def with_default(names: Sequence[str], default: float | None) -> list[tuple[str, float]]:
    """Names with their own ratios, else ``default``, else 1. Raises ConfigError for a default that none takes."""
    usual = 1.0 if default is None else default
    pairs = with_ratios(names)
    if default is not None and pairs and all(ratio is not None for _, ratio in pairs):
        raise ConfigError(
            f"--ratio {default:g}: has no use, each network has a ratio of its own; leave it out"
        )
    return [(name, usual if ratio is None else ratio) for name, ratio in pairs]


def without_ratios(names: Sequence[str], default: float | None, why: str) -> list[tuple[str, float]]:
    """Names, each with the ratio 1. Raises ConfigError for any ratio; ``why`` none is wanted."""
    pairs = with_ratios(names)
    own = next((f"{name}:{ratio:g}" for name, ratio in pairs if ratio is not None), None)
    if own is not None or default is not None:
        raise ConfigError(f"{own or f'--ratio {default:g}'}: {why}; leave out the ratio")
    return [(name, 1.0) for name, _ in pairs]


@contextmanager
def open_networks(networks: Sequence[tuple[str, float]]) -> Iterator[list[Applied]]:
    """Open network files; "-" is one on standard input. Raises InputError, and ConfigError for a bad ratio."""
    with ExitStack() as stack:
        opened = []
        for name, ratio in networks:
            if not math.isfinite(ratio):
                raise ConfigError(f"--ratio {ratio}: not a finite number")
            if name == STREAM:
                data = sys.stdin.buffer.read()
                weights: WeightFile = stack.enter_context(open_tensors(BytesIO(data)))
                digest, shown = hashlib.sha256(data).hexdigest(), "standard input"
            else:
                path = network_path(Path(name))
                weights = stack.enter_context(open_weights(path))
                digest, shown = known_sha256(path), name
            network = describe_network(weights)
            require_understood(network)
            opened.append(Applied(weights, network, ratio, shown, digest))
        yield opened
