"""Command lines made for sd-scripts and pasted: what starts it, names cut short, line ends of other shells."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from lorapipe_engine.errors import ConfigError

_LAUNCHERS = frozenset({"accelerate", "launch", "python", "python3", "-m", "accelerate.commands.launch"})
_SCRIPT = re.compile(r"(?:.*[/\\])?(\w*train\w*|fine_tune)\.py")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")
_TRAINED = ("train_network", "sdxl_train_network")
# Options of accelerate itself that mean something else here, with the words that each takes.
_LAUNCH_OPTIONS = {"--config_file": 1, "--num_cpu_threads_per_process": 1, "--quiet": 0, "-q": 0, "--cpu": 0}
# What ends a line in cmd, bash and PowerShell.
_LINE_ENDS = {"^": "cmd", "\\": "bash", "`": "PowerShell"}


def whole_names(words: Sequence[str], command: click.Command) -> tuple[list[str], list[str]]:
    """The words of a command line without those that start sd-scripts' programs, and with the names of options written
    out that are cut short, as ``--max_train_epoch``; and a note on each.

    sd-scripts takes the beginning of a name where only one option begins so. Raises ConfigError for a program that
    trains something else, and for a line that ends where another shell would go on.
    """
    names = {
        option.lstrip("-").replace("-", "_")
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    written: list[str] = []
    words, notes = _without_line_ends(words)
    words, more = _without_launcher(words)
    notes += more
    for word in words:
        typed, sign, value = word.partition("=")
        name = typed.removeprefix("--").replace("-", "_")
        begun = [known for known in names if known.startswith(name)]
        if word.startswith("--") and name and name not in names and len(begun) == 1:
            notes.append(f"{typed} is taken as --{begun[0]}")
            typed = f"--{begun[0]}"
        written.append(f"{typed}{sign}{value}")
    return written, notes


def _without_line_ends(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without marks by which another shell goes on in the next line."""
    marks = [word for word in words if word.strip() in _LINE_ENDS]
    if not marks:
        return list(words), []
    mark = marks[-1].strip()
    if words[-1].strip() in _LINE_ENDS:
        raise ConfigError(
            f"{mark} at the end: {_LINE_ENDS[mark]} goes on in the next line there, this shell does not, so the lines "
            "after it are missing; paste them as one line"
        )
    rest = [word for word in words if word.strip() not in _LINE_ENDS]
    return rest, [f"{mark} between the words is {_LINE_ENDS[mark]}'s end of a line, and left out"]


def _without_launcher(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without what starts sd-scripts, and a note that names what was left out."""
    scripts = [(place, match[1]) for place, word in enumerate(words) if (match := _SCRIPT.fullmatch(word))]
    for place, name in scripts:
        if name not in _TRAINED:
            raise ConfigError(
                f"{words[place]}: trains something else; lora-train does what {_TRAINED[0]}.py and {_TRAINED[1]}.py do"
            )
    end = scripts[0][0] if scripts else 0
    variable = next((word for word in words[:end] if _VARIABLE.match(word)), None)
    if variable is not None:
        raise ConfigError(f"{variable}: a variable of the shell; write it before lora-train")
    first = next((place for place, word in enumerate(words) if not _is_launcher(word)), len(words))
    left_out = list(words[:first])
    kept: list[str] = []
    waiting = list(words[first:end])
    while waiting:
        word = waiting.pop(0)
        name, sign, _ = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        count = _LAUNCH_OPTIONS.get(name)
        if count is None and not _is_launcher(word):
            kept.append(word)
            continue
        left_out.append(word)
        if count and not sign and waiting:
            left_out.append(waiting.pop(0))
    kept += [word for place, word in enumerate(words) if place >= max(first, end) and not _is_script(word)]
    left_out += [words[place] for place, _ in scripts]
    if not left_out:
        return list(words), []
    return kept, [f"{' '.join(left_out)}: lora-train is the program itself, and needs no launcher"]


def _is_script(word: str) -> bool:
    return _SCRIPT.fullmatch(word) is not None


def _is_launcher(word: str) -> bool:
    return re.sub(r"^.*[/\\]|\.exe$", "", word) in _LAUNCHERS
