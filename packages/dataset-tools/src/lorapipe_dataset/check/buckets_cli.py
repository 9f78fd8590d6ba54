"""``lora-check buckets``: the bucket of each picture, from headers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from lorapipe_dataset.bucketing import BucketSettings
from lorapipe_dataset.check.settings import InputSettings
from lorapipe_engine.command.modes import Mode, flag, mode_options, read_mode
from lorapipe_engine.command.tool import complain, say, show, tool_command
from lorapipe_engine.errors import ConfigError

EXAMPLES = """
lora-check buckets dataset/ --resolution 768,768
lora-check buckets dataset/ --resolution 768,768 --min-bucket-reso 256 --max-bucket-reso 1536 --json
"""


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """The list"""

    as_json: bool = flag(False, "Print one JSON object for each picture.", "--json")


MODES = (Mode("lora-check buckets", (InputSettings, BucketSettings, ListSettings)),)


@tool_command("lora-check buckets", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[DIR]...")
@mode_options(*MODES)
def command(inputs: tuple[str, ...], **flags: Any) -> int:
    """Show the bucket, size and crop that lora-train gives each picture. Reads headers only.

    DIR are datasets, folders of pictures or pictures; without any, they are read from standard input.
    """
    chosen = read_mode(MODES, flags)
    if chosen[ListSettings].as_json and "train_batch_size" in chosen.given:
        raise ConfigError(
            "train_batch_size: counts the table's batches, which --json does not have; leave it out"
        )
    from lorapipe_dataset.check.buckets import Placed, Unplaced, bucket_report, place_all, table
    from lorapipe_dataset.check.pictures.scan import read_files, scan
    from lorapipe_engine.command.records import read_records, write_json

    data, as_json = chosen[BucketSettings].data(), chosen[ListSettings].as_json
    recursive = chosen[InputSettings].recursive
    dataset = scan(read_records(inputs), ".txt", recursive=recursive)
    read_files(dataset)
    rows = place_all(dataset, data)
    if as_json:
        for row in rows:
            write_json(row.as_record())
    failed = [row for row in rows if isinstance(row, Unplaced)]
    for row in failed:
        complain(f"{row.path}: {row.problem}")
    if not as_json:
        placed = [row for row in rows if isinstance(row, Placed)]
        for line in table(bucket_report(placed, data.train_batch_size, numbered=dataset.numbered)):
            show(line)
    left = len(dataset.pictures) - len(dataset.trained)
    if left:
        say(f"note: {left} pictures lie outside the folders N_concept, so they are not trained")
    return 1 if failed else 0
