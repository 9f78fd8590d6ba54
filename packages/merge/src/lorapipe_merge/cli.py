"""``lora-merge``: networks into a checkpoint, networks into one, checkpoints into one."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.errors import ConfigError

EXAMPLES = """
lora-merge base.safetensors mina.safetensors --ratio 0.8 -o merged.safetensors
lora-merge base.safetensors mina.safetensors:0.8 style.safetensors:0.5 -o merged.safetensors --verify
lora-merge base.safetensors style.safetensors --blocks IN04=0.5,MID=0,TE=0 -o merged.safetensors
lora-merge --undo merged.safetensors -o base-again.safetensors
lora-merge --networks mina.safetensors:0.7 style.safetensors:0.5 -o both.safetensors
lora-merge --networks mina.safetensors style.safetensors --mode svd --new-rank 32 -o both.safetensors
lora-merge --models a.safetensors b.safetensors --method weighted-sum --ratio 0.3 -o ab.safetensors
"""
METHODS = (
    *("weighted-sum", "add-difference", "train-difference", "slerp"),
    *("ties", "dare", "median", "geometric-median", "average"),
)
DEFAULT_RANK = 32


@tool_command("lora-merge", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="BASE LORA[:RATIO]...", required=True)
@click.option(
    "-o", "--output", "--save-to", metavar="OUT", help="The new file, or folder for a diffusers model."
)
@click.option(
    "--ratio",
    "--ratios",
    "ratio",
    type=float,
    help="Strength of networks without one of their own; share of "
    "the second model.  [default: 1; models: what fits the method]",
)
@click.option("--networks", is_flag=True, help="The inputs are networks, to be made into one.")
@click.option("--models", is_flag=True, help="The inputs are checkpoints, to be made into one.")
@click.option("--undo", is_flag=True, help="Take the networks of a merged fp32 checkpoint out of it again.")
@click.option(
    "--blocks",
    metavar="LIST",
    help="Block weights: 12, 17, 19, 20, 25 or 26 numbers, or IN04=0.5,MID=1,TE=0.",
)
@click.option(
    "--save-precision",
    "--precision",
    "precision",
    type=click.Choice(["keep", "fp16", "bf16", "fp32", "float"]),
    default="keep",
    show_default=True,
    help="Number type of the result.",
)
@click.option("--verify", is_flag=True, help="Read the result again and prove W' - W against the factors.")
@click.option(
    "--allow-unmatched", is_flag=True, help="Merge although some modules find no place in the base."
)
@click.option("--allow-nonfinite", is_flag=True, help="Merge although there are NaN or infinite values.")
@click.option(
    "--mode",
    type=click.Choice(["concat", "svd"]),
    help="Networks: exact, ranks added up, or optimal of a given rank.  [default: concat]",
)
@click.option(
    "-r",
    "--new-rank",
    "--rank",
    "rank",
    type=click.IntRange(1),
    help=f"With svd: largest rank.  [default: {DEFAULT_RANK}]",
)
@click.option(
    "--new-conv-rank", "--conv-rank", "conv_rank", type=click.IntRange(1), help="The same for convolutions."
)
@click.option(
    "--dynamic-method",
    "dynamic",
    type=click.Choice(["sv_ratio", "sv_fro", "sv_cumulative"]),
    help="With svd: choose each rank as lora-resize does.",
)
@click.option("--dynamic-param", "param", type=float, metavar="PARAM", help="Number for --dynamic-method.")
@click.option("--exact-count", is_flag=True, help="Keep what the method asks for; sd-scripts keeps one more.")
@click.option(
    "--target-size", metavar="SIZE", help="With svd: ranks that lose least in a file of at most 20MB."
)
@click.option("--shuffle", type=int, metavar="SEED", help="Networks: permute the order of the ranks.")
@click.option("--method", type=click.Choice(METHODS), help="How models are merged.")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=NUMBER",
    help="A number for the method, such as density=0.2 (ties) or drop=0.3 (dare).",
)
@click.option("--vae", metavar="FILE", help="Models: put this VAE into the result.")
@click.option(
    "--ema",
    type=click.Choice(["keep", "prune", "use"]),
    default="keep",
    show_default=True,
    help="Models: what becomes of averaged weights.",
)
@click.option("--prune", is_flag=True, help="Models: leave out what no program reads.")
@click.option("--seed", type=int, default=0, show_default=True, help="Models: for dare.")
@click.option("--no-metadata", is_flag=True, help="Write no recipe; the base's metadata stay.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@click.option("-n", "--dry-run", is_flag=True, help="Check and report, write nothing.")
@click.option("--force", is_flag=True, help="Replace a file that exists, the base too.")
def lora_merge(inputs: tuple[str, ...], **flags: Any) -> int:
    """Merge LoRA networks into a checkpoint, networks into one network, or checkpoints.

    BASE is a checkpoint of SD 1.x, SD 2.x or SDXL, a diffusers folder, or the word demo. A ratio is what
    <lora:name:0.8> means in a prompt. Every module has to find its place, or nothing is written. The path of the
    result goes to stdout, the report to stderr.
    """
    use_one_blas_thread()
    flags["precision"] = {"float": "fp32"}.get(flags["precision"], flags["precision"])
    chosen = [name for name in ("networks", "models", "undo") if flags.pop(name)]
    if len(chosen) > 1:
        raise ConfigError(f"--{chosen[0]} and --{chosen[1]} are two different merges; give one of them")
    if flags["output"] is None:
        raise ConfigError("give the file to write: -o merged.safetensors")
    run = {"networks": _networks, "models": _models, "undo": _undo}.get(
        chosen[0] if chosen else "", _checkpoint
    )
    return run(inputs, **flags)


def _checkpoint(inputs: tuple[str, ...], *, output: str, ratio: float | None, **flags: Any) -> int:
    from lorapipe_merge.checkpoint.merge import merge_checkpoint

    if len(inputs) < 2:
        raise ConfigError("give a base and at least one network: lora-merge BASE LORA:0.8 -o OUT")
    base, *names = inputs
    networks = with_ratios(names, 1.0 if ratio is None else ratio)
    networks = [(name, number) for name, number in networks if number] or networks
    report = merge_checkpoint(base, networks, Path(output), flags["blocks"], _wishes(flags))
    return _tell(report, flags)


def _undo(inputs: tuple[str, ...], *, output: str, ratio: float | None, **flags: Any) -> int:
    from lorapipe_merge.checkpoint.undo import undo_merge

    del ratio
    report = undo_merge(inputs[0], inputs[1:], Path(output), _wishes(flags))
    return _tell(report, flags)


def _networks(inputs: tuple[str, ...], *, output: str, ratio: float | None, **flags: Any) -> int:
    from lorapipe_merge.networks.merge import merge_networks

    svd = flags["mode"] == "svd"
    asked = [name for name in ("rank", "conv_rank", "dynamic", "target_size") if flags[name] is not None]
    if asked and not svd:
        raise ConfigError("ranks can be chosen with --mode svd only; concat adds them up")
    from lorapipe_engine.files.sizes import parse_size

    return merge_networks(
        with_ratios(inputs, 1.0 if ratio is None else ratio),
        output,
        mode="svd" if svd else "concat",
        rank=flags["rank"] or (DEFAULT_RANK if svd and not flags["target_size"] else None),
        conv_rank=flags["conv_rank"],
        method=flags["dynamic"],
        param=flags["param"],
        exact_count=flags["exact_count"],
        target_bytes=parse_size(flags["target_size"], "--target-size") if flags["target_size"] else None,
        **{name: flags[name] for name in ("precision", "shuffle", "no_metadata", "force", "dry_run")},
        **{name: flags[name] for name in ("allow_nonfinite", "as_json")},
    )


def _models(inputs: tuple[str, ...], *, output: str, ratio: float | None, **flags: Any) -> int:
    from lorapipe_merge.models.merge import merge_models

    names = ("blocks", "vae", "ema", "precision", "prune", "seed", "no_metadata")
    return merge_models(
        [
            (name, None if math.isnan(number) else number)
            for name, number in with_ratios(inputs, math.nan if ratio is None else ratio)
        ],
        output,
        method=flags["method"] or "weighted-sum",
        params=dict(map(_pair, flags["params"])),
        **{name: flags[name] for name in (*names, "force", "dry_run", "allow_nonfinite", "as_json")},
    )


def with_ratios(names: tuple[str, ...] | list[str], default: float) -> list[tuple[str, float]]:
    """Names with their ratios: "file:0.8", or ``default``. A file whose own name ends like that is taken as it is."""
    return [_with_ratio(name, default) for name in names]


def _with_ratio(name: str, default: float) -> tuple[str, float]:
    path, colon, number = name.rpartition(":")
    if not colon or not path or Path(name).exists():
        return name, default
    try:
        ratio = float(number)
    except ValueError:
        return name, default
    if not math.isfinite(ratio):
        raise ConfigError(f"{name}: the ratio is not a finite number")
    return path, ratio


def _pair(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ConfigError(f"--param {text}: write NAME=NUMBER") from None


def _wishes(flags: dict[str, Any]) -> Any:
    from lorapipe_merge.checkpoint.merge import Wishes

    names = ("precision", "allow_unmatched", "allow_nonfinite", "verify", "dry_run", "force")
    return Wishes(**{name: flags[name] for name in names}, metadata=not flags["no_metadata"])


def _tell(report: Any, flags: dict[str, Any]) -> int:
    for line in report.lines(dry_run=flags["dry_run"]):
        say(line)
    if flags["as_json"]:
        write_json(report.as_record())
    elif not flags["dry_run"]:
        write_path(Path(report.output))
    return 0


def use_one_blas_thread() -> None:
    """Ask the BLAS for one thread; tensors are spread over threads instead. Before numpy is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def main() -> None:
    """Entry point of ``lora-merge``."""
    lora_merge.main()
