"""``lora-inspect norms``: how strongly every module, every block and the whole network changes its base."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect norms mina.safetensors
lora-inspect norms mina.safetensors --blocks
lora-inspect norms run/*.safetensors --modules --json
"""


@tool_command("lora-inspect norms", examples=EXAMPLES)
@file_arguments
@click.option("--blocks", is_flag=True, help="A line for each block of the model.")
@click.option("--modules", is_flag=True, help="A line for each module, the strongest first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file, with all of it.")
def command(inputs: tuple[str, ...], recursive: bool, blocks: bool, modules: bool, as_json: bool) -> int:
    """Tell how strongly networks change their base, by the singular values σ of each module's change ΔW.

    "norm" is ‖ΔW‖ (Frobenius) at strength 1, "σ1" the largest singular value, "stable" ‖ΔW‖²/σ1², "effective" exp of
    the entropy of σ/Σσ, "90%", "95%" and "99%" the ranks that hold that share of the norm. Of several modules the norm
    is that of all together, the ranks are means. FILE are files, folders, or - for standard input.
    """
    from lorapipe_engine.command.process.processors import use_one_blas_thread

    use_one_blas_thread()
    from lorapipe_inspect.inputs import described, each_file
    from lorapipe_inspect.measure.figures import beside, by_block, check_some, network_figures, summed

    def work(one: Input, file: WeightFile) -> None:
        network = described(file)
        measured = network_figures(file, network)
        figures = measured.figures
        check_some(measured, one.name)
        record = {
            "path": one.name,
            "file": one.name,
            "family": network.family,
            "algo": network.algorithm,
            "network": summed(figures),
            "blocks": dict(by_block(figures, network)),
            **measured.as_record(network),
            "beside": beside(network),
        }
        if as_json:
            click.echo(json.dumps(record))
            return
        for line in lines_of(record, blocks=blocks, modules=modules):
            show(line)

    return each_file(inputs, work, recursive=recursive)


def lines_of(record: dict[str, Any], *, blocks: bool, modules: bool) -> list[str]:
    """The table for a person."""
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.tell.figures import besides, uncounted
    from lorapipe_inspect.text import counted

    total = record["network"]
    lines = [
        f"{printable(record['file'])}: {counted(total['modules'], 'module')}, {total['zero']} of them zero"
    ]
    head = f"  {'':<8}{'norm':>10}{'σ1':>10}{'stable':>8}{'effective':>11}{'90%':>7}{'95%':>7}{'99%':>7}"
    lines += [head, _row("all", total)]
    if blocks:
        lines += [_row(name, row) for name, row in record["blocks"].items()]
    if modules:
        rows = sorted(
            (row for row in record["modules"].values() if "fro" in row), key=lambda row: -row["fro"]
        )
        lines += [f"{_row('', row)}  {printable(row['name'])}" for row in rows]
    return [*lines, *uncounted(record), *besides(record)]


def _row(label: str, row: dict[str, Any]) -> str:
    ranks = "".join(f"{row['rank_for'][share]:>7.3g}" for share in ("0.9", "0.95", "0.99"))
    return (
        f"  {label:<8}{row['fro']:>10.4g}{row['spectral']:>10.4g}{row['stable_rank']:>8.3g}"
        f"{row['effective_rank']:>11.3g}{ranks}"
    )
