"""``lora-inspect keys``: the tensors of a file, or the modules they make."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile
    from lorapipe_engine.networks.describe import NetworkModule
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect keys mina.safetensors
lora-inspect keys mina.safetensors --modules
lora-inspect keys sd15.safetensors --json
"""


@tool_command("lora-inspect keys", examples=EXAMPLES)
@file_arguments
@click.option("--modules", is_flag=True, help="The modules of a network: algorithm, rank, alpha, part.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def command(inputs: tuple[str, ...], recursive: bool, modules: bool, as_json: bool) -> int:
    """List the tensors of weight files with types, shapes and sizes, in the order of their data.

    FILE are files, folders, or - for standard input (a weight file, or a list of paths). Only headers are read, for
    --modules alphas too. Control characters in names are shown escaped.
    """
    from lorapipe_inspect.inputs import each_file

    def work(one: Input, file: WeightFile) -> None:
        record = module_record(one, file) if modules else tensor_record(one, file)
        if as_json:
            click.echo(json.dumps(record))
            return
        for line in module_lines(record) if modules else tensor_lines(record):
            show(line)

    return each_file(inputs, work, recursive=recursive)


def tensor_record(one: Input, file: WeightFile) -> dict[str, Any]:
    """The file's tensors; sizes in bytes."""
    return {
        "path": one.name,
        "file": one.name,
        "bytes": sum(info.size for info in file.tensors.values()),
        "tensors": [_tensor(name, info) for name, info in file.tensors.items()],
    }


def _tensor(name: str, info: TensorInfo) -> dict[str, Any]:
    return {"name": name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.size}


def tensor_lines(record: dict[str, Any]) -> list[str]:
    """A heading, and a line per tensor: type, shape, size, name."""
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.text import counted, size_in_words

    tensors = record["tensors"]
    shapes = ["x".join(map(str, tensor["shape"])) or "scalar" for tensor in tensors]
    width = max(map(len, shapes), default=0)
    lines = [
        f"{printable(record['file'])}: {counted(len(tensors), 'tensor')}, {size_in_words(record['bytes'])}"
    ]
    for tensor, shape in zip(tensors, shapes, strict=True):
        size = size_in_words(tensor["bytes"])
        lines.append(f"  {tensor['dtype']:<5} {shape:>{width}} {size:>10}  {printable(tensor['name'])}")
    return lines


def module_record(one: Input, file: WeightFile) -> dict[str, Any]:
    """The network's modules. Raises InputError for a file that is no network."""
    from lorapipe_inspect.inputs import described

    network = described(file)
    return {
        "path": one.name,
        "file": one.name,
        "family": network.family,
        "foreign": network.foreign,
        "algo": network.algorithm,
        "parts": dict(network.parts),
        "modules": [_module(module) for module in network.modules.values()],
        "others": list(network.others),
    }


def _module(module: NetworkModule) -> dict[str, Any]:
    return {
        "name": module.name,
        "part": module.part,
        "algo": module.algorithm,
        "rank": module.rank,
        # JSON has no NaN.
        "alpha": module.alpha if module.alpha is None or math.isfinite(module.alpha) else None,
        "kernel": list(module.kernel),
        "tucker": module.tucker,
        "dora": module.dora,
        "tensors": list(module.keys.values()),
    }


def module_lines(record: dict[str, Any]) -> list[str]:
    """A heading, and a line per module: algorithm, rank, alpha, kernel, name."""
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.text import counted

    parts = ", ".join(f"{number} {part}" for part, number in record["parts"].items())
    lines = [
        f"{printable(record['file'])}: {record['family'] or record['foreign'] or 'unknown family'}, {record['algo']}, "
        f"{counted(len(record['modules']), 'module')} ({parts})"
    ]
    for module in record["modules"]:
        rank = "-" if module["rank"] is None else module["rank"]
        alpha = "-" if module["alpha"] is None else f"{module['alpha']:g}"
        kind = " ".join([module["algo"], *(word for word in ("dora", "tucker") if module[word])])
        kernel = "x".join(map(str, module["kernel"])) or "-"
        lines.append(f"  {kind:<8} rank {rank:<4} alpha {alpha:<6} {kernel:<4} {printable(module['name'])}")
    lines += [f"  belongs to no module: {printable(name)}" for name in record["others"]]
    return lines
