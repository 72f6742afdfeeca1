"""The manner of every command: its help, no shortened options, and a mistake told in one line with exit status 2."""

import argparse
import difflib
import io
import os
import re
import select
import sys
from collections.abc import Callable
from typing import NoReturn

from data_utils.errors import SettingError, error_line, naming, one_line

_UNKNOWN = "unrecognized arguments: "


class CommandParser(argparse.ArgumentParser):
    """argparse's parser as every command of the project uses it.

    An option is written in full: argparse would take ``--seed 3`` for ``--seeds 3``, three seeds in place of the third.

    Args:
        prog: How the command is called.
        text: What it does, an empty line, then what is told under the options: examples, files, exit status.
        notes: More to tell there.
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
        """Tell the mistake without the usage, which of twenty options is a screen, and exit with 2."""
        self.exit(2, f"error: {one_line(plain(message, self))}; see {self.prog} --help\n")


def plain(message: str, parser: argparse.ArgumentParser) -> str:
    """What argparse says of a mistake; behind an unknown option the one that was meant, if one is near."""
    if not message.startswith(_UNKNOWN):
        return message
    arguments = message.removeprefix(_UNKNOWN)
    name = re.split("[ =]", arguments)[0]
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    near = [option for option in options if len(name) > 2 and option.startswith(name)]
    near = near or difflib.get_close_matches(name, options, cutoff=0.75)
    if not name.startswith("-"):
        return f"unexpected argument {arguments}"
    return f"unknown setting {arguments}" + (f" (did you mean {' or '.join(near[:3])}?)" if near else "")


def status_of(do: Callable[[], int | None]) -> int:
    """Do a command's work and return the exit status it gives, None being 0; 2 after a wrong setting or file.

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
            return _told(error)
        _drop_output()
        return 0
    except (SettingError, OSError, MemoryError) as error:
        return _told(error)


def print_anything() -> None:
    """Let standard output write what its encoding (of an ASCII locale, say) does not have as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _told(error: Exception) -> int:
    print(f"error: {error_line(error)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # it cannot be written at all: the interpreter would complain once more when it ends
        _drop_output()
    return 2


def _reader_has_left() -> bool:
    """Whether standard output is the broken pipe, and not one to another process of the program."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
