"""``lora-extract``: a LoRA out of two checkpoints. numpy is imported only when there is work to do."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_engine.command.options import under
from lorapipe_engine.command.process.processors import use_one_blas_thread
from lorapipe_engine.command.scalars import Number
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.sizes import parse_size

EXAMPLES = """
lora-extract tuned.safetensors base.safetensors -o lora.safetensors
lora-extract tuned.safetensors base.safetensors -o lora.safetensors --dim 64 --conv-dim 16 --verify
lora-extract tuned.safetensors base.safetensors -o lora.safetensors --dim signal
lora-extract tuned/ base.ckpt -o lora.safetensors --dim 128 --dynamic-method sv_fro --dynamic-param 0.95
lora-extract tuned.safetensors base.safetensors -o lora.safetensors --target-size 40MB --report
lora-extract lokr.safetensors -o lora.safetensors --dim 16
lora-extract dora.safetensors base.safetensors -o lora.safetensors
"""
DEFAULT_RANK = 32
SIGNAL = "signal"
MODELS, RANKS, RESULT = "The models", "Ranks", "The result"
PASSED = "Taken from sd-scripts' lines, and without effect"
UNUSED = {
    "load_precision": "numbers are computed in at least 32 bits, whatever the files' types",
    "clamp_quantile": "factors are not clamped, which only takes them away from the change",
    "load_original_model_to": "layers are read one by one, nothing is loaded to a device",
    "load_tuned_model_to": "layers are read one by one, nothing is loaded to a device",
}


def _as_rank(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
    """A rank, or the word signal."""
    if value is None or value == SIGNAL:
        return value
    rank = int(value) if value.isdecimal() else 0
    if rank < 1:
        raise click.BadParameter(f"{value!r} is not a rank: give a number from 1 on, or the word signal")
    return rank


@tool_command("lora-extract", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="TUNED [BASE]")
@under(MODELS, "--model-tuned", metavar="TUNED", help="TUNED by sd-scripts' option, instead of by its place.")
@under(
    MODELS,
    "--model-org",
    metavar="BASE",
    help="BASE, which it was tuned from, by sd-scripts' option, instead of by its place.",
)
@under(MODELS, "--v-parameterization", is_flag=True, help="Say in the metadata that the models predict v.")
@under(MODELS, "--v2", is_flag=True, help="The models are SD 2.x; files tell that themselves.")
@under(MODELS, "--sdxl", is_flag=True, help="The models are SDXL; files tell that themselves.")
@under(
    RANKS,
    "--dim",
    "--rank",
    "--new-rank",
    "rank",
    metavar="RANK",
    callback=_as_rank,
    help="Rank of all modules, or the largest with a method. signal: what leaves the noise of rounding.  "
    f"[default: {DEFAULT_RANK}]",
)
@under(
    RANKS,
    "--conv-dim",
    "--new-conv-rank",
    "conv_rank",
    metavar="RANK",
    callback=_as_rank,
    help="Take residual blocks and samplers too, with this rank for kernels larger than 1x1.",
)
@under(
    RANKS,
    "--dynamic-method",
    "--method",
    "method",
    type=click.Choice([SIGNAL, "sv_ratio", "sv_fro", "sv_cumulative"]),
    help="Choose each rank by the singular values: those above the noise of rounding, or above the first / PARAM, "
    "or as many as keep the share PARAM of their Frobenius norm, or of their sum.",
)
@under(
    RANKS,
    "--dynamic-param",
    "--param",
    "param",
    type=Number(),
    metavar="PARAM",
    help="PARAM of the method: sv_ratio a number from 1 on, sv_fro and sv_cumulative a share up to 1.",
)
@under(
    RANKS,
    "--target-size",
    metavar="SIZE",
    help="Instead of a method: ranks that lose least in a file of at most 20MB.",
)
@under(
    RANKS,
    "--min-diff",
    type=Number(0),
    default=0.0,
    show_default=True,
    help="Leave out layers in which no weight changed by more than this, 0 or more.",
)
@under(RESULT, "-o", "--output", "--save-to", metavar="OUT", help="File, folder, or - for stdout.")
@under(
    RESULT,
    "--save-precision",
    "--precision",
    "precision",
    type=click.Choice(["fp16", "bf16", "fp32", "float"]),
    default="fp16",
    show_default=True,
    help="Number type of the factors.",
)
@under(RESULT, "--verify", is_flag=True, help="Read the LoRA again, merge it back and say how near it comes.")
@under(RESULT, "--report", is_flag=True, help="Print every module with its ranks, values and errors.")
@under(RESULT, "--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@under(RESULT, "-n", "--dry-run", is_flag=True, help="Compute and report, write nothing.")
@under(RESULT, "--force", is_flag=True, help="Replace a file that exists.")
@under(RESULT, "--no-metadata", is_flag=True, help="Write only the metadata that programs need.")
@under(PASSED, "--device", metavar="DEVICE", help="Passed over: the CPU takes seconds.")
@under(
    PASSED, "--load-precision", metavar="TYPE", help="Passed over: numbers are computed in at least 32 bits."
)
@under(PASSED, "--clamp-quantile", type=Number(), help="Passed over: factors are not clamped.")
@under(PASSED, "--load-original-model-to", metavar="DEVICE", help="Passed over: layers are read one by one.")
@under(PASSED, "--load-tuned-model-to", metavar="DEVICE", help="Passed over: layers are read one by one.")
def lora_extract(inputs: tuple[str, ...], **flags: Any) -> int:
    """Extract a LoRA from a tuned model and the model it was tuned from.

    TUNED and BASE are checkpoints of SD 1.x, SD 2.x or SDXL: single files, diffusers folders, or the word demo. The
    LoRA is the best of its rank, to within 1 %; what no LoRA says is listed. A LoHa, LoKr, full or DoRA network in the
    place of TUNED becomes a plain LoRA; BASE is needed where its change depends on it. The path of the new file goes to
    stdout.
    """
    use_one_blas_thread()
    from lorapipe_resize.extract.run import Options, run

    tuned, base = _models(inputs, flags.pop("model_tuned"), flags.pop("model_org"))
    v2, sdxl = flags.pop("v2"), flags.pop("sdxl")
    if v2 and sdxl:
        raise ConfigError(
            "--v2 and --sdxl are two different families; leave both out, files tell their family"
        )
    _note_unused(flags)
    return run(
        Options(
            tuned=tuned,
            base=base,
            family="sd2" if v2 else "sdxl" if sdxl else None,
            v_prediction=flags.pop("v_parameterization"),
            **_ranks(flags),
            **flags,
        )
    )


def _models(inputs: tuple[str, ...], tuned: str | None, base: str | None) -> tuple[str, str | None]:
    """The two models, given by place or by sd-scripts' options."""
    words = list(inputs)
    if tuned is None:
        if not words:
            raise ConfigError("give the tuned model and its base: lora-extract TUNED BASE -o OUT")
        tuned = words.pop(0)
    if base is None and words:
        base = words.pop(0)
    if words:
        raise ConfigError(f"{words[0]}: one model too many; lora-extract takes TUNED BASE -o OUT")
    return tuned, base


