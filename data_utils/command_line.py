"""The command-line interface that every command shares: help, options in full, mistakes in one line and status 2."""

import argparse
import difflib
import io
import os
import re
import select
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from data_utils.errors import SettingError, error_line, naming, one_line

_UNKNOWN = "unrecognized arguments: "


class CommandParser(argparse.ArgumentParser):
    """The argument parser of every command of the project.

    An option is written in full: argparse would take ``--seed 3`` for ``--seeds 3``, three seeds in place of the third.

    Args:
        prog: How the command is called.
        text: Its purpose, an empty line, then the text under the options: examples, files, exit status.
        notes: More text there.
    """

    def __init__(self, prog: str, text: str, notes: str = ""):
        print_anything()  # the help too
        description, _, rest = text.partition("\n\n")
        super().__init__(
            prog=prog,
            description=description,
            epilog=rest + notes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the mistake without the usage, a screen of twenty options, and exit with 2."""
        self.exit(2, f"error: {one_line(plain(message, self))}; see {self.prog} --help\n")


def plain(message: str, parser: argparse.ArgumentParser, others: Mapping[str, str] | None = None) -> str:
    """Return argparse's message of a mistake; an unknown option is followed by the nearest known ones.

    Args:
        message: Of argparse.
        parser: With the known options.
        others: Name of an option elsewhere -> its name here, both without dashes.
    """
    if not message.startswith(_UNKNOWN):
        return message
    arguments = message.removeprefix(_UNKNOWN)
    name = re.split("[ =]", arguments)[0]
    if others and (ours := others.get(name.removeprefix("--"))) is not None:
        return f"unknown setting {arguments} (here it is --{ours})"
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    near = [option for option in options if len(name) > 2 and option.startswith(name)]
    near = near or difflib.get_close_matches(name, options, cutoff=0.75)
    if not name.startswith("-"):
        return f"unexpected argument {arguments}"
    return f"unknown setting {arguments}" + (f" (did you mean {' or '.join(near[:3])}?)" if near else "")


def status_of(do: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: its own, None being 0; 2 after a wrong setting or file.

    A reader of standard output that has seen enough, such as head, ends the work with 0.
    """
    print_anything()
    try:
        status = do() or 0
        with naming("standard output"):
            sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        if error.filename not in (None, "standard output") or not _reader_has_left():
            return _report(error)
        _drop_output()
        return 0
    except (SettingError, OSError, MemoryError) as error:
        return _report(error)


def print_anything() -> None:
    """Let standard output write escapes for characters outside its encoding (of an ASCII locale, say)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _report(error: Exception) -> int:
    print(f"error: {error_line(error)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # it cannot be written at all: the interpreter would complain once more when it ends
        _drop_output()
    return 2


def _reader_has_left() -> bool:
    """Whether the broken pipe is standard output and no pipe to another process of the program."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
