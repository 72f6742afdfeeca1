"""The watcher, which writes the page anew until the study is over or it is stopped itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress

from data_utils.errors import SettingError
from experiments.study.launch.stopping import handling

STOPPED = 130


def watch(write: Callable[[bool], bool], seconds: float, say: Callable[[str], None]) -> int:
    """Write the page again and again, until nothing is left to come.

    The first error ends it; later ones, of runs that come and go in that moment, are told once and tried again.

    Args:
        write: Writes the page; its argument is whether somebody may stop watching it with this page (the last one),
            its result whether nothing is left to come, in which case it has written a last page.
        seconds: Between two pages.
        say: Told of errors.

    Returns:
        The exit status: 0 when nothing is left to come, 130 after Ctrl-C or SIGTERM; the page is then a last one.

    Raises:
        SettingError: the first page cannot be made.
        OSError: it cannot be written.
    """
    written, told = False, ""
    # SIGTERM as Ctrl-C; and SIGINT even where a shell has it ignored, as in a script's background jobs.
    with handling((signal.SIGINT, signal.SIGTERM), signal.default_int_handler):
        try:
            while True:
                try:
                    if write(False):
                        return 0
                    written, told = True, ""
                except (SettingError, OSError) as error:
                    if not written:
                        raise
                    if str(error) != told:
                        told = str(error)
                        say(f"{told}; trying again")
                time.sleep(seconds)
        except KeyboardInterrupt:
            # Also before the first page is known to be there: the signal may come just after its file did.
            with suppress(SettingError, OSError):
                write(True)
            return STOPPED
