"""Command lines of sd-scripts' ``merge_lora.py``, ``sdxl_merge_lora.py``, ``svd_merge_lora.py`` and
``merge_models.py`` as lora-merge's own.

Theirs name everything by options: ``--sd_model B --models L1 L2 --ratios 0.4 0.6 --save_to O``. A line is taken for
one of theirs where it has ``--sd_model``, or ``--models`` with several ``--ratios`` or as many as models. It is
merge_models.py's, and its models are checkpoints, where the result is named by ``--output`` or an option of that script
stands in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from math import isclose

import click

from lorapipe_engine.command.tool import ToolCommand
from lorapipe_engine.errors import ConfigError

_KEY = __name__
# Options of theirs that stand in the line as they are, with a value and without.
_KEPT = ("-o", "--save_to", "--save_precision", "--precision", "--device", "--output")
_VALUED = ("--models", "--ratios", "--ratio", "--lbws", "--sd_model", "--new_rank", "--new_conv_rank")
# Of merge_models.py alone.
_MODELS_ONLY = ("--saving_precision", "--unet_only", "--show_skipped")
_KEPT_FLAGS = (
    "--no_metadata",
    "--v2",
    "--force",
    "--json",
    "--dry_run",
    "--quiet",
    "--verify",
    "-n",
    "-q",
    "-v",
)
_RATIO = re.compile(r"(--ratios?)(=.*)?")


class MergeCommand(ToolCommand):
    """A command that understands sd-scripts' lines beside its own; :func:`translation` says what one became."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words. Raises ConfigError for a ratio given twice and for a line of sd-scripts' with faults."""
        given = sum(_RATIO.fullmatch(_spelt(word)) is not None for word in args)
        if given > 1:
            raise ConfigError(
                "--ratio is given twice, and is one number for all; give each network its own: a.safetensors:0.8 "
                "b.safetensors:0.5"
            )
        own = translated(args)
        if own is not None:
            ctx.meta[_KEY] = shlex.join([str(self.name), *own])
            args = own
        return super().parse_args(ctx, args)


def translation() -> str | None:
    """The line that sd-scripts' became; None where the command line is no such."""
    line: str | None = click.get_current_context().meta.get(_KEY)
    return line


def translated(words: Sequence[str]) -> list[str] | None:
    """The words of lora-merge that do what a line of sd-scripts' asks for; None for other lines.

    Raises ConfigError where models and ratios are not of one number, or an option is none of theirs.
    """
    if not any(_spelt(word).partition("=")[0] in ("--sd_model", "--models") for word in words):
        return None
    values, kept, unknown = _read(words)
    models, ratios, base = (values.get(name, []) for name in ("--models", "--ratios", "--sd_model"))
    plural = any(_spelt(word).startswith("--ratios") for word in words)
    checkpoints = not base and _is_models_line(words, ratios)
    is_theirs = (
        checkpoints or (base and models) or len(ratios) > 1 or (plural and len(ratios) == len(models) > 0)
    )
    if not is_theirs or not all(map(_is_number, ratios)):
        return None
    if unknown:
        script = "merge_models.py" if checkpoints else "merge_lora.py"
        raise ConfigError(f"{unknown[0]}: is no option of sd-scripts' {script}, whose line this seems to be")
    if checkpoints:
        return _models_line(models, ratios, values, kept)
    if not models or (ratios and len(ratios) != len(models)):
        raise ConfigError(
            f"--models has {len(models)} networks and --ratios {len(ratios)} numbers; give as many"
        )
    networks = [
        f"{model}:{ratio}" for model, ratio in zip(models, ratios or ["1"] * len(models), strict=True)
    ]
    kept = [*_blocks(values.get("--lbws", [])), *kept]
    if base:
        return [*base, *networks, *kept]
    ranks = [
        word
        for name in ("--new_rank", "--new_conv_rank")
        for word in (name, *values.get(name, []))
        if name in values
    ]
    shuffle = ["--shuffle", "0"] if "--shuffle" in values else []
    return ["--networks", *networks, *(["--mode", "svd", *ranks] if ranks else []), *shuffle, *kept]


