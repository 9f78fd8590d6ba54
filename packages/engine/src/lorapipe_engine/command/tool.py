"""What every command line tool shares: help, exit codes, one-line errors.

``@tool_command("lora-x", examples=...)`` makes a function into a command. Its ``return`` value, if any, is the exit
status. Options may be written with dashes or underscores.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from errno import EINVAL
from typing import Any

import click

from lorapipe_engine import __version__
from lorapipe_engine.command.masking import masked
from lorapipe_engine.command.process.launched import process_number
from lorapipe_engine.command.process.libraries import leave_current_folder
from lorapipe_engine.command.process.terminating import Terminated, terminated_like_interrupted
from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.shared import OLD_LETTERS, add_names, plain, shown_names
from lorapipe_engine.command.text import one_line, printable
from lorapipe_engine.errors import ConfigError, LoraError

FIRST_TELLS = 10.0  # seconds in which the first process tells what is wrong, and its launcher ends the others
EXIT_CODES = """\
0    done
1    it ran, but something failed or a problem was found
2    nothing was done: wrong usage, configuration or input
130  interrupted (Ctrl-C)
143  terminated (SIGTERM)"""
INTERRUPTED = 130
TERMINATED = 143
_WORD_AT_HOME = re.compile(r"(--[\w-]+=)?(~/.*)", re.DOTALL)
VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)


class ToolCommand(click.Command):
    """A click command that tells every failure in one line, and treats ``--a-b`` and ``--a_b`` alike."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples.strip("\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options; those with a ``section`` under its heading, in the order of the sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None and isinstance(param, click.Option):
                row = shown_names(row[0], param), row[1]
                sections.setdefault(getattr(param, "section", "Options"), []).append(row)
        sections["Options"] = sections.pop("Options", [])
        for title, rows in sections.items():
            with formatter.section(title if title == "Options" or len(sections) > 1 else "Options"):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words. Raises UsageError for an option whose value was forgotten."""
        args = [_expanded(word) for word in args]
        _check_values(self.make_parser(ctx), args)
        return super().parse_args(ctx, args)

    def make_parser(self, ctx: click.Context) -> Any:
        """Click's parser, which takes all names of options that tools share."""
        parser = super().make_parser(ctx)
        add_names(parser, self.get_params(ctx))
        return parser

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the tool does, and at once how it is called."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                formatter.write(_indented(self.examples))

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write(_indented(EXIT_CODES))

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Parse the words; what goes wrong passes click's own endings, see :class:`_Passing`."""
        with _passing():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong passes click's own endings, see :class:`_Passing`."""
        with _passing():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run and exit with the documented status. Without ``args`` those of the process are taken, in which click
        expands ``*`` on Windows.
        """
        if args is None:
            leave_current_folder()
        with terminated_like_interrupted():
            status = self._run(args, extra)
        raise SystemExit(status)

    def _run(self, words: Sequence[str] | None, extra: dict[str, Any]) -> int:
        VERBOSE.set(False)
        QUIET.set(False)
        _show_all_letters()
        extra.setdefault("prog_name", self.name)
        extra["standalone_mode"] = False
        try:
            result = super().main(words, **extra)
            _flush_stdout()
            return result if isinstance(result, int) else 0
        except click.NoSuchOption as error:
            self._tell(f"error: {self._no_such_option(error.option_name, words)} (see {self.name} --help)")
            return 2
        except click.UsageError as error:
            self._tell(f"error: {one_line(error.format_message())} (see {self.name} --help)")
            return 2
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return error.code or 0
            self._tell(f"error: {one_line(error.code)}")
            return 1
        except (KeyboardInterrupt, Exception) as error:
            return self._end(error.cause if isinstance(error, _Passing) else error)

    def _no_such_option(self, name: str, words: Sequence[str] | None) -> str:
        """What is wrong, with both names spelt as they were typed and declared; click knows underscores only."""
        typed = [word.split("=", 1)[0] for word in (sys.argv[1:] if words is None else words)]
        shown = next((word for word in typed if word.startswith("--") and _same_option(word, name)), name)
        known = {
            opt.lstrip("-").replace("-", "_"): opt
            for param in self.params
            for opt in reversed([*param.opts, *param.secondary_opts])
            if opt.startswith("--")
        }
        from difflib import get_close_matches

        close = get_close_matches(name.lstrip("-"), known, 1)
        files = [word for word in typed if word.startswith("-") and os.path.lexists(word)]
        if files:
            return f"no option {one_line(shown)}; a file of that name is meant by ./{one_line(files[0])}"
        meant = OLD_LETTERS.get(name)
        if meant in known.values():
            close = [str(meant).lstrip("-")]
        return f"no option {one_line(shown)}" + (f", did you mean {known[close[0]]}?" if close else "")

    def _end(self, error: BaseException) -> int:
        # Outside the passages that are kept from it, click makes an abort of an interrupt.
        if isinstance(error, Terminated) or isinstance(error.__cause__, Terminated):
            self._tell_stopped("terminated")
            return TERMINATED
        if isinstance(error, KeyboardInterrupt | click.Abort):
            # The first line end closes the terminal's ^C.
            self._tell_stopped("interrupted", before="\n" if _is_terminal(sys.stderr) else "")
            return INTERRUPTED
        if _reader_has_gone(error):
            _silence_stdout()
            return 0
        if VERBOSE.get():
            show_trace(error)
        try:
            _flush_stdout()
        except OSError:
            # What a full disk did not take would be tried again, and told again, at the very end.
            _silence_stdout()
        return self._tell_failure(error)

    def _tell_failure(self, error: BaseException) -> int:
        self._tell(failure(error))
        return error.exit_code if isinstance(error, LoraError) else 1

    def _tell(self, text: str, *, before: str = "") -> None:
        click.echo(masked(f"{before}{self.name}: {printable(text)}"), err=True)

    def _tell_stopped(self, text: str, *, before: str = "") -> None:
        self._tell(text, before=before)


class _Passing(Exception):
    """Carries an error past click, which has endings of its own for some: a blank line and "aborted" for the end of
    a file or an interrupt, a status of 1 for a pipe whose reader has gone.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _expanded(word: str) -> str:
    """The word with the home folder for a ``~`` that no shell has expanded, as bash leaves it in ``--output=~/x``."""
    match = _WORD_AT_HOME.fullmatch(word)
    return word if match is None else (match[1] or "") + os.path.expanduser(match[2])  # noqa: PTH111


