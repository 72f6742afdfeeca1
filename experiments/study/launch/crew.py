"""The workers of a pool and the crew that starts, hears and ends them; here, processes of this machine."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from experiments.study.launch.slots import Slot
from experiments.study.launch.worker import Died, Message, RunFunction, start_worker
from mt_dnn.config import RunConfig

_LEAVE_SECONDS = 0.5  # for a worker with nothing to do to end by itself


class Worker(Protocol):
    """A process that computes one run after the other on its slot."""

    @property
    def slot(self) -> Slot:
        """Device and threads of the worker."""

    def take(self, config: RunConfig, folder: Path) -> None:
        """Give the worker a run. One that has just died says so when it is next heard."""

    def hear(self) -> Sequence[Message]:
        """Messages since it was last heard; a :class:`Died` is the last there is."""

    def ask_to_stop(self) -> None:
        """Ask its run for a checkpoint and an end."""

    def release(self) -> None:
        """Let it end by itself, while it has no run."""

    def dismiss(self) -> None:
        """End it now, without a checkpoint."""


class Crew(Protocol):
    """A source of workers, which starts them and keeps account of them."""

    @property
    def summary(self) -> str:
        """A phrase with the number of runs at a time and their place."""

    @property
    def advice(self) -> str:
        """A remedy for runs that do not fit into a device's or machine's memory."""

    @property
    def needs(self) -> str:
        """The condition that a worker waits for before it starts."""

    @property
    def logs(self) -> str:
        """The place of the messages of a worker that died at its start."""

    def shares(self, worker: Worker) -> bool:
        """Whether other workers compute on the same device."""

    def hire(self, wanted: int) -> Sequence[Worker]:
        """Start up to ``wanted`` more workers, as many as there is room for."""

    def wait(self, seconds: float) -> Sequence[Worker]:
        """The workers that have something to say; empty when none has within ``seconds``."""

    def close(self) -> None:
        """End every worker that is left."""


class LocalWorker:
    """A process of this machine.

    Args:
        run: Computes a run; importable by name.
        slot: Device and threads of the worker.
    """

    def __init__(self, run: RunFunction, slot: Slot) -> None:
        self._process, self._connection = start_worker(run, slot.threads)
        self.slot = slot
        self._released = self.dismissed = False

    @property
    def sources(self) -> tuple[Connection, int]:
        """Objects for ``multiprocessing.connection.wait``; one is ready when there is something to hear."""
        return self._connection, self._process.sentinel

    def take(self, config: RunConfig, folder: Path) -> None:
        """Give the worker a run."""
        with suppress(OSError):  # it has just died
            self._connection.send((config, folder))

    def hear(self) -> list[Message]:
        """Messages since it was last heard."""
        dead, heard = self._process.exitcode is not None, []
        try:
            while self._connection.poll():
                heard.append(self._connection.recv())
        except (EOFError, OSError):
            dead = True
        return [*heard, self._death()] if dead else heard

    def ask_to_stop(self) -> None:
        """Ask its run for a checkpoint and an end."""
        self._process.terminate()

    def release(self) -> None:
        """Let it end by itself."""
        self._released = True
        with suppress(OSError):
            self._connection.send(None)

    def dismiss(self) -> None:
        """End it now, or after a moment if it was released."""
        if self._released:
            self._process.join(timeout=_LEAVE_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()
        self.dismissed = True

    def _death(self) -> Died:
        self._process.join(timeout=_LEAVE_SECONDS)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return Died(how, killed=code == -signal.SIGKILL)


class LocalCrew:
    """Processes of this machine, one per slot.

    Args:
        run: Computes a run; importable by name.
        slots: One worker each; processes are started as they are needed.
    """

    advice = "try fewer --workers_per_device"
    needs = "its process is still starting"
    logs = "see the messages above"

    def __init__(self, run: RunFunction, slots: Sequence[Slot]) -> None:
        self._run, self._slots = run, list(slots)
        self._staff: list[LocalWorker] = []

    @property
    def summary(self) -> str:
        """A phrase with the number of runs at a time and their place."""
        return f"{len(self._slots)} at a time"

    def shares(self, worker: Worker) -> bool:
        """Whether other slots are on the same device."""
        return sum(slot.device == worker.slot.device for slot in self._slots) > 1

    def hire(self, wanted: int) -> list[LocalWorker]:
        """Start processes on free slots."""
        self._staff = [worker for worker in self._staff if not worker.dismissed]
        free = [slot for slot in self._slots if all(worker.slot is not slot for worker in self._staff)]
        hired = [LocalWorker(self._run, slot) for slot in free[:wanted]]
        self._staff += hired
        return hired

    def wait(self, seconds: float) -> list[LocalWorker]:
        """The workers that have something to say."""
        sources = {source: worker for worker in self._staff if not worker.dismissed for source in worker.sources}
        if not sources:
            time.sleep(seconds)
            return []
        return list(dict.fromkeys(sources[ready] for ready in wait(list(sources), timeout=seconds)))  # type: ignore[index]

    def close(self) -> None:
        """End every process that is left."""
        for worker in self._staff:
            if not worker.dismissed:
                worker.dismiss()
        self._staff.clear()
