"""Stops from outside: signals, and the loss of another process of the same run."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(RuntimeError):
    """A signal stopped the run after a checkpoint; the same command goes on from there."""


class RankLost(RuntimeError):
    """Another process of a data-parallel run ended or does not answer; the last checkpoint stands."""


class StopRequest:
    """Signal handlers of a block: SIGTERM, SIGUSR1 and SIGINT set :attr:`asked`; a SIGINT after that interrupts.

    Outside the main thread, where Python takes no handlers, it stays unset.

    Args:
        patient: A second SIGINT does nothing: under torchrun a single Ctrl-C comes twice, from the terminal and from
            torchrun, which kills processes that do not end in 30 seconds.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, patient: bool = False) -> None:
        self.asked = False
        self._patient = patient
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self._SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and not self._patient:
            raise KeyboardInterrupt
        self.asked = True