def _check_values(parser: Any, words: Sequence[str]) -> None:
    """Raise UsageError where an option has another option of the command in the place of its value. Click would take
    that for the value: ``--trigger --dry-run`` would write, with the trigger "--dry-run".
    """
    options = {**parser._long_opt, **parser._short_opt}
    number = 0
    while number < len(words) and words[number] != "--":
        name = words[number]
        number += 1
        option = options.get(plain(name))
        if option is None or not option.takes_value or getattr(option.obj, "_flag_needs_value", False):
            continue
        values = words[number : number + option.nargs]
        taken = next((word for word in values if plain(word.partition("=")[0]) in options), None)
        if taken is not None:
            meant = f"{name}={taken}" if name.startswith("--") else f"./{taken}"
            raise click.UsageError(
                f"{one_line(name)} needs a value, and {one_line(taken)} behind it is an option; "
                f"{one_line(meant)} means the word itself"
            )
        number += option.nargs


class LaunchedCommand(ToolCommand):
    """A command that a launcher may run in several processes at once: what goes wrong in all of them is told once."""

    def _tell(self, text: str, *, before: str = "") -> None:
        if number := _number():
            try:
                time.sleep(FIRST_TELLS)
            except KeyboardInterrupt:
                return  # the first has told it, and the launcher ends this one
            # Without an end by then, it went wrong here alone.
            text = f"process {number}: {text}"
        super()._tell(text, before=before)

    def _tell_stopped(self, text: str, *, before: str = "") -> None:
        if not _number():  # the others end at once, for the launcher stops all when one has ended
            super()._tell_stopped(text, before=before)


def _number() -> int:
    """Which process of a launcher this is; 0 too where its variables make no sense, which is told by then."""
    try:
        return process_number()
    except ConfigError:
        return 0


@contextmanager
def _passing() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyboardInterrupt) as error:
        raise _Passing(error) from error


