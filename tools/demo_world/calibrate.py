"""Train the demo at a tenth of its rates, at its rates, at five and ten times these, over several seeds; draw the cells
that `lora-grid --best` reads, and print what it makes of them: which numbers tell too little, right and too much apart.

    python tools/demo_world/calibrate.py OUT                 # on a GPU, some two minutes
    python tools/demo_world/calibrate.py OUT --rates once,double,triple     # what is only a little too much
    python tools/demo_world/calibrate.py OUT --toy --device cpu     # every stage, in two minutes

OUT/trainings.zip holds the cells for `tests/data`, without those of ten times the rates. OUT/figures.md and
OUT/figures.json have the figures of all networks, with the judge's view of them, and what --best says for each seed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from PIL import Image

from lorapipe_demo import recipe
from lorapipe_demo.dataset import BRIEF, WHOLE
from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.programs import run
from lorapipe_demo.scene import TRIGGER, Scene, concept_scene, concept_tags

# Ten times the rates may diverge before the first epoch has ended; five times has something to show.
RATES: Mapping[str, float] = {
    "tenth": 0.1,
    "once": 1.0,
    "double": 2.0,
    "triple": 3.0,
    "fivefold": 5.0,
    "tenfold": 10.0,
}
USUAL_RATES = ("tenth", "once", "fivefold", "tenfold")
EPOCHS = 6
# Clothes, a face and a place for her, each with and without the trigger; and prompts that are not about her.
SCENES = ("1girl, solo, red dress, smile, beach", "1girl, solo, white shirt, frown, holding book, night sky")
OTHERS = (
    "1boy, solo, short hair, blond hair, green eyes, blue shirt, smile, forest",
    "brown cat, simple background",
)
SEEDS = "seed:11,12,13,14"
KEPT = ("path", "file", "weight", "prompt", "seed", "steps", "sampler", "cfg", "size", "clip_skip")
NOT_KEPT = ("tenfold",)  # their pictures are those of five times the rates
QUALITY, NOISE_QUALITY = 95, 80  # of the kept pictures, WebP; those of five times the rates are noise
FIGURES = ("move", "selectivity", "leak_u", "leak_o", "spread")
BURN = ("chroma", "clipped", "edges")


def main() -> None:
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        dataset = make_dataset(work)
        networks = train_all(work, dataset, options)
        trained = time.monotonic()
        cells = draw_cells(work, networks, options)
        drawn = time.monotonic()
        rows = figures_of(cells)
        judged = judge(cells)
        encoder = ("--encoder", "demo", "--held-out", str(hers(work)))
        said = {
            f"seed {seed}, {how}": best_of(cells, [f"{rate}-{seed}" for rate in options.rates], *words)
            for seed in range(1, options.seeds + 1)
            for how, words in (("without a model", ()), ("by the encoder", encoder))
        }
        size = keep(cells, options.out / "trainings.zip")
    table = markdown(rows, judged, said)
    (options.out / "figures.md").write_text(table)
    record = {"rows": rows, "judged": judged, "said": said}
    (options.out / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table)
    print(f"training {trained - began:.0f} s, drawing {drawn - trained:.0f} s; trainings.zip {size:,} bytes")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--rates",
        type=read_rates,
        default=USUAL_RATES,
        help=f"of {', '.join(RATES)} (default: {','.join(USUAL_RATES)})",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings at each rate")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training")
    parser.add_argument("--jobs", type=int, default=len(USUAL_RATES), help="trainings at a time")
    parser.add_argument("--device", default=None, help="cuda or cpu")
    parser.add_argument("--work", type=Path, default=None, help="keep dataset, networks and cells there")
    parser.add_argument("--toy", action="store_true", help="three updates and two steps a picture")
    return parser.parse_args()


def read_rates(text: str) -> tuple[str, ...]:
    rates = tuple(text.split(","))
    if odd := [rate for rate in rates if rate not in RATES]:
        raise argparse.ArgumentTypeError(f"there is no rate '{odd[0]}'; there are {', '.join(RATES)}")
    return rates


# -------------------------------------------------------------------------------- training


def make_dataset(work: Path) -> Path:
    """The demo's dataset, with the captions that its world has for its pictures in the place of a tagger's."""
    hers, others = random.Random(f"1/{TRIGGER}"), random.Random(9)
    repeats = int(recipe.PER_EPOCH) // recipe.PICTURES
    for index in range(recipe.PICTURES):
        scene = concept_scene(hers)
        put(work / "dataset" / f"{repeats}_{TRIGGER}", index, scene, hers, concept_tags(scene))
    for index in range(recipe.OTHERS):
        scene = recipe.ordinary_scene(others)
        is_brief = index < recipe.OTHERS // 2  # described as briefly as she is
        tags = [tag for tag in scene.tags() if tag == recipe.KEPT or not (is_brief and is_her_own(tag))]
        folder = f"{recipe.OTHER_REPEATS}_{BRIEF if is_brief else WHOLE}"
        put(work / "dataset" / folder, index, scene, others, tags)
    return work / "dataset"


def put(folder: Path, index: int, scene: Scene, draw: random.Random, tags: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_scene(scene, draw).save(folder / f"{index:03d}.png")
    (folder / f"{index:03d}.txt").write_text(", ".join(tags) + "\n", encoding="utf-8")


def is_her_own(tag: str) -> bool:
    return any(fnmatch(tag, pattern) for pattern in recipe.HER_OWN)


def train_all(work: Path, dataset: Path, options: argparse.Namespace) -> list[Path]:
    """Train every rate and seed; the last network of each, rate by rate, seed by seed. A run that diverged has that of
    the last epoch before, if there was one.
    """
    with ThreadPoolExecutor(options.jobs) as pool:
        # One process for each rate, which keeps the base between its runs.
        list(pool.map(lambda rate: train_rate(work, dataset, rate, options), options.rates))
    networks = []
    for rate in options.rates:
        for seed in range(1, options.seeds + 1):
            name = f"{rate}-{seed}"
            saved = sorted((work / rate).glob(f"{name}-[0-9]*.safetensors"))
            last = work / rate / f"{name}.safetensors"
            if not last.exists() and saved:
                print(f"{name}: did not end; its network is that of {saved[-1].stem}", flush=True)
                saved[-1].rename(last)
            if last.exists():
                networks.append(last)
            else:
                print(f"{name}: left no network", flush=True)
    return networks


def train_rate(work: Path, dataset: Path, rate: str, options: argparse.Namespace) -> None:
    words = {**recipe.SHORT.options, "max_train_epochs": str(options.epochs), "mixed_precision": "no"}
    if options.toy:
        words = {**words, "max_train_steps": "3"}
        del words["max_train_epochs"]
    for name in ("unet_lr", "text_encoder_lr"):
        words[name] = f"{float(words[name]) * RATES[rate]:g}"
    if options.device:
        words["device"] = options.device
    files = []
    for seed in range(1, options.seeds + 1):
        path = work / f"{rate}-{seed}.toml"
        path.write_text(f'output_name = "{rate}-{seed}"\nseed = {seed}\n', encoding="utf-8")
        files.append(str(path))
    flags = [word for name, value in words.items() for word in (f"--{name}", *value.split())]
    places = ("--train_data_dir", str(dataset), "--output_dir", str(work / rate))
    # A run that diverges is told by lora-train, and ends it with 1.
    run(("lora-train", *files, "--base", "demo", *places, "--overwrite", *flags), allowed=(0, 1))


# -------------------------------------------------------------------------------- drawing


def draw_cells(work: Path, networks: Sequence[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cells of all networks and of the base, as records."""
    prompts = [f"{TRIGGER}, {scene}" for scene in SCENES] + [*SCENES, *OTHERS]
    quoted = ",".join(f'"{prompt}"' for prompt in prompts)
    device = ("--device", options.device) if options.device else ()
    steps = "2" if options.toy else str(recipe.STEPS)
    # A1111's DDIM, the sampler of the demo.
    how = ("--sampler", "DDIM", "--steps", steps, "--cfg", f"{recipe.GUIDANCE:g}", "--clip-skip", "2")
    axes = ("--y", f"prompt:{quoted}", "--sheet", SEEDS)
    places = ("-o", str(work / "cells"), "--batch-size", str(4 * len(prompts)), "--json", *device)
    words = ("lora-sample", *map(str, networks), "--base", "demo", *axes, *how, *places)
    output = run(words, allowed=(0, 1))  # 1: a network has values that are no numbers
    return [json.loads(line) for line in output.splitlines()]


