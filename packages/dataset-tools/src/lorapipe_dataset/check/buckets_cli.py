"""``lora-check buckets``: the bucket of each picture, from headers only."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_dataset.bucketing import bucket_options, read_options
from lorapipe_engine.command.tool import complain, say, show, tool_command

EXAMPLES = """
lora-check buckets dataset/ --resolution 768,768
lora-check buckets dataset/ --resolution 768,768 --min-bucket-reso 256 --max-bucket-reso 1536 --json
"""


@tool_command("lora-check buckets", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[DIR]...")
@bucket_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
def command(inputs: tuple[str, ...], as_json: bool, **flags: Any) -> int:
    """Show the bucket, size and crop that lora-train gives each picture. Reads headers only.

    DIR are datasets, folders of pictures or pictures; without any, they are read from standard input.
    """
    from lorapipe_dataset.check.buckets import Placed, Unplaced, bucket_report, place_all, table
    from lorapipe_dataset.check.scan import read_files, scan
    from lorapipe_engine.command.records import read_records, write_json

    data = read_options(flags)
    dataset = scan(read_records(inputs), ".txt", masks=True)
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
        for line in table(bucket_report(placed, data.train_batch_size)):
            show(line)
    left = len(dataset.pictures) - len(dataset.trained)
    if left:
        say(f"note: {left} pictures lie outside the folders N_concept, so they are not trained")
    return 1 if failed else 0
