"""Put a finished network file into a loaded model, for drawing with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.families import get_family, network_family
from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.choice import every_target
from lorapipe_engine.train.network.files.trained_file import TrainedFile, read_trained


def attach_file(family: Family, path: Path, multiplier: float = 1.0) -> Network:
    """Attach a network file in kohya's names at a strength; ranks and algorithms may differ from module to module.

    Raises InputError where the file is of an algorithm that is not trained here, or has a module that the model lacks.
    """
    file = read_trained(path)
    plan = NetworkPlan(rank=1, alpha=1.0, sizes=file.sizes, kinds=file.kinds)
    network = attach(family.parts.values(), fitting_targets(family, file).values(), plan)
    try:
        network.load({f"{n}.{suffix}": t for n, row in file.tensors.items() for suffix, t in row.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    network.train(False)
    network.set_multiplier(multiplier)
    return network


def fitting_targets(
    family: Family, file: TrainedFile, known: Mapping[str, Target] | None = None
) -> dict[str, Target]:
    """The layer of each module of a file, by the module's name. ``known``: every target of the family, where it was
    gathered before.

    Raises InputError for a module that the model lacks, with the family that it is of.
    """
    targets = known or {target.name: target for target in every_target(family)}
    if missing := [name for name in file.sizes if name not in targets]:
        of = network_family(
            {f"{n}.{suffix}": tuple(t.shape) for n, row in file.tensors.items() for suffix, t in row.items()}
        )
        if of is not None and of != family.name:
            raise InputError(
                f"{file.path}: is for {get_family(of).title}, but the base is {family.facts.title}"
            )
        raise InputError(
            f"{file.path}: {len(missing)} modules fit nowhere in the model, first {quote(missing[0])}"
        )
    return {name: targets[name] for name in file.sizes}
