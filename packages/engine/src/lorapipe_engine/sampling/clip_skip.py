"""The clip skip that the networks of a plan were trained with, by their metadata."""

from __future__ import annotations

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.sampling.plan import Plan

KEY = "ss_clip_skip"


def networks_clip_skip(plan: Plan) -> int | None:
    """What all networks of the plan that say a clip skip agree on, None where none says one.

    Raises ConfigError where they differ, and where an axis has the clip skip. A file that cannot be read says none: it
    is told when it is drawn with.
    """
    if any(axis.kind.name == "clip skip" for axis in plan.axes):
        raise ConfigError("--network-clip-skip: an axis has the clip skip already")
    said: dict[int, str] = {}
    for path in sorted({row.file.path for placed in plan.cells for row in placed.cell.networks}):
        try:
            with open_weights(path) as file:
                word = file.metadata.get(KEY, "")
        except InputError:
            continue
        if word.isdecimal() and int(word) > 0:
            said.setdefault(int(word), path.name)
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise ConfigError(
            f"--network-clip-skip: {first} was trained with {one}, {second} with {other}; give --clip-skip, or an axis "
            f'"clip skip:{one}, {other}"'
        )
    return next(iter(said), None)
