"""The answer of a study to signals outside its pool: while it plans, connects, prepares data or draws."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_utils.command_line import status_of

STOPPED = 75  # EX_TEMPFAIL: started again, it goes on
KILLED = 128 + signal.SIGINT
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class _Stop(BaseException):
    """A signal came where there is no checkpoint to write."""


def study_status(do: Callable[[], int | None]) -> int:
    """Do a study's work and return its exit status.

    Returns:
        What the work gives; 2 after a wrong setting or file; after a signal that came while no run was computed (the
        pool has handlers of its own) 130 if that was Ctrl-C, else 75.
    """
    try:
        with handling(SIGNALS, _stop):
            return status_of(do)
    except _Stop as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return KILLED if stop.args == (signal.SIGINT,) else STOPPED


def _stop(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:  # one is enough: a second one must not break off the clean-up
        signal.signal(other, signal.SIG_IGN)
    raise _Stop(signal.Signals(number))


@contextmanager
def handling(signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle signals by ``handler`` while entered; outside the main thread Python takes no handlers, so do nothing."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals if in_main}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of these signals back afterwards, for a library that takes them for its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