def _blocks(weights: Sequence[str]) -> list[str]:
    """Block weights of all networks. Raises ConfigError where each has its own."""
    if len(set(weights)) > 1:
        raise ConfigError(
            "--lbws: one list of block weights holds for all networks here; put each network's into it first: "
            f"lora-merge --networks LORA --blocks {weights[0]} -o weighted.safetensors"
        )
    return ["--blocks", weights[0]] if weights else []


def _is_models_line(words: Sequence[str], ratios: Sequence[str]) -> bool:
    heads = {_spelt(word).partition("=")[0] for word in words if word.startswith("--")}
    return not heads.isdisjoint(_MODELS_ONLY) or ("--output" in heads and len(ratios) > 1)


def _models_line(
    models: Sequence[str], ratios: Sequence[str], values: Mapping[str, Sequence[str]], kept: Sequence[str]
) -> list[str]:
    """A line of merge_models.py. Raises ConfigError for what lora-merge has no one line for."""
    if len(models) < 2 or (ratios and len(ratios) != len(models)):
        raise ConfigError(
            f"--models has {len(models)} checkpoints and --ratios {len(ratios)} numbers; give two or more, and as many"
        )
    precision = [
        word for value in values.get("--saving_precision", []) for word in ("--save_precision", value)
    ]
    kept = _with_suffix(kept)
    if "--unet_only" not in values:
        shares = (
            [f"{model}:{ratio}" for model, ratio in zip(models, ratios, strict=True)] if ratios else models
        )
        return ["--models", *shares, "--method", "average", *precision, *kept]
    second = float(ratios[1]) if ratios else 0.5
    if len(models) > 2 or (ratios and not isclose(float(ratios[0]) + second, 1.0, abs_tol=1e-6)):
        raise ConfigError(
            "--unet_only: is done for two models whose ratios' sum is 1: lora-merge --models A B --ratio 0.5 --blocks "
            "TE=0 --vae A -o OUT; with more models merge the result with the next"
        )
    rest = ["--ratio", f"{second:g}", "--blocks", "TE=0", "--vae", models[0]]
    return ["--models", *models, *rest, *precision, *kept]


def _with_suffix(kept: Sequence[str]) -> list[str]:
    """The words, with the ending that merge_models.py puts behind a result's name."""
    words = list(kept)
    for place, word in enumerate(words):
        head, equals, value = word.partition("=")
        if _spelt(head) == "--output":
            name = value if equals else "".join(words[place + 1 : place + 2])
            if name and not name.endswith(".safetensors"):
                words[place if equals else place + 1] += ".safetensors"
    return words


def _read(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The words by option; those that stay as they are; and those of no option of sd-scripts'."""
    values: dict[str, list[str]] = {}
    kept: list[str] = []
    unknown: list[str] = []
    name = ""
    for word in words:
        head, equals, value = _spelt(word).partition("=")
        if not word.startswith("-") or _is_number(word):
            if name == "kept":
                kept.append(word)
                name = ""
            elif name:
                values[name].append(word)
            else:
                unknown.append(word)
        elif head in _KEPT:
            kept.append(word)
            name = "" if equals else "kept"
        elif head in _VALUED:
            name = "--ratios" if head == "--ratio" else head
            values.setdefault(name, []).extend([value] if equals else [])
        elif head == "--saving_precision":
            name = head
            values[head] = [value] if equals else []
        elif head in ("--shuffle", "--concat", "--unet_only", "--show_skipped"):
            values[head], name = [], head
        else:
            (kept if head in _KEPT_FLAGS else unknown).append(word)
            name = ""
    return values, kept, unknown


def _spelt(word: str) -> str:
    """An option with underscores, as sd-scripts spells it; its value stays."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", word) is not None
