"""Train the demo in many ways and lay the results side by side: optimizers, objectives, caches, batches, precisions.

    python tools/demo_world/variants.py OUT                            # everything that this machine can do
    python tools/demo_world/variants.py OUT --only AdamW Lion --jobs 1
    python tools/demo_world/variants.py OUT --group algorithms        # each network algorithm
    python tools/demo_world/variants.py OUT --make_v 200 --seeds 3 --minutes 9.5       # on a GPU, within ten minutes
    python tools/demo_world/variants.py OUT --group preserving --seeds 3               # how the base is kept
    python tools/demo_world/variants.py OUT --group stopping --seeds 3 --device cpu --jobs 1   # where to stop
    python tools/demo_world/variants.py OUT --make_flow 165 --only flow "flow, 20 epochs" AdamW --seeds 3

Every variant is the demo's own recipe but for the options that the table names, trained with `lora-train` and looked at
by the demo's judge. OUT/variants.json and OUT/variants.md hold what came of it; a run that failed is in them with its
last line. Each run that ends well is a line of OUT/variants.jsonl at once, so the same call, given again, does what is
left. On a CPU a run takes minutes: --jobs 1 gives it the whole machine. OUT/variants.png shows the loss of batch 4 and
of batch 1 with 4 accumulated. A base that predicts v or flow comes from `make_v.py` or `make_flow.py`: one that is
there (--v_base), or one made beside the other runs (--make_v).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any, TextIO

from algorithm_options import ALGORITHMS
from kept_rows import add_row, read_rows
from variants_table import FIGURES, draw_curves, markdown, told

from lorapipe_demo.scene import TRIGGER


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe; ``""`` takes an option of the recipe away, None gives a flag. ``needs``: a package,
    "cuda", or one of BASES. ``trigger``: the word that calls her, by default the demo's. ``group``: variants that are
    run together. ``people``: whether the folders of other people are in the dataset. ``shown``: end of the name of the
    network that is looked at, such as "-ema" for the average.
    """

    name: str
    options: Mapping[str, str | None] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    trigger: str = ""
    group: str = "training"
    people: bool = False
    shown: str = ""


def _rate(optimizer: str, unet: str = "", text: str = "") -> dict[str, str | None]:
    return {"optimizer_type": optimizer, "unet_lr": unet, "text_encoder_lr": text}


