"""``lora-resize``: networks in, smaller networks out. numpy is imported only when there is work to do."""

from __future__ import annotations

import os
from typing import Any

import click

from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.files.sizes import parse_size

EXAMPLES = """
lora-resize big.safetensors -o small.safetensors --new-rank 32
lora-resize big.safetensors -o small.safetensors --new_rank 32 --dynamic_method sv_fro --dynamic_param 0.9
lora-resize big.safetensors -o small.safetensors --target-size 20MB --report
lora-resize run/ -o small/ --new-rank 32 --new-conv-rank 16
ls *.safetensors | lora-inspect zeros | lora-resize --new-rank 32 -o small/
lora-resize big.safetensors --new-rank 32 -o - | lora-inspect zeros -
"""
DEFAULT_RANK = 32


@tool_command("lora-resize", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[IN]...")
@click.option("--model", metavar="IN", help="The input, as sd-scripts has it.")
@click.option("-o", "--output", "--save-to", metavar="OUT", help="File, folder for several, or - for stdout.")
@click.option(
    "-r",
    "--new-rank",
    "--rank",
    "rank",
    type=click.IntRange(1),
    help=f"Largest rank.  [default: {DEFAULT_RANK}]",
)
@click.option(
    "--new-conv-rank",
    "--conv-rank",
    "conv_rank",
    type=click.IntRange(1),
    help="Largest rank of convolutions (1x1 too).  [default: the same]",
)
@click.option(
    "--dynamic-method",
    "--method",
    "method",
    type=click.Choice(["sv_ratio", "sv_fro", "sv_cumulative"]),
    help="Choose each rank by the singular values: those above the first / PARAM, or as many as keep "
    "the share PARAM of their Frobenius norm, or of their sum.",
)
@click.option(
    "--dynamic-param", "--param", "param", type=float, metavar="PARAM", help="Number for the method."
)
@click.option("--exact-count", is_flag=True, help="Keep what the method asks for; sd-scripts keeps one more.")
@click.option(
    "--target-size",
    metavar="SIZE",
    help="Instead of a method: ranks that lose least in a file of at most 20MB.",
)
@click.option(
    "--save-precision",
    "--precision",
    "precision",
    type=click.Choice(["keep", "fp16", "bf16", "fp32", "float"]),
    default="keep",
    show_default=True,
    help="Number type of the new factors.",
)
@click.option(
    "--balance",
    type=click.Choice(["sqrt", "up", "down"]),
    default="sqrt",
    show_default=True,
    help="Where singular values go: half to each side, or as sd-scripts has it all into lora_up.",
)
@click.option(
    "--keep-alphas/--one-alpha",
    "keep_alphas",
    default=False,
    show_default=True,
    help="An alpha of its own for every module, as sd-scripts writes them; diffusers' loader needs one for all.",
)
@click.option("--drop-zero", is_flag=True, help="Leave out modules whose change is exactly zero.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Copy modules with NaN or infinite values instead of stopping."
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cuda does dense SVDs (diff, LoHa of high rank) with torch.",
)
@click.option("--report", is_flag=True, help="Print what every module kept and lost, and the totals.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object per file.")
@click.option("-n", "--dry-run", is_flag=True, help="Compute and report, write nothing.")
@click.option("--force", is_flag=True, help="Replace files that exist, the input too.")
def lora_resize(inputs: tuple[str, ...], model: str | None, target_size: str | None, **flags: Any) -> int:
    """Shrink LoRA networks by exact singular value decomposition.

    IN are files, folders, or - for standard input (a network, or a list of paths); without any, paths are
    read from standard input. Linear algorithms (LoRA, LoCon, LoHa, LoKr, full differences) are resized to
    plain LoRA, what depends on the base model is copied. The paths of the new files go to stdout.
    """
    use_one_blas_thread()
    from lorapipe_resize.run import Options, run

    flags["target_size"] = target_size
    flags["precision"] = {"float": "fp32"}.get(flags["precision"], flags["precision"])
    flags["rank"] = flags["rank"] or (None if target_size else DEFAULT_RANK)
    flags["target_bytes"] = parse_size(target_size, "--target-size") if target_size else None
    words = (*inputs, model) if model else inputs
    return run(Options(inputs=words, **flags))


def use_one_blas_thread() -> None:
    """Ask the BLAS for one thread; modules are spread over threads instead.

    On factors two BLAS threads are slower than one: SD 1.5 at dim 64 takes 1.4 s and 2.5 s of CPU with two, 1.0 s
    and 1.0 s with one. Has to come before numpy is imported; a value that the user set stays.
    """
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def main() -> None:
    """Entry point of ``lora-resize``."""
    lora_resize.main()
