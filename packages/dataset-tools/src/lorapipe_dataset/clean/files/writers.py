"""Captions of a whole run as one file: sd-scripts' metadata JSON, ``metadata.jsonl``, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lorapipe_dataset.clean.files.textfile import encode_text
from lorapipe_dataset.clean.options import Options
from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.writing.atomic import atomic_write

Rows = Sequence[tuple[Path, str]]


def write_rows(rows: Rows, options: Options) -> None:
    """Write pictures and their captions in the wanted format. Raises OutputError."""
    target = options.output
    if target is None or options.target not in WRITERS:
        return
    data = encode_text(WRITERS[options.target](rows, target, options), target)
    with atomic_write(target, force=options.force) as file:
        file.write(data)


def _kohya(rows: Rows, _target: Path, options: Options) -> str:
    field = "caption" if options.rules.style == "text" else "tags"
    table = {os.path.abspath(path): {field: text} for path, text in rows}  # noqa: PTH100 - links are not to be followed
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def _metadata(rows: Rows, target: Path, _options: Options) -> str:
    lines = (
        json.dumps({"file_name": _beside(path, target), "text": text}, ensure_ascii=False)
        for path, text in rows
    )
    return "".join(f"{line}\n" for line in lines)


def _csv(rows: Rows, target: Path, _options: Options) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("file_name", "text"))
    table.writerows((_beside(path, target), text) for path, text in rows)
    return file.getvalue()


def _beside(path: Path, target: Path) -> str:
    """A picture's path from the folder of the file, which has to hold it: so the format has it."""
    inside = os.path.relpath(path, target.parent)
    if inside.startswith(".."):
        raise OutputError(f"{target}: has to lie in a folder above {path}; give -o a file there")
    return Path(inside).as_posix()


WRITERS: dict[str, Callable[[Rows, Path, Options], str]] = {
    "kohya": _kohya,
    "metadata": _metadata,
    "csv": _csv,
}