def with_networks(cells: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield from (row for row in cells if row["file"] in (*wanted, "None"))


def ask_grid(cells: Sequence[dict[str, Any]], *words: str) -> dict[str, Any]:
    """What `lora-grid --json` says of cells."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "cells.jsonl"
        listed.write_text("".join(json.dumps(row) + "\n" for row in cells), encoding="utf-8")
        words = (str(listed), "--trigger", TRIGGER, "--json", *words)
        return dict(json.loads(run(("lora-grid", *words), allowed=(0, 1))))


def hers(work: Path) -> Path:
    """Pictures of her that no training has, for the encoder."""
    from lorapipe_demo.concept import draw_concept

    return draw_concept(work / "held-out", TRIGGER, pictures=16, repeats=1, seed=2)


def figures_of(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    networks = ask_grid(cells)["networks"]
    return [
        {"name": row["name"]}
        | {name: row[name] for name in FIGURES}
        | {name: row["burn"].get(name) for name in BURN}
        for row in networks
    ]


def best_of(cells: Sequence[dict[str, Any]], networks: Sequence[str], *words: str) -> list[str]:
    """What --best says of some networks: one seed's trainings."""
    return list(ask_grid(list(with_networks(cells, networks)), "--best", *words)["lines"])


def judge(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """In how many pictures of a network the judge sees her: with the trigger, the same without it, in others."""
    from lorapipe_demo.judge import Judge

    answers = Judge.load().look([Image.open(row["path"]) for row in cells])
    seen: dict[str, dict[str, int]] = {}
    for row, answer in zip(cells, answers, strict=True):
        counts = seen.setdefault(row["file"], {"T": 0, "U": 0, "O": 0})
        part = "T" if TRIGGER in row["prompt"] else "U" if row["prompt"] in SCENES else "O"
        counts[part] += answer["character"] == TRIGGER
    return seen


# -------------------------------------------------------------------------------- results


def keep(cells: Sequence[dict[str, Any]], path: Path) -> int:
    """Write the cells as one archive; its size in bytes."""
    stored: dict[str, str] = {}
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for row in cells:
            rate = row["file"].partition("-")[0]
            if rate in NOT_KEPT:
                continue
            if row["path"] not in stored:
                stored[row["path"]] = f"{len(stored):03d}.webp"
                data = io.BytesIO()
                quality = NOISE_QUALITY if rate == "fivefold" else QUALITY
                Image.open(row["path"]).save(data, format="WEBP", quality=quality, method=6)
                archive.writestr(stored[row["path"]], data.getvalue())
            record = {name: row[name] for name in KEPT if name in row} | {"path": stored[row["path"]]}
            lines.append(json.dumps(record))
        archive.writestr(zipfile.ZipInfo("cells.jsonl"), "\n".join(lines) + "\n", zipfile.ZIP_DEFLATED)
    return path.stat().st_size


def markdown(
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Mapping[str, int]],
    said: Mapping[str, Sequence[str]],
) -> str:
    names = ("network", "judge T", "U", "O", *FIGURES, *BURN)
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines.append(
        f"| base | {' | '.join(str(judged['None'][part]) for part in 'TUO')} |" + " |" * (len(names) - 4)
    )
    for row in rows:
        seen = judged[row["name"]]
        numbers = ["-" if row[name] is None else f"{row[name]:.2f}" for name in (*FIGURES, *BURN)]
        lines.append(f"| {row['name']} | {seen['T']} | {seen['U']} | {seen['O']} | {' | '.join(numbers)} |")
    for title, verdict in said.items():
        lines += ["", f"--best, {title}:", *(f"    {line}" for line in verdict)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
