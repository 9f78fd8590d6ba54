"""Writes the outputs on the pages anew: every command that their test runs, in the same home, with what it prints now.

python tools/pages_output.py [PAGE...]

Figures are replaced line by line, as far as a page shows them; times stay, for they are of the machine. A line whose
words do not come any more is named with what came, its command's lines stay, and the status is 1: that is for a person
to write.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.page_home import copy_home, make_home, run_block  # noqa: E402
from support.pages import (  # noqa: E402
    TRANSLATIONS,
    blocks_of,
    ends_otherwise,
    pages_to_run,
    placed,
    renewed,
)


def outputs(page: Path, home: Path, said: list[str]) -> Iterator[dict[int, str]]:
    """For each command of a page, in order, the new lines by their numbers below it; faults go to ``said``."""
    for block in blocks_of(page):
        if "not run" in block.marks:
            yield from ({} for _ in block.commands)
            continue
        for command, done in run_block(block, home):
            lines = list(placed(command.printed, done.lines))
            missing = [command.printed[number] for number, place in lines if place is None]
            if missing or ends_otherwise(command, block.marks, done.status):
                told = f"not printed: {missing[0]}" if missing else f"ended with {done.status}"
                said.extend((f"{page}:{command.line}: {command.text}: {told}", *done.lines))
                yield {}
                continue
            first = command.text.count("\n") + 1
            yield {
                first + number: renewed(command.printed[number], done.lines[place])
                for number, place in lines
                if place is not None
            }


def write(page: Path, printed: Sequence[dict[int, str]]) -> None:
    """Put the lines into a page, each below its command."""
    lines = page.read_text(encoding="utf-8").split("\n")
    commands = [command for block in blocks_of(page) for command in block.commands]
    for command, below in zip(commands, printed, strict=True):
        for offset, line in below.items():
            lines[command.line + offset - 1] = line
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Write the pages; all of them, or those that are named."""
    pages = [Path(name).resolve() for name in sys.argv[1:]] or list(pages_to_run(ROOT))
    said: list[str] = []
    with TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        make_home(home)
        for number, page in enumerate(pages):
            printed = list(outputs(page, copy_home(home, Path(folder, str(number)), page), said))
            same = TRANSLATIONS.get(page.relative_to(ROOT).as_posix(), ())
            for one in (page, *(ROOT / name for name in same)):
                write(one, printed)
            print(page)
    for line in said:
        print(line, file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    sys.exit(main())
