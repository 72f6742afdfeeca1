"""A pool of workers that computes many runs and survives the death of single workers."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from data_utils.errors import SettingError
from experiments.study.launch.crew import Crew, Worker
from experiments.study.launch.job import Job
from experiments.study.launch.stopping import SIGNALS, handling
from experiments.study.launch.worker import Advanced, Died, Ended, Message, Outcome, Ready
from mt_dnn.identity import finished_result

_POLL_SECONDS = 0.5
_LOCKED_SECONDS = 5.0  # between two looks at a run that another study holds
_STOP_SECONDS = 600.0  # for the workers to write their checkpoints
_PATIENCE_SECONDS = 60.0  # without a worker that can take a run, before a line says so
_START_DEATHS = 3  # workers that may die in a row before they could take a run


class Display(Protocol):
    """The listener that a pool tells of its progress."""

    def started(self, job: Job) -> None:
        """Show that a worker has taken a run."""

    def put_back(self, job: Job) -> None:
        """Show that a run waits again: its worker died, was told to stop, or found that another study has it."""

    def advanced(self, job: Job, step: int, total_steps: int) -> None:
        """Show that a run has made steps."""

    def ended(self, job: Job, ended: Ended) -> None:
        """Show that a run is done, has failed for good, or was finished by another study."""

    def message(self, text: str) -> None:
        """Show a text on a line of its own."""

    def tick(self) -> None:
        """Refresh the clock, whether or not anything happened."""


@dataclass(slots=True)
class Report:
    """The outcome of the jobs."""

    done: int = 0
    failures: list[tuple[Job, str]] = field(default_factory=list)
    """Runs that failed, with a one-line reason."""
    stopped: bool = False
    """Whether a signal ended the work early; the same command goes on."""


class PoolError(ChildProcessError):
    """Workers cannot be started at all."""


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker and its current job."""

    worker: Worker
    ready: bool = False
    job: Job | None = None
    since: float = 0.0
    """When it took the job."""


