"""What ``lora-convert`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorapipe_engine.command.modes import Mode, flag
from lorapipe_merge.settings import Precision

SchemeName = Literal["kohya", "diffusers", "diffusers-old", "peft", "comfy", "omi"]


@dataclass(frozen=True, kw_only=True)
class FormSettings:
    """Names and form"""

    scheme: SchemeName | None = flag(
        None,
        "Whose names: sd-scripts' (kohya), diffusers' of today or of 0.18 to 0.21, PEFT's folders, ComfyUI's, "
        "OneTrainer's OMI.",
        "--to",
    )
    one_alpha: bool | None = flag(
        None,
        "One alpha for all modules, the rest in the factors, as diffusers' loader needs it.  [default: in kohya's "
        "names where ranks or alphas differ]",
        opposite="keep-alphas",
    )
    to_lora: bool = flag(False, "Make LoHa, LoKr and full changes into plain factors, of the rank they need.")
    skip: bool = flag(False, "Leave out what the scheme has no form for.")
    family: Literal["sd1", "sd2", "sdxl"] | None = flag(None, "The model, where names do not tell.")


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """The result"""

    output: str | None = flag(
        None, "The new file; for peft a new folder.", "-o", "--output", "--save-to", metavar="OUT"
    )
    save_precision: Literal["keep", "fp16", "bf16", "fp32", "float"] = flag(
        "keep",
        "Number type of the result; keep writes fp32 where a strength would be rounded into factors.",
        *("--save-precision", "--precision"),
    )
    verify: bool = flag(
        False, "Read the result again and compare every module's change.", needs="dry_run=False"
    )
    as_json: bool = flag(False, "Print the report as a JSON object.", "--json")
    dry_run: bool = flag(False, "Check and report, write nothing.", "-n", "--dry-run")
    force: bool = flag(False, "Replace a file that exists.")

    @property
    def precision(self) -> Precision:
        """The number type of the result."""
        return "fp32" if self.save_precision == "float" else self.save_precision


MODES = (Mode("converting", (FormSettings, ResultSettings)),)
