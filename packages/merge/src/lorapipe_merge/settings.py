"""What each mode of ``lora-merge`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.foreign import ignored, refused
from lorapipe_engine.command.modes import Mode, flag

Precision = Literal["keep", "fp16", "bf16", "fp32"]
Dynamic = Literal["sv_ratio", "sv_fro", "sv_cumulative"]
MethodName = Literal[
    "weighted-sum",
    "add-difference",
    "train-difference",
    "slerp",
    "ties",
    "dare",
    "median",
    "geometric-median",
    "average",
]
DEFAULT_RANK = 32
_SVD = ("mode=svd", "average")
STREAM = "-"


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """All modes"""

    output: str | None = flag(
        None, "The new file, or folder for a diffusers model.", "-o", "--output", "--save-to", metavar="OUT"
    )
    save_precision: Literal["keep", "fp16", "bf16", "fp32", "float"] | None = flag(
        None, "Number type of the result.  [default: keep]"
    )
    merge_precision: Literal["keep", "fp16", "bf16", "fp32", "float"] | None = flag(
        None, "sd-scripts' number type of the sum: of the result, without --save-precision.", "--precision"
    )
    allow_nonfinite: bool = flag(False, "Merge although there are NaN or infinite values.")
    as_json: bool = flag(False, "Print the report as a JSON object.", "--json")
    dry_run: bool = flag(False, "Check and report, write nothing.", "-n", "--dry-run")
    force: bool = flag(False, "Replace a file that exists, the base too.")

    @property
    def precision(self) -> Precision:
        """The number type of the result."""
        word = self.save_precision or self.merge_precision or "keep"
        return "fp32" if word == "float" else word


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Several modes"""

    ratio: float | None = flag(
        None,
        "All but --undo: strength of networks without one of their own; --models: share of the second model.  "
        "[default: 1; --models: what fits the method]",
        "--ratio",
        "--ratios",
    )
    no_metadata: bool = flag(False, "All but --undo: write no recipe; the base's metadata stay.")


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """Several modes"""

    blocks: str | None = flag(
        None,
        "All but --undo: block weights, 12, 17, 19, 20, 25 or 26 numbers, or IN04=0.5,MID=1,TE=0.",
        metavar="LIST",
    )


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Several modes"""

    verify: bool = flag(
        False,
        "Into a checkpoint, --networks, --undo: read the result again and prove in float64 that it is the sum.",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Into a checkpoint: BASE LORA[:RATIO]..."""

    allow_unmatched: bool = flag(False, "Merge although some modules find no place in the base.")


@dataclass(frozen=True, kw_only=True)
class UndoSettings:
    """Out of a checkpoint: --undo MERGED [LORA]..."""

    undo: bool = flag(False, "Take the networks of a merged fp32 checkpoint out of it again.")


@dataclass(frozen=True, kw_only=True)
class NetworksSettings:
    """Networks into one: --networks LORA[:RATIO]..."""

    networks: bool = flag(False, "The inputs are networks, to be made into one.")
    average: str | None = flag(
        None,
        "The networks are saves of one run: average their changes, as mean, ema:BETA (the last weighs 1 - BETA) or "
        "power:SIGMA_REL, in the order of their epochs.",
        metavar="KIND",
    )
    mode: Literal["concat", "svd"] | None = flag(
        None, "Exact, ranks added up, or optimal of a given rank.  [default: concat; with --average: svd]"
    )
    rank: int | None = flag(
        None,
        f"Largest rank that a module may have.  [default: {DEFAULT_RANK}; with --average: each module's in the "
        "first network]",
        *("--new-rank", "--rank"),
        min=1,
        needs=_SVD,
    )
    conv_rank: int | None = flag(
        None, "Largest rank that a convolution may have.", "--new-conv-rank", "--conv-rank", min=1, needs=_SVD
    )
    dynamic_method: Dynamic | None = flag(None, "With svd: choose each rank as lora-resize does.", needs=_SVD)
    dynamic_param: float | None = flag(
        None, "PARAM of --dynamic-method, as lora-resize has it.", metavar="PARAM", needs=_SVD
    )
    one_more: bool = flag(
        False,
        "Keep one rank more than the method asks for, as sd-scripts did until March 2026.",
        needs="dynamic_method",
    )
    target_size: str | None = flag(
        None, "With svd: ranks that lose least in a file of at most 20MB.", metavar="SIZE", needs=_SVD
    )
    shuffle: int | None = flag(
        None, "Bring the ranks into another order, drawn by this seed.", metavar="SEED"
    )

    @property
    def way(self) -> Literal["concat", "svd"]:
        """The mode asked for, else what is usual."""
        return self.mode or ("svd" if self.average else "concat")


@dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """Checkpoints into one, or one cast, pruned, repaired, turned: --models MODEL..."""

    models: bool = flag(
        False,
        "The inputs are checkpoints, to be made into one; a single one is written anew: -o FILE.safetensors, or a "
        "diffusers folder.",
    )
    method: MethodName = flag("weighted-sum", "How models are merged.")
    params: tuple[str, ...] = flag(
        (),
        "A number for the method, such as density=0.2 (ties) or drop=0.3 (dare).",
        "--param",
        metavar="NAME=NUMBER",
    )
    vae: Path | None = flag(None, "Put this VAE into the result.", metavar="FILE")
    ema: Literal["keep", "prune", "use"] = flag("keep", "What becomes of averaged weights (EMA) in the file.")
    prune: bool = flag(False, "Leave out what no program reads.")
    configs: Path | None = flag(
        None,
        "One model into a folder: take configurations, scheduler and tokenizers from this one.",
        metavar="DIR",
    )
    seed: int = flag(0, "Seed by which dare draws what it drops.", needs="method=dare")


MODES = (
    Mode(
        "a merge into a checkpoint",
        (CheckpointSettings, VerifySettings, SharedSettings, BlockSettings, OutputSettings),
    ),
    Mode("--undo", (UndoSettings, VerifySettings, OutputSettings), by="undo"),
    Mode(
        "--networks",
        (NetworksSettings, VerifySettings, SharedSettings, BlockSettings, OutputSettings),
        by="networks",
    ),
    Mode("--models", (ModelsSettings, SharedSettings, BlockSettings, OutputSettings), by="models"),
)
# Of sd-scripts' merge_lora.py, sdxl_merge_lora.py and svd_merge_lora.py.
FOREIGN = {
    **ignored("the family of a model is read from its file", "v2", flag=True),
    **ignored("ranks are added up unless --mode svd is given", "concat", flag=True),
    **ignored("the work is done on the CPU", "device"),
    **ignored("spectra are exact here", "svd_lowrank_niter"),
    **ignored("ranks are counted so without it", "exact_count", flag=True),
    **refused("name the base in front of the networks: lora-merge BASE LORA:0.8 -o OUT", "sd_model"),
    **refused("use --blocks", "lbws"),
}