UNET_ONLY: dict[str, str | None] = {"network_train_unet_only": None}
CACHED: dict[str, str | None] = {**UNET_ONLY, "cache_text_encoder_outputs": None}
# AdaFactor with a rate of one's own, as guides have it: that which it chooses itself is far too small for a short run.
OWN_RATE = "relative_step=False scale_parameter=False warmup_init=False"
ADAFACTOR: dict[str, str | None] = {**_rate("AdaFactor", "2.5e-3", "2e-3"), "optimizer_args": OWN_RATE}
# Who does not train the text encoder calls by a word that it knows: the invented one means nothing to it. No picture of
# the base's has a cake and a person in it.
KNOWN_WORD = "cake"
# The recipe's rates are those of AdamW on a tiny base, 25 times the usual ones. Lion takes a sixth of them, DAdaptAdam
# and Prodigy find theirs. A network that predicts v learns the new word later: it has twice as many epochs.
VARIANTS = (
    Variant("AdamW", {"optimizer_type": "AdamW"}),
    Variant("AdamW, other draws", {"optimizer_type": "AdamW", "seed": "1042"}),
    Variant("AdamW8bit", {"optimizer_type": "AdamW8bit"}, ("cuda", "bitsandbytes")),
    Variant("Lion", _rate("Lion", "4e-4", "3.3e-4"), ("pytorch_optimizer",)),
    Variant("AdaFactor", ADAFACTOR, ("transformers",)),
    Variant("DAdaptAdam", _rate("DAdaptAdam"), ("pytorch_optimizer",)),
    Variant("Prodigy", _rate("Prodigy"), ("pytorch_optimizer",)),
    Variant("v-prediction, 20 epochs", {"v_parameterization": None, "max_train_epochs": "20"}, ("v_base",)),
    Variant("flow", {}, ("flow_base",)),
    Variant("flow, 20 epochs", {"max_train_epochs": "20"}, ("flow_base",)),
    Variant("UNet only", UNET_ONLY),
    Variant("UNet only, cached text", CACHED),
    Variant("UNet only, a known word", UNET_ONLY, trigger=KNOWN_WORD),
    Variant("UNet only, a known word, cached text", CACHED, trigger=KNOWN_WORD),
    Variant("batch 1, 4 accumulated", {"train_batch_size": "1", "gradient_accumulation_steps": "4"}),
    Variant("float32", {"mixed_precision": "no"}, ("cuda",)),
    Variant("bf16", {"mixed_precision": "bf16"}, ("cuda",)),
    Variant("fp16", {"mixed_precision": "fp16"}, ("cuda",)),
    Variant("bf16, not captured", {"mixed_precision": "bf16", "step_capture": "off"}, ("cuda",)),
    Variant("int8 base", {"quantize_base": "int8"}),
    Variant("NF4 base", {"quantize_base": "nf4"}, ("bitsandbytes",)),
    Variant("bf16, int8 base", {"mixed_precision": "bf16", "quantize_base": "int8"}, ("cuda",)),
    Variant("bf16, NF4 base", {"mixed_precision": "bf16", "quantize_base": "nf4"}, ("cuda", "bitsandbytes")),
    Variant(
        "bf16, gradient checkpointing", {"mixed_precision": "bf16", "gradient_checkpointing": None}, ("cuda",)
    ),
    Variant(
        "bf16, a known word, cached text",
        {"mixed_precision": "bf16", **CACHED},
        ("cuda",),
        trigger=KNOWN_WORD,
    ),
    Variant("bf16, saved as float32", {"mixed_precision": "bf16", "save_precision": "float"}, ("cuda",)),
)
# Bases of their own, and what they predict: make_WORD.py makes OUT/demo-WORD.safetensors.
BASES = {"v_base": "v", "flow_base": "flow"}


EMA: dict[str, str | None] = {"ema_decay": "0.98"}
NOT_HELD: dict[str, str | None] = {"preserve": ""}
EVERY, QUARTER = f"trigger={TRIGGER}", f"trigger={TRIGGER} every=4"
VARIANTS += (
    Variant("people", NOT_HELD, group="preserving", people=True),
    Variant("people, EMA", {**NOT_HELD, **EMA}, group="preserving", people=True, shown="-ema"),
    Variant("alone", NOT_HELD, group="preserving"),
    Variant("held, every step", {"preserve": EVERY}, group="preserving"),
    Variant("held, one step in two", group="preserving"),
    Variant("held, one step in four", {"preserve": QUARTER}, group="preserving"),
    Variant("held, one step in four, weight 4", {"preserve": f"{QUARTER} weight=4"}, group="preserving"),
    Variant("held, one step in two, EMA", EMA, group="preserving", shown="-ema"),
    Variant("held as the empty caption", {"preserve": "caption="}, group="preserving"),
)
LONG: dict[str, str | None] = {"max_train_epochs": "10"}
BY_LOSS: dict[str, str | None] = {**LONG, "early_stop": "2", "validation_split": "0.25"}
BY_FIGURES: dict[str, str | None] = {**LONG, "early_stop": "2", "early_stop_by": "figures"}
VARIANTS += tuple(
    Variant(f"{name}{how}", {**held, **options}, group="stopping", shown=shown)
    for name, held in (("alone, 10 epochs", NOT_HELD), ("held, 10 epochs", {}))
    for how, options, shown in (
        ("", LONG, ""),
        (", stopped by the loss", BY_LOSS, "-best"),
        (", stopped by figures", BY_FIGURES, "-best"),
    )
)
VARIANTS += tuple(Variant(name, options, group="algorithms") for name, options in ALGORITHMS.items())
# Every other variant is trained in float32 on a card too, so that it differs in one thing.
PLAIN = {"mixed_precision": "no"}


