"""``lora-check --edit``: look at the folder, serve the page, and end when the user ends it."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.run import check_rules
from lorapipe_dataset.check.settings import EditSettings
from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.records import check_folder, check_words, write_json
from lorapipe_engine.command.tool import VERBOSE, say, show
from lorapipe_engine.datasets.spec import bucket_rule
from lorapipe_engine.errors import ConfigError, MissingExtra

NEEDED = ("waitress", "werkzeug")
_LOOKING = {"look", "distance", "crops"}  # options that ask for the pictures' pixels


def edit(words: Sequence[str], chosen: Chosen) -> int:
    """Serve the page until it is interrupted. Raises LoraError where nothing can be edited."""
    options = _options(words, chosen)
    settings = chosen[EditSettings]
    root = _folder(words)
    _check_extra()
    desk = _desk(root, options, settings)
    opens = settings.browser and sys.stdout.isatty() and _has_screen()
    ticket = secrets.token_urlsafe(24) if opens else None
    server, port, secret = _bind(desk, settings.port, ticket)
    place = f"http://127.0.0.1:{port}"
    _tell(f"{place}/{secret}/", port, root, len(desk.shelf.items), as_json=options.as_json)
    from lorapipe_dataset.check.edit.server import serve

    serve(server, desk.close, open_at=f"{place}/{ticket}" if opens else None)
    return 0


def _options(words: Sequence[str], chosen: Chosen) -> Options:
    """The options of the report. Pixels are read where they were asked for, since that takes minutes of thousands."""
    options = Options.of(words, chosen)
    options = replace(options, look=options.look and bool(_LOOKING.intersection(chosen.given)))
    check_rules(options)
    bucket_rule(options.data)
    return options


def _folder(words: Sequence[str]) -> Path:
    """The folder to edit. Raises ConfigError for none or several, InputError for what is none."""
    check_words(words)
    if len(words) != 1 or words[0] == "-":
        raise ConfigError("--edit: name one folder, as in lora-check --edit dataset/")
    folder = Path(words[0])
    check_folder(folder)
    return folder


def _check_extra() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"--edit needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _desk(root: Path, options: Options, settings: EditSettings) -> Any:
    from lorapipe_dataset.check.edit.desk import Desk
    from lorapipe_dataset.check.edit.hints import Hints, read_hints, read_words
    from lorapipe_dataset.check.edit.judge import Judge
    from lorapipe_dataset.check.edit.shelf import Shelf

    words = read_words(options.tags_file)
    shelf = Shelf(root, options.caption_extension, recursive=options.recursive)
    for line in shelf.scanned.left_out:
        say(f"lora-check: note: {line}")
    hints = Hints() if settings.hints is None else read_hints(settings.hints, shelf)
    return Desk(shelf, Judge(shelf, options), hints, words)


def _bind(desk: Any, port: int, ticket: str | None) -> tuple[Any, int, str]:
    """The server, its port, and the secret in its page's address."""
    from lorapipe_dataset.check.edit.gate import Gate
    from lorapipe_dataset.check.edit.images import Images
    from lorapipe_dataset.check.edit.routes import Routes
    from lorapipe_dataset.check.edit.server import bind

    secret = secrets.token_urlsafe(24)
    gate = Gate(Routes(desk, Images(), copy_context(), verbose=VERBOSE.get()), secret, ticket)
    return bind(gate, port), gate.port, secret


def _tell(address: str, port: int, root: Path, pictures: int, *, as_json: bool) -> None:
    if as_json:
        write_json({"url": address, "port": port, "path": str(root), "pictures": pictures})
    else:
        show(address)
    sys.stdout.flush()
    say(
        f"lora-check: {pictures:,} pictures of {root} are edited there, from this machine alone; each change is saved "
        f"at once, lora-check {root} --undo takes the last one back; Ctrl-C ends"
    )


def _has_screen() -> bool:
    """Whether a browser would open in a window: in a terminal it would take the place of what is printed there."""
    return (
        os.name == "nt" or sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    )