def _note_unused(flags: dict[str, Any]) -> None:
    device = flags.pop("device")
    if device is not None and device != "cpu":
        say(f"note: --device {device} is passed over: the CPU needs seconds")
    for name, reason in UNUSED.items():
        if flags.pop(name) is not None:
            say(f"note: --{name} is passed over: {reason}")


def _ranks(flags: dict[str, Any]) -> dict[str, Any]:
    """Ranks, method and size from the options. Raises ConfigError where they contradict each other."""
    rank, conv, method = flags.pop("rank"), flags.pop("conv_rank"), flags.pop("method")
    target, precision = flags.pop("target_size"), flags.pop("precision")
    if SIGNAL in (rank, conv):
        if method not in (None, SIGNAL):
            raise ConfigError(f"--dim signal is a method of its own: leave out --dynamic-method {method}")
        if (rank, conv) not in ((SIGNAL, None), (SIGNAL, SIGNAL)):
            raise ConfigError("one rule is for all modules: --dim 64 --conv-dim 16 --dynamic-method signal")
        method = SIGNAL
    if target is not None and method is not None:
        raise ConfigError("--target-size chooses the ranks itself: leave out the method")
    bound = None if rank == SIGNAL else rank
    if rank is None and method != SIGNAL and target is None:
        bound = DEFAULT_RANK
    return {
        "rank": bound,
        "conv_rank": None if conv == SIGNAL else conv,
        "conv": conv is not None,
        "method": method,
        "target_size": target,
        "target_bytes": parse_size(target, "--target-size") if target else None,
        "precision": {"float": "fp32"}.get(precision, precision),
    }


def main() -> None:
    """Entry point of ``lora-extract``."""
    lora_extract.main()
