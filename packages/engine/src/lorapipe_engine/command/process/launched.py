"""The processes of a launcher (torchrun, ``accelerate launch``), by the variables that it sets in each."""

from __future__ import annotations

import os

from lorapipe_engine.errors import ConfigError

UNSET = "where no launcher was started, unset WORLD_SIZE"


def launched() -> int:
    """How many processes a launcher started with this one, itself counted. Raises ConfigError."""
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"WORLD_SIZE: {count!a} in the environment is no number of processes; {UNSET}")
    return int(count)


def process_number() -> int:
    """Which of them this one is, from 0. Raises ConfigError."""
    count = launched()
    number = os.environ.get("RANK", "")
    if count == 1:
        return 0  # whatever an earlier launcher left there
    if not number.isdecimal() or int(number) >= count:
        given = f"{number!a}" if number else "nothing"
        raise ConfigError(
            f"RANK: {given} in the environment, but {count} processes have 0 to {count - 1}; {UNSET}"
        )
    return int(number)


def is_first() -> bool:
    """Whether this is the process that talks for all. Raises ConfigError."""
    return process_number() == 0