def main() -> None:
    options = read_options()
    if options.one:
        one(options)
        return
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if options.dataset is None:
        from lorapipe_demo.dataset import build_dataset

        options.dataset = build_dataset(out, people=True)
    asked = {base: word for base, word in BASES.items() if getattr(options, f"make_{word}")}
    making = {base: made for base, word in asked.items() if (made := start_base(options, word)) is not None}
    chosen = [
        variant
        for variant in VARIANTS
        if (variant.name in options.only if options.only else variant.group == options.group)
    ]
    skipped = {variant.name: reason for variant in chosen if (reason := lacking(variant, options))}
    jobs = [(v.name, seed) for seed in options.seeds for v in chosen if v.name not in skipped]
    before = done_before(jobs, options)
    print(f"runs: {len(jobs)}, done before: {len(before)}", flush=True)
    end = began + (options.minutes or math.inf) * 60
    new = run_all([job for job in jobs if job not in before], options, end, making)
    rows = [before.get(job) or new[job] for job in jobs]
    result = {"machine": machine(options.device), "seconds": round(time.monotonic() - began), "rows": rows}
    (out / "variants.json").write_text(json.dumps({**result, "skipped": skipped}, indent=1) + "\n")
    table = markdown(rows, skipped)
    draw_curves(rows, out / "variants.png")
    (out / "variants.md").write_text(table)
    print(f"{result['machine']}, {result['seconds']} s\n\n{table}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=[], help="names of variants; all are: " + "; ".join(NAMES)
    )
    parser.add_argument(
        "--group", default="training", choices=sorted({variant.group for variant in VARIANTS}), help="which"
    )
    parser.add_argument("--seeds", type=lambda n: range(42, 42 + int(n)), default=range(42, 43), metavar="N")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--device", default=None, help="cuda or cpu")
    parser.add_argument("--epochs", type=int, default=None, help="instead of the recipe's")
    for word in BASES.values():
        told = f"a demo base that predicts {word} (make_{word}.py)"
        parser.add_argument(f"--{word}_base", type=Path, default=None, help=told)
        told = "make one, training for so long"
        parser.add_argument(f"--make_{word}", type=int, default=0, metavar="SECONDS", help=told)
    parser.add_argument("--dataset", type=Path, default=None, help="instead of the demo's own")
    parser.add_argument("--minutes", type=float, default=0, help="what is not done by then is stopped")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args()


NAMES = tuple(variant.name for variant in VARIANTS)


def lacking(variant: Variant, options: argparse.Namespace) -> str | None:
    """Why a variant cannot be run here; None if it can."""
    import torch

    for need in variant.needs:
        if need == "cuda":
            if not torch.cuda.is_available() or options.device == "cpu":
                return "needs a CUDA card"
        elif need in BASES:
            if getattr(options, need) is None:
                return f"needs --{need} or --make_{BASES[need]}"
        elif find_spec(need) is None:
            return f"needs the package {need}"
    return None


def start_base(options: argparse.Namespace, word: str) -> subprocess.Popen[bytes] | None:
    """Begin to make a base that predicts ``word``, None where an earlier call has made it; ``options.v_base`` or the
    like is where it is going to be."""
    folder: Path = options.out / word
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"demo-{word}.safetensors"
    setattr(options, f"{word}_base", path)
    if path.exists():  # of an earlier call
        return None
    script = Path(__file__).with_name(f"make_{word}.py")
    seconds = getattr(options, f"make_{word}")
    small = ["--pictures", "500", "--batch", "16"] if options.device == "cpu" else []
    with (folder / "log.txt").open("w") as log:
        words = [sys.executable, str(script), str(folder), "--seconds", str(seconds), *small]
        return subprocess.Popen(words, stdout=log, stderr=log)


def machine(device: str | None) -> str:
    import torch

    card = device != "cpu" and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if card else f"CPU, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


# -------------------------------------------------------------------------------- all of them


