"""The kinds of what is trained, and the amounts that go with each, shared by checker, lora-repeats and lora-train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What is trained, and the numbers that go with it: pictures shown in an epoch and in all, pictures in the set."""

    name: str
    epoch: int
    epoch_range: tuple[int, int]
    total: int
    total_range: tuple[int, int]
    pictures: tuple[int, int] | None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("character", 400, (300, 500), 4000, (2000, 7000), (50, 100)),
        Kind("style", 500, (400, 600), 10000, (8000, 12000), (75, 150)),
        Kind("concept", 400, (200, 600), 4000, (2000, 7000), None),
    )
}
