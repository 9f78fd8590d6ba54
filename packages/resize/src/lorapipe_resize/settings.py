"""What ``lora-resize`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorapipe_engine.command.foreign import ignored
from lorapipe_engine.command.modes import Mode, flag

Dynamic = Literal["sv_ratio", "sv_fro", "sv_cumulative"]
Precision = Literal["keep", "fp16", "bf16", "fp32"]
DEFAULT_RANK = 32


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """Ranks"""

    rank: int | None = flag(
        None,
        f"Largest rank that a module may have.  [default: {DEFAULT_RANK}]",
        "--new-rank",
        "--rank",
        min=1,
    )
    conv_rank: int | None = flag(
        None,
        "Largest rank of convolutions (1x1 too).  [default: the same]",
        *("--new-conv-rank", "--conv-rank"),
        min=1,
    )
    method: Dynamic | None = flag(
        None,
        "Choose each rank by the singular values: those above the first / PARAM, or as many as keep the share PARAM of "
        "their Frobenius norm, or of their sum.",
        *("--dynamic-method", "--method"),
    )
    param: float | None = flag(
        None,
        "PARAM of the method: sv_ratio a number from 1 on, sv_fro and sv_cumulative a share up to 1.",
        "--dynamic-param",
        "--param",
        metavar="PARAM",
    )
    one_more: bool = flag(
        False,
        "Keep one rank more than the method asks for, as sd-scripts did until March 2026.",
        needs="method",
    )
    target_size: str | None = flag(
        None, "Instead of a method: ranks that lose least in a file of at most 20MB.", metavar="SIZE"
    )

    @property
    def bound(self) -> int | None:
        """The largest rank; None where only a size bounds it."""
        return self.rank or (None if self.target_size else DEFAULT_RANK)


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """The result"""

    output: str | None = flag(
        None,
        "File, folder for several (with the folders they were in), or - for stdout.",
        "-o",
        "--output",
        "--save-to",
        metavar="OUT",
    )
    save_precision: Literal["keep", "fp16", "bf16", "fp32", "float"] = flag(
        "keep", "Number type of the new factors.", "--save-precision", "--precision"
    )
    names: Literal["kohya"] | None = flag(
        None,
        "Name modules as sd-scripts does, which the web UIs read.  [default: as the file has them]",
        "--to",
    )
    balance: Literal["sqrt", "up", "down"] = flag(
        "sqrt", "Where singular values go: half to each side, or as sd-scripts has it all into lora_up."
    )
    keep_alphas: bool = flag(
        False,
        "An alpha of its own for every module, as sd-scripts writes them; diffusers' loader needs one for all.",
        opposite="one-alpha",
    )
    drop_zero: bool = flag(False, "Leave out modules whose change is exactly zero.")
    allow_nonfinite: bool = flag(False, "Copy modules with NaN or infinite values instead of stopping.")
    device: str = flag(
        "cpu",
        "Where dense SVDs (diff, LoHa of high rank) are computed: cpu, or cuda with torch.",
        metavar="TEXT",
    )
    report: bool = flag(False, "Print what every module kept and lost, and the totals.")
    as_json: bool = flag(False, "Print the report as one JSON object per file.", "--json")
    dry_run: bool = flag(False, "Compute and report, write nothing.", "-n", "--dry-run")
    force: bool = flag(False, "Replace files that exist, the input too.")

    @property
    def precision(self) -> Precision:
        """The number type of the new factors."""
        return "fp32" if self.save_precision == "float" else self.save_precision


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What is read"""

    recursive: bool = flag(False, "Look into folders' folders too.", "-r", "--recursive")
    model: str | None = flag(None, "The input, as sd-scripts has it.", metavar="IN")


# Of sd-scripts' resize_lora.py, and of earlier versions of lora-resize.
FOREIGN = {
    **ignored("spectra are exact here", "svd_lowrank_niter"),
    **ignored("ranks are counted so without it", "exact_count", flag=True),
}
MODES = (Mode("resizing", (InputSettings, RankSettings, ResultSettings)),)
