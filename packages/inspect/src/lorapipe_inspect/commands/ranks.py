"""``lora-inspect ranks``: the ranks and alphas of a network, and how much of them is in use."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect ranks mina.safetensors
lora-inspect ranks run/ --json
"""


@tool_command("lora-inspect ranks", examples=EXAMPLES)
@file_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file, with every module.")
def command(inputs: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Tell ranks, alphas and strengths of networks, and how many of the ranks are needed.

    A line for each group of modules with one rank and alpha: "used" is the mean rank that holds 99% of the
    change's norm, "dead" counts ranks that do nothing. FILE are files, folders, or - for standard input.
    """
    from lorapipe_engine.command.process.processors import use_one_blas_thread

    use_one_blas_thread()
    from lorapipe_inspect.inputs import described, each_file
    from lorapipe_inspect.measure.figures import network_figures

    def work(one: Input, file: WeightFile) -> None:
        network = described(file)
        measured = network_figures(file, network)
        groups: dict[tuple[int, float | None, bool], list[Any]] = defaultdict(list)
        for row in measured.figures:
            groups[row.rank, row.alpha, bool(network.modules[row.name].kernel)].append(row)
        record = {
            "path": one.name,
            "file": one.name,
            "algo": network.algorithm,
            "groups": [_group(*key, rows) for key, rows in sorted(groups.items(), key=_by_size)],
            **measured.as_record(network),
        }
        if as_json:
            click.echo(json.dumps(record))
            return
        for line in lines_of(record):
            show(line)

    return each_file(inputs, work, recursive=recursive)


def _by_size(item: tuple[tuple[int, float | None, bool], list[Any]]) -> tuple[int, int]:
    return -len(item[1]), item[0][0]


def _group(rank: int, alpha: float | None, conv: bool, rows: list[Any]) -> dict[str, Any]:
    live = [row for row in rows if row.fro]
    return {
        "rank": rank,
        "alpha": alpha,
        "conv": conv,
        "modules": len(rows),
        "scale": rows[0].scale,
        "used": sum(row.rank_for["0.99"] for row in live) / max(1, len(live)),
        "dead_ranks": sum(row.dead_ranks for row in rows),
    }


def lines_of(record: dict[str, Any]) -> list[str]:
    """The table for a person."""
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.tell.figures import uncounted
    from lorapipe_inspect.text import counted

    lines = [f"{printable(record['file'])}: {record['algo']}, {counted(len(record['modules']), 'module')}"]
    lines.append(f"  {'modules':>8}{'rank':>6}{'alpha':>9}{'strength':>10}{'used':>7}{'dead':>6}")
    for group in record["groups"]:
        alpha = "missing" if group["alpha"] is None else f"{group['alpha']:g}"
        kind = "  convolutions" if group["conv"] else ""
        lines.append(
            f"  {group['modules']:>8}{group['rank']:>6}{alpha:>9}{group['scale']:>10.4g}{group['used']:>7.3g}"
            f"{group['dead_ranks']:>6}{kind}"
        )
    return [*lines, *uncounted(record)]