def tool_command(
    name: str, *, examples: str = "", cls: type[ToolCommand] = ToolCommand, **settings: Any
) -> Callable[[Callable[..., Any]], ToolCommand]:
    """Make a function into the command ``name``. ``examples`` are lines of shell."""

    def decorate(function: Callable[..., Any]) -> ToolCommand:
        command = click.command(
            name,
            cls=cls,
            examples=examples,
            context_settings={
                "help_option_names": ["-h", "--help"],
                "max_content_width": 100,
                "token_normalize_func": _underscored,
            },
            **settings,
        )(function)
        command.params += [
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_set_verbose,
                help="Show where an error came from.",
            ),
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                callback=_set_quiet,
                help="No progress, no talk.",
            ),
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Show the version.",
            ),
        ]
        return command

    return decorate


def say(text: str) -> None:
    """A line for the user on stderr, unless quiet was asked for; line ends in it are escaped like all that a terminal
    would obey.
    """
    if not QUIET.get():
        click.echo(masked(printable(text)), err=True)


def show(*lines: str, err: bool = False) -> None:
    """Lines for the user on stdout (or stderr, quiet or not), each escaped as :func:`say` does. What programs read is
    written elsewhere, as it is.
    """
    for line in lines:
        click.echo(masked(printable(line)), err=err)


def show_trace(error: BaseException) -> None:
    """Where an error and what caused it came from, on stderr, for ``--verbose``."""
    import traceback

    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    for one in reversed(chain):
        places = "".join(traceback.format_tb(one.__traceback__)).splitlines()
        # The message may have line ends of a stranger's making.
        show("Traceback (most recent call last):", *places, f"{type(one).__name__}: {one}", err=True)


def complain(text: str) -> None:
    """What went wrong with one of several inputs, as a line on stderr: ``lora-tag: error: a.png: empty file``."""
    context = click.get_current_context(silent=True)
    name = f"{context.info_name}: " if context else ""
    show(f"{name}error: {text}", err=True)


def complain_of(what: str, error: Exception) -> None:
    """Why one of several things that were to be done failed, as :func:`complain` says it, with the place if the user
    asked for it."""
    if VERBOSE.get():
        show_trace(error)
    context = click.get_current_context(silent=True)
    name = f"{context.info_name}: " if context else ""
    show(f"{name}{what}: {failure(error)}", err=True)


def failure(error: BaseException) -> str:
    """What went wrong, in the line that ends a command."""
    if isinstance(error, LoraError | OSError | click.ClickException):
        return f"error: {_describe(error)}"
    if isinstance(error, MemoryError):
        return f"error: not enough memory {one_line(error)}".rstrip()
    hint = "" if VERBOSE.get() else " (-v shows where; please report it)"
    return f"unexpected error: {type(error).__name__}: {one_line(error)}{hint}"


def _underscored(name: str) -> str:
    """``--network-dim`` and ``--network_dim`` are one option."""
    return name.replace("-", "_")


def _same_option(one: str, other: str) -> bool:
    return _underscored(one.lstrip("-")) == _underscored(other.lstrip("-"))


def _set_verbose(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    VERBOSE.set(value)


def _set_quiet(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    QUIET.set(value)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{ctx.info_name} {__version__}")
        ctx.exit()


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = [
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        ]
        return masked(one_line(": ".join([*([" -> ".join(names)] if names else []), error.strerror])))
    return masked(one_line(error.format_message() if isinstance(error, click.ClickException) else str(error)))


def _indented(text: str) -> str:
    return "".join(f"  {line.strip() if line.startswith(' ') else line}\n" for line in text.splitlines())


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _reader_has_gone(error: BaseException) -> bool:
    """Whether the next program in the pipe has ended, as head does. Windows calls that an invalid argument."""
    if isinstance(error, BrokenPipeError):
        return True
    return os.name == "nt" and isinstance(error, OSError) and error.errno == EINVAL and not error.filename


def _show_all_letters() -> None:
    """Let stdout show letters that its code page lacks by their numbers, as stderr does, instead of failing there."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _silence_stdout() -> None:
    """Send what is still to be written to stdout nowhere, so that Python says nothing about it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