class Pool:
    """A pool that computes jobs with a crew of workers, the costliest first.

    A worker that dies is replaced and its run is tried again, from its last checkpoint. A run that another study holds
    is put back and looked at again. SIGINT, SIGTERM and SIGUSR1 ask the workers to write a checkpoint and stop; a
    SIGINT after that kills them.

    Args:
        crew: Starts the workers; ended when the work is.
        display: Told of progress.
        retries: Times that a run is tried again after its worker died, >= 0.
    """

    def __init__(self, crew: Crew, display: Display, retries: int = 1) -> None:
        self._crew, self._display, self._retries = crew, display, retries
        self._queue: deque[Job] = deque()
        self._later: list[tuple[float, Job]] = []
        self._seats: list[_Seat] = []
        self._deaths: Counter[Path] = Counter()
        self._spent: dict[Path, float] = {}  # seconds that workers had a run for, until they gave it up
        self._start_deaths = 0
        self._last_ready = time.monotonic()
        self._stop = self._kill = False
        self._broken = ""
        self._report = Report()

    def compute(self, jobs: Sequence[Job]) -> Report:
        """Compute all jobs; returns when each is done or has failed, or after a signal.

        Raises:
            PoolError: workers die before they can take a run.
        """
        self._queue.extend(sorted(jobs, key=lambda job: (-job.cost, str(job.folder))))
        try:
            with handling(SIGNALS, self._ask_to_stop):
                while self._unfinished and not (self._stop or self._broken):
                    self._requeue_later()
                    self._hire()
                    self._dispatch()
                    self._listen()
                    self._display.tick()
                self._shut_down()
                if self._broken:
                    raise PoolError(self._broken)
        finally:
            self._crew.close()
        self._report.stopped = self._stop
        return self._report

    @property
    def killed(self) -> bool:
        """Whether a second SIGINT stopped the workers without checkpoints."""
        return self._kill

    @property
    def _unfinished(self) -> bool:
        return bool(self._queue or self._later) or any(seat.job for seat in self._seats)

    def _requeue_later(self) -> None:
        now = time.monotonic()
        self._queue.extend(job for due, job in self._later if due <= now)
        self._later = [(due, job) for due, job in self._later if due > now]

    def _hire(self) -> None:
        now = time.monotonic()
        if not self._queue or any(seat.ready for seat in self._seats):
            self._last_ready = now
        elif now - self._last_ready > _PATIENCE_SECONDS:
            self._display.message(f"no worker has started for {_PATIENCE_SECONDS:.0f} s: {self._crew.needs}")
            self._last_ready = float("inf")  # once is enough
        wanted = len(self._queue) - sum(seat.job is None for seat in self._seats)
        if wanted > 0:
            self._seats += map(_Seat, self._crew.hire(wanted))

    def _dispatch(self) -> None:
        for seat in self._seats:
            while self._queue and seat.ready and seat.job is None:
                job = self._queue.popleft()
                if self._finished_elsewhere(job):
                    continue
                slot = seat.worker.slot
                seat.worker.take(dataclasses.replace(job.config, device=slot.device, threads=slot.threads), job.folder)
                seat.job, seat.since = job, time.monotonic()
                self._display.started(job)

    def _finished_elsewhere(self, job: Job) -> bool:
        result = None
        with suppress(SettingError, OSError):  # a damaged result, or other data: the run itself reports it
            result = finished_result(job.config)
        if result is None:
            return False
        score = result.best.score if result.best else None
        self._end(job, Ended(Outcome.DONE, result.status.value, score))
        return True

    def _listen(self) -> None:
        """Wait for the workers' messages, up to the poll interval, and act on them."""
        speaking = self._crew.wait(_POLL_SECONDS)
        for seat in [seat for seat in self._seats if seat.worker in speaking]:
            for message in seat.worker.hear():
                self._hear(seat, message)

    def _hear(self, seat: _Seat, message: Message) -> None:
        if isinstance(message, Died):
            self._on_death(seat, message)
        elif isinstance(message, Ready):
            seat.ready, self._start_deaths = True, 0
        elif isinstance(message, Advanced):
            assert seat.job is not None
            self._display.advanced(seat.job, message.step, message.total_steps)
        else:
            self._take_back(seat, message)

    def _take_back(self, seat: _Seat, ended: Ended) -> None:
        """Take the job off a worker whose run is over."""
        job, seat.job = seat.job, None
        assert job is not None
        if "out of memory" in ended.error and self._crew.shares(seat.worker):
            ended = dataclasses.replace(ended, error=f"{ended.error}; {self._crew.advice}")
        ended = dataclasses.replace(ended, seconds=self._seconds(seat, job))
        if ended.outcome is Outcome.LOCKED:
            self._later.append((time.monotonic() + _LOCKED_SECONDS, job))
            self._display.put_back(job)
        elif ended.outcome is Outcome.INTERRUPTED:
            self._spent[job.folder] = self._seconds(seat, job)
            self._display.put_back(job)
            self._queue.appendleft(job)  # a signal to this worker alone; when the pool stops too, it stays there
        else:
            self._end(job, ended)
        if ended.poisoned:
            self._dismiss(seat)

    def _seconds(self, seat: _Seat, job: Job) -> float:
        """Seconds that workers have had a run, this one and those before it."""
        return self._spent.get(job.folder, 0.0) + time.monotonic() - seat.since

    def _end(self, job: Job, ended: Ended) -> None:
        if ended.outcome is Outcome.FAILED:
            self._report.failures.append((job, ended.error))
        else:
            self._report.done += 1
        self._display.ended(job, ended)

    def _dismiss(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        seat.worker.dismiss()

    def _on_death(self, seat: _Seat, death: Died) -> None:
        """Try the run of a dead worker again, or let it fail for good."""
        self._dismiss(seat)
        if death.unfit:
            self._broken = self._broken or death.how
        elif not (seat.ready or death.lost or self._stop):
            self._start_deaths += 1
            if self._start_deaths >= _START_DEATHS:
                self._broken = f"{_START_DEATHS} workers died at their start ({death.how}); {self._crew.logs}"
        job = seat.job
        if job is None or self._stop or self._broken:
            return
        self._spent[job.folder] = self._seconds(seat, job)
        self._deaths[job.folder] += 1
        deaths = self._deaths[job.folder]
        if deaths <= self._retries:
            count = f" ({deaths} of {self._retries})" if self._retries > 1 else ""
            self._display.message(f"the worker of {job.label} died ({death.how}); trying the run once more{count}")
            self._display.put_back(job)
            self._queue.appendleft(job)
            return
        hint = f"; out of memory? {self._crew.advice}" if death.killed else ""
        times = {1: "once", 2: "twice"}.get(deaths, f"{deaths} times")
        error = f"its worker died {times} ({death.how}){hint}"
        self._end(job, Ended(Outcome.FAILED, error=error, seconds=self._spent[job.folder]))

    def _shut_down(self) -> None:
        """Release idle workers; ask busy ones for a checkpoint and wait for them."""
        busy = [seat for seat in self._seats if seat.job is not None]
        for seat in [seat for seat in self._seats if seat.job is None]:
            if seat.ready:
                seat.worker.release()
            else:
                self._dismiss(seat)
        if busy:
            self._display.message(
                f"stopping: {len(busy)} runs write a checkpoint; the same command goes on (Ctrl-C again kills)"
            )
        for seat in busy:
            seat.worker.ask_to_stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(seat.job for seat in self._seats) and not self._kill and time.monotonic() < deadline:
            self._listen()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._kill = self._kill or (self._stop and number == signal.SIGINT)
        self._stop = True