def run_all(
    jobs: Sequence[tuple[str, int]],
    options: argparse.Namespace,
    end: float,
    making: Mapping[str, subprocess.Popen[bytes]] = {},
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run the jobs, some at a time, each in a process of its own; their results. Those that need a base of their own
    wait until it is made.
    """
    began = time.monotonic()
    waiting: list[tuple[str, int]] = list(jobs)
    running: dict[tuple[str, int], tuple[subprocess.Popen[bytes], TextIO]] = {}
    done: dict[tuple[str, int], dict[str, Any]] = {}
    needs = {variant.name: [making[need] for need in variant.needs if need in making] for variant in VARIANTS}
    threads = max(1, (os.cpu_count() or 2) // options.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        while waiting or running:
            late = time.monotonic() > end
            ready = [job for job in waiting if all(made.poll() is not None for made in needs[job[0]])]
            while ready and len(running) < options.jobs and not late:
                job = ready.pop(0)
                waiting.remove(job)
                words = [sys.executable, __file__, *forwarded(options), "--one", job[0], str(job[1])]
                log = log_of(options.out, job).open("w")
                # With a session of its own, so that what it has started ends with it.
                process = subprocess.Popen(
                    words, stdout=log, stderr=log, env=environment, start_new_session=True
                )
                running[job] = process, log
            for job, (process, log) in list(running.items()):
                if late:
                    stop(process)
                if process.poll() is None:
                    continue
                log.close()
                del running[job]
                done[job] = result_of(options.out, job, "out of time" if late else "")
                if "error" not in done[job]:
                    add_row(list_of(options.out), {**done[job], "asked": asked_of(job, options)})
                tell(job, done, len(jobs), time.monotonic() - began)
            if late:
                done |= {job: {"name": job[0], "seed": job[1], "error": "out of time"} for job in waiting}
                break
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            stop(process)
        for made in making.values():
            made.kill()
    return done


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a run and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tell(
    job: tuple[str, int], done: Mapping[tuple[str, int], Mapping[str, Any]], total: int, spent: float
) -> None:
    """A line of progress. ``spent``: seconds so far."""
    minutes = spent / 60
    left = minutes / len(done) * (total - len(done))
    print(
        f"{len(done)} of {total}, {minutes:.0f} min, about {left:.0f} min left: {job[0]}, seed {job[1]}: "
        f"{told(done[job])}",
        flush=True,
    )


def list_of(out: Path) -> Path:
    """Where each run that ended well has its line."""
    return out / "variants.jsonl"


def asked_of(job: tuple[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """What decides the result of a run: a line that was made otherwise is not taken for it."""
    variant = next(row for row in VARIANTS if row.name == job[0])
    base = next((getattr(options, need) for need in variant.needs if need in BASES), None)
    return {
        "words": chosen_words(variant, job[1], options),
        "trigger": variant.trigger,
        "people": variant.people,
        "shown": variant.shown,
        "dataset": str(options.dataset),
        "base": None if base is None else str(base),
        "device": options.device,
    }


def done_before(
    jobs: Sequence[tuple[str, int]], options: argparse.Namespace
) -> dict[tuple[str, int], dict[str, Any]]:
    """The results of those jobs that earlier calls have finished."""
    rows = {(row["name"], row["seed"]): row for row in read_rows(list_of(options.out))}
    return {job: rows[job] for job in jobs if job in rows and rows[job]["asked"] == asked_of(job, options)}


def forwarded(options: argparse.Namespace) -> list[str]:
    words = [str(options.out)]
    for name in ("device", "epochs", *BASES, "dataset"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return words


def folder_of(out: Path, job: tuple[str, int]) -> Path:
    return out / f"{job[0].replace(' ', '-').replace(',', '')}-{job[1]}"


def log_of(out: Path, job: tuple[str, int]) -> Path:
    folder = folder_of(out, job)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    return folder / "log.txt"


def result_of(out: Path, job: tuple[str, int], reason: str) -> dict[str, Any]:
    folder = folder_of(out, job)
    if (folder / "result.json").exists():
        return dict(json.loads((folder / "result.json").read_text()))
    lines = [line for line in (folder / "log.txt").read_text().splitlines() if line.strip()]
    return {"name": job[0], "seed": job[1], "error": reason or (lines[-1] if lines else "no word")}


# -------------------------------------------------------------------------------- one of them


def one(options: argparse.Namespace) -> None:
    """Train and look at one variant in this process; its result goes to its folder."""
    name, seed = options.one[0], int(options.one[1])
    variant = next(row for row in VARIANTS if row.name == name)
    folder = folder_of(options.out, (name, seed))
    base = next((getattr(options, need) for need in variant.needs if need in BASES), "demo")
    began = time.monotonic()
    networks = train(variant, seed, base, folder, options)
    seconds = time.monotonic() - began
    shown = networks[-1].with_stem(f"net{variant.shown}")
    rows = [json.loads(line) for line in (folder / "net.metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/current" in row]
    losses = [row["loss/current"] for row in steps]
    size = -(-len(losses) // len(networks))
    result = {
        "name": name,
        "seed": seed,
        "steps": len(losses),
        "seconds": round(seconds, 1),
        "loss": mean(losses),
        "losses": losses,
        "epochs": [mean(losses[start : start + size]) for start in range(0, len(losses), size)],
        "rates": {key: value for key, value in steps[-1].items() if key.startswith("lr/")},
        "figures": look(shown, base, options.device, variant.trigger),
    }
    (folder / "result.json").write_text(json.dumps(result) + "\n")


def train(
    variant: Variant, seed: int, base: str | Path, folder: Path, options: argparse.Namespace
) -> list[Path]:
    """The networks of a run of `lora-train`, first epoch first."""
    dataset: Path = options.dataset
    if variant.trigger:
        dataset = with_word(dataset, folder / "dataset", variant.trigger)
    if not variant.people:
        dataset = alone(dataset, folder / "dataset")
    words = [
        "--base",
        str(base),
        "--train_data_dir",
        str(dataset),
        "--output_dir",
        str(folder),
    ]
    words += ["--output_name", "net", "--overwrite", "--quiet", *chosen_words(variant, seed, options)]
    words += ["--device", options.device] if options.device else []
    code = "from lorapipe_engine.cli import train_main; train_main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    saved = [path for path in sorted(folder.glob("net-*.safetensors")) if path.stem[4:].isdigit()]
    return [*saved, folder / "net.safetensors"]


def chosen_words(variant: Variant, seed: int, options: argparse.Namespace) -> list[str]:
    """The recipe's options with the variant's own, as words of lora-train."""
    from lorapipe_demo import recipe

    chosen: dict[str, str | None] = {**recipe.TRAIN_OPTIONS, **PLAIN, "seed": str(seed), **variant.options}
    words = ["--max_train_epochs", str(options.epochs or recipe.EPOCHS)]
    for option, value in chosen.items():
        text = (value or "").replace(TRIGGER, variant.trigger or TRIGGER)
        words += [] if value == "" else [f"--{option}", *text.split()]
    return words


def with_word(dataset: Path, copy: Path, word: str) -> Path:
    """A copy of the dataset whose captions have another trigger."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(dataset, copy)
    for path in copy.rglob("*.txt"):
        path.write_text(path.read_text().replace(TRIGGER, word))
    return copy


def alone(dataset: Path, copy: Path) -> Path:
    """A copy of the dataset that has her pictures alone."""
    shutil.rmtree(copy, ignore_errors=True)
    for folder in dataset.iterdir():
        if folder.name.partition("_")[2] == TRIGGER:
            shutil.copytree(folder, copy / folder.name)
    return copy


def look(network: Path, base: str | Path, device: str | None, word: str = "") -> dict[str, float]:
    """The judge's four figures: how often it sees the character. ``word``: another trigger."""
    from lorapipe_demo import recipe
    from lorapipe_demo.judge import Judge
    from lorapipe_demo.sampling import Painter
    from lorapipe_engine.models.bases import demo_base

    painter, judge = Painter(demo_base() if base == "demo" else Path(base), device), Judge.load()
    scenes = recipe.exam_scenes()
    calls = [recipe.with_trigger(scene).replace(TRIGGER, word or TRIGGER) for scene in scenes]

    def share(prompts: Sequence[str], used: Path | None) -> float:
        answers = judge.look(painter.draw(prompts, used))
        return sum(answer["character"] == TRIGGER for answer in answers) / len(answers)

    silent = [recipe.without_trigger(scene) for scene in scenes]
    shares = (share(calls, network), share(silent, network), share(recipe.other_prompts(), network))
    return {"base": share(calls, None), **dict(zip(FIGURES, shares, strict=True))}


if __name__ == "__main__":
    main()
