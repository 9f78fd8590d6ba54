"""Put a finished network file into a loaded model, for drawing with it."""

from __future__ import annotations

from pathlib import Path

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.families import get_family, network_family
from lorapipe_engine.nn.attach import Network, NetworkPlan, attach
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.choice import every_target
from lorapipe_engine.train.network.trained_file import read_trained


def attach_file(family: Family, path: Path, multiplier: float = 1.0) -> Network:
    """Attach a network file in kohya's names at a strength; ranks and algorithms may differ from module to module.

    Raises InputError where the file is of an algorithm that is not trained here, or has a module that the model lacks.
    """
    file = read_trained(path)
    sizes = file.sizes
    targets = {target.name: target for target in every_target(family)}
    if missing := [name for name in sizes if name not in targets]:
        of = network_family(
            {f"{n}.{suffix}": tuple(t.shape) for n, row in file.tensors.items() for suffix, t in row.items()}
        )
        if of is not None and of != family.name:
            raise InputError(f"{path}: is for {get_family(of).title}, but the base is {family.facts.title}")
        raise InputError(
            f"{path}: {len(missing)} modules fit nowhere in the model, first {quote(missing[0])}"
        )
    plan = NetworkPlan(rank=1, alpha=1.0, sizes=sizes, kinds=file.kinds)
    network = attach(family.parts.values(), [targets[name] for name in sizes], plan)
    try:
        network.load({f"{n}.{suffix}": t for n, row in file.tensors.items() for suffix, t in row.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    network.set_multiplier(multiplier)
    network.train(False)
    return network
