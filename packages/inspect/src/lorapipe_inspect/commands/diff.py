"""``lora-inspect diff``: what two networks have in common, and what not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.tool import show, tool_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lorapipe_engine.files.dtypes import Array
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_engine.networks.describe import Network, NetworkModule

EXAMPLES = """
lora-inspect diff before.safetensors after.safetensors
lora-inspect diff big.safetensors small.safetensors --modules
lora-inspect diff a.safetensors b.safetensors --json
"""
SHOWN = 8
# Of modules whose change depends on the base, with the same tensors in both files.
UNKNOWN_BUT_EQUAL = {"norms": [None, None], "apart": 0.0, "relative": 0.0, "cosine": None}


@tool_command("lora-inspect diff", examples=EXAMPLES)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--modules", is_flag=True, help="A line for every module, the most different first.")
@click.option("--json", "as_json", is_flag=True, help="Print all of the comparison as one JSON object.")
def command(first: str, second: str, modules: bool, as_json: bool) -> int:
    """Compare two networks: modules, shapes, number types, metadata, and what they change.

    Changes are compared as such, ‖ΔA - ΔB‖/‖ΔA‖ and the cosine between them; factors may differ and do the same. Exit
    code 0 if both change the same (to one part in a million), 1 if not. A or B may be - for standard input.
    """
    from lorapipe_engine.command.process.processors import use_one_blas_thread

    use_one_blas_thread()
    from lorapipe_inspect.inputs import read_one

    with read_one(first).open() as a, read_one(second).open() as b:
        record = {"paths": [first, second], **compare(a, b)}
    if as_json:
        click.echo(json.dumps(record))
    else:
        for line in lines_of(record, modules=modules):
            show(line)
    return 0 if record["same"] else 1


def compare(a: WeightFile, b: WeightFile) -> dict[str, Any]:
    """The comparison as a record; where both files have a value, a pair in their order.

    Raises InputError for files that are no networks.
    """
    import math

    from lorapipe_engine.delta.apart import changes_apart
    from lorapipe_engine.delta.whole import check_whole
    from lorapipe_engine.files.threads import map_in_threads
    from lorapipe_engine.networks.read import read_module
    from lorapipe_inspect.inputs import described

    networks = described(a), described(b)
    one, two = (layers_of(network, networks) for network in networks)
    both = [name for name in one if name in two]
    renamed = sum(one[name].name != two[name].name for name in both)

    def apart_of(name: str) -> dict[str, Any] | None:
        if "unknown" in {one[name].algorithm, two[name].algorithm}:
            return None
        check_whole(a, one[name])
        check_whole(b, two[name])
        tensors = read_module(a, one[name]), read_module(b, two[name])
        apart = changes_apart(*tensors, name=name)
        return UNKNOWN_BUT_EQUAL if apart is None and are_equal(*tensors) else apart

    rows = dict(zip(both, map_in_threads(apart_of, both, "diff"), strict=True))
    known = [row for row in rows.values() if row is not None]
    size = math.sqrt(sum((row["norms"][0] or 0) ** 2 for row in known))
    apart = math.sqrt(sum(row["apart"] ** 2 for row in known))
    only_a = sorted(one[name].name for name in set(one) - set(two))
    only_b = sorted(two[name].name for name in set(two) - set(one))
    relative = apart / size if size else (0.0 if apart == 0 else math.inf)
    return {
        "same": not only_a and not only_b and relative <= 1e-6 and len(known) == len(rows),
        "relative": relative if known and math.isfinite(relative) else None,
        "spelled_otherwise": renamed,
        "only": [only_a, only_b],
        "metadata": metadata_difference(a.metadata, b.metadata),
        "tensors": tensor_difference(a, b),
        "modules": rows,
    }


def are_equal(one: Mapping[str, Array], two: Mapping[str, Array]) -> bool:
    """Whether two modules have the same tensors, so that they do the same to any base."""
    if one.keys() != two.keys() or any(one[s].shape != two[s].shape for s in one):
        return False
    return all(bool((one[s] == two[s]).all()) for s in one)


def layers_of(network: Network, networks: Sequence[Network]) -> dict[str, NetworkModule]:
    """A network's modules by the names that kohya's trainer gives to their layers, whatever the file calls them.

    A family that only one of two files shows is taken for both. Raises InputError where one layer has two names.
    """
    from lorapipe_engine.errors import InputError
    from lorapipe_engine.networks.kohya_names import kohya_name

    family = network.family or next((other.family for other in networks if other.family), None)
    layers: dict[str, NetworkModule] = {}
    for module in network.modules.values():
        name = kohya_name(module.name, family)
        if name in layers:
            raise InputError(
                f"{network.path}: names one layer twice, as {layers[name].path} and as {module.path}"
            )
        layers[name] = module
    return layers


def metadata_difference(a: dict[str, str], b: dict[str, str]) -> dict[str, list[str | None]]:
    """Keys whose values differ, with both; None where a file lacks the key."""
    return {key: [a.get(key), b.get(key)] for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def tensor_difference(a: WeightFile, b: WeightFile) -> dict[str, list[str | None]]:
    """Tensors whose type or shape differ, with both; None where a file lacks one."""

    def shown(file: WeightFile, name: str) -> str | None:
        if name not in file.tensors:
            return None
        info = file.tensors[name]
        return f"{info.dtype} {'x'.join(map(str, info.shape)) or 'scalar'}"

    names = sorted({*a.tensors, *b.tensors})
    return {n: [shown(a, n), shown(b, n)] for n in names if shown(a, n) != shown(b, n)}


def lines_of(record: dict[str, Any], *, modules: bool) -> list[str]:
    """The comparison for a person."""
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.text import counted

    rows = {name: row for name, row in record["modules"].items() if row is not None}
    total = "different throughout" if record["relative"] is None else f"{record['relative']:.3g}"
    figure = f"; ‖ΔA - ΔB‖/‖ΔA‖ = {total}" if rows else ""
    lines = [f"{counted(len(record['modules']), 'module')} in both{figure}"]
    if renamed := record["spelled_otherwise"]:
        other = printable(record["paths"][1])
        lines.append(f"{counted(renamed, 'module', 'have')} another name in {other}")
    for path, only in zip(record["paths"], record["only"], strict=True):
        if only:
            more = f" and {len(only) - SHOWN} more" if len(only) > SHOWN else ""
            shown = ", ".join(printable(module) for module in only[:SHOWN])
            lines.append(f"only in {printable(path)}: {counted(len(only), 'module')}: {shown}{more}")
    if record["tensors"]:
        lines.append(
            f"{counted(len(record['tensors']), 'tensor')} of another type or shape, or in one file only"
        )
    ordered = sorted(rows, key=lambda name: -rows[name]["apart"])
    for name in ordered if modules else ordered[:SHOWN]:
        row = rows[name]
        if (row["relative"] or 0) > 1e-9 or modules:
            relative = f"{row['relative']:.3g}" if row["relative"] is not None else "-"
            cosine = f"{row['cosine']:.4f}" if row["cosine"] is not None else "-"
            lines.append(f"  {relative:>9}  cosine {cosine:>7}  {printable(name)}")
    unknown = len(record["modules"]) - len(rows)
    if unknown:
        lines.append(
            f"not compared: {counted(unknown, 'module')}, whose changes depend on the base, are not finite or have "
            "other sizes in the two files"
        )
    for key, (one, two) in record["metadata"].items():
        lines.append(f"{printable(key)}: {_short(one)} -> {_short(two)}")
    return lines


def _short(text: str | None) -> str:
    from lorapipe_engine.command.text import printable

    if text is None:
        return "(none)"
    return printable(text if len(text) <= 50 else f"{text[:47]}...")
