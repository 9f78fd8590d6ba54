"""What ``lora-grid`` can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorapipe_engine.command.modes import Mode, flag

Figure = Literal["auto", "selectivity", "recall", "tags", "dino", "clip", "ccip", "encoder"]


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The grid"""

    x: str | None = flag(
        None,
        "What the columns are, as file, weight, seed or prompt.  [default: file, or what varies]",
        metavar="AXIS",
    )
    y: str | None = flag(
        None, "What the rows are, by the same words.  [default: weight, or what else varies]", metavar="AXIS"
    )
    title: str | None = flag(None, "Heading of the picture and the page.", metavar="TEXT")
    output: Path | None = flag(
        None, "Write one labelled PNG; further pages are NAME-2.png ...", "-o", "--output", metavar="FILE.png"
    )
    html: Path | None = flag(None, "Write one page that needs nothing else.", "--html", metavar="FILE.html")
    size: int | None = flag(
        None,
        "Longest side of a picture, in pixels.  [default: the cells' own]",
        min=16,
        max=8192,
        needs=("output", "html"),
    )
    quality: int = flag(85, "Quality of the page's pictures (WebP).", min=1, max=100, needs="html")
    force: bool = flag(False, "Replace files that exist.", needs=("output", "html"))
    as_json: bool = flag(False, "Print axes, cells and figures as one JSON object.", "--json")


@dataclass(frozen=True, kw_only=True)
class FigureSettings:
    """Figures"""

    trigger: str | None = flag(
        None, "The word that asks for the concept; prompts without it measure leaks.", metavar="WORD"
    )
    dataset: Path | None = flag(
        None, "The training pictures and captions: for tags that nobody asked for, and copies.", metavar="DIR"
    )
    held_out: Path | None = flag(
        None,
        "Pictures of the concept that were not trained on.",
        metavar="DIR",
        needs=("dino", "clip", "ccip", "encoder"),
    )
    tagger: Path | None = flag(
        None,
        "Folder of a WD tagger (model.onnx, selected_tags.csv) that looks at the cells; else records are read.",
        metavar="DIR",
    )
    vocabulary: Path | None = flag(
        None, "The tags that the records' tagger has: its selected_tags.csv.", metavar="CSV"
    )
    dino: Path | None = flag(
        None, "DINOv2 as an ONNX file, to compare with --held-out.", metavar="FILE.onnx", needs="held_out"
    )
    clip: Path | None = flag(
        None,
        "CLIP as ONNX: its picture half, or both (then CLIP-T too).",
        metavar="FILE.onnx",
        needs="held_out",
    )
    ccip: Path | None = flag(
        None, "CCIP's folder (model_feat.onnx, model_metrics.onnx).", metavar="DIR", needs="held_out"
    )
    encoder: Path | None = flag(
        None,
        "Any other encoder of pictures as ONNX, for RGB in 0..1, or demo.",
        metavar="FILE.onnx",
        needs="held_out",
    )


@dataclass(frozen=True, kw_only=True)
class BestSettings:
    """Which network to take"""

    best: bool = flag(False, "Name the network to take, the runner-up, or that the cells cannot tell.")
    by: Figure = flag("auto", "The figure that networks are compared by.", needs="best")


MODES = (Mode("a grid", (GridSettings, FigureSettings, BestSettings)),)
