"""What was tested together, and the least that is needed; a test holds both to constraints.txt and pyproject.toml."""

from __future__ import annotations

from dataclasses import dataclass

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)


@dataclass(frozen=True)
class Package:
    """A package by its name in the index. ``least`` is needed, ``tested`` was tried; ``module`` is what is imported."""

    name: str
    module: str
    least: str
    tested: str


TRAINING = (
    Package("torch", "torch", "2.8", "2.13.0"),
    Package("diffusers", "diffusers", "0.35", "0.42.1"),
    Package("transformers", "transformers", "4.54", "5.23.0"),
    Package("accelerate", "accelerate", "1.6", "1.15.0"),
    Package("tensorboard", "tensorboard", "2.19", "2.21.0"),
    Package("pillow", "PIL", "10.3", "13.0.0"),
    Package("huggingface-hub", "huggingface_hub", "0.34", "2.4.0"),
    Package("pytorch-optimizer", "pytorch_optimizer", "4.1", "4.1.0"),
    Package("numpy", "numpy", "1.26", "2.4.6"),
)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version: 2.8.0+cu128 is (2, 8, 0)."""
    parts: list[int] = []
    for word in version.split("+")[0].split("."):
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def is_older(version: str, least: str) -> bool:
    """Whether a version is older than the least one that will do."""
    have, wanted = numbers(version), numbers(least)
    size = max(len(have), len(wanted))
    return have + (0,) * (size - len(have)) < wanted + (0,) * (size - len(wanted))
