"""The `minitrans` command: parses, calls, prints. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from minitrans import __version__
from minitrans.cli import options
from minitrans.cli.checking import audit, explain
from minitrans.cli.demo import demo
from minitrans.cli.models import info, pull, quantize
from minitrans.cli.study import adapt, evaluate
from minitrans.cli.texts import embed, fit, predict
from minitrans.errors import MinitransError
from minitrans.words import printable


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minitrans")
@click.pass_context
def cli(context: click.Context) -> None:
    """Sentence embeddings and few-shot intents on the CPU, without torch.

    Start with `minitrans demo`: it needs no network and takes less than a minute.

    Exit codes: 0; 1 where an audit fails, or standard output cannot be written; 2 for bad input; 130 after Ctrl-C.
    """
    if context.invoked_subcommand is None:
        options.say(context.get_help())


for command in (demo, embed, explain, fit, predict, pull, quantize, info, evaluate, adapt, audit):
    cli.add_command(command)


def _show_warning(message: Warning | str, *_: Any, file: TextIO | None = None, line: str | None = None) -> None:
    options.tell(f"Warning: {_one_line(str(message))}")


def _quit(code: int) -> NoReturn:
    # Python flushes standard output at exit; with its reader gone, or its disk full, that would print a traceback.
    with suppress(AttributeError, OSError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _one_line(message: str) -> str:
    """A message of several lines, of which some are items of a list, as one line."""
    joined, in_list = "", False
    for argument in sys.argv[1:]:
        if "\n" in argument:  # of a name or a text, not of the message
            message = message.replace(argument, printable(argument))
    for line in filter(None, map(str.strip, message.split("\n"))):
        item = line.startswith("- ")
        if joined:
            joined += " " if joined.endswith((":", ".")) else ". " if in_list and not item else "; "
        joined, in_list = joined + line.removeprefix("- "), item
    return joined


def _reason(error: Exception) -> str:
    """What an error says, without the number of the system's own."""
    if isinstance(error, MinitransError) or not isinstance(error, OSError) or error.strerror is None:
        said = str(error)
    else:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    try:
        Path.cwd()
    except OSError:
        said += "; the working folder is gone: change to one that exists"
    return said


def _fail(message: str, code: int) -> NoReturn:
    options.tell(f"Error: {_one_line(message)}")
    _quit(code)


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is written out: \u4e2d
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "minitrans"
        _fail(f"{error.format_message()} See `{command} --help`.", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _quit(130)
    except BrokenPipeError:
        _quit(1)  # as click does where it is the one to notice
    except (MinitransError, OSError) as error:
        _fail(_reason(error), 2)
    sys.exit(code if isinstance(code, int) else 0)
