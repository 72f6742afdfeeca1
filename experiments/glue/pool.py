"""A pool of worker processes that computes many runs on one machine and survives what single runs do to it."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

from data_utils.errors import SettingError
from experiments.glue.slots import Slot
from experiments.glue.worker import Advanced, Ended, Outcome, Ready, RunFunction, start_worker
from mt_dnn.config import RunConfig
from mt_dnn.results import RunDirectory

_POLL_SECONDS = 0.5
_LOCKED_SECONDS = 5.0  # between two looks at a run that another study holds
_STOP_SECONDS = 600.0  # for the workers to write their checkpoints
_FEWER = "try fewer --workers_per_device"
_START_DEATHS = 3  # workers that may die in a row before they could take a run


@dataclass(frozen=True, slots=True)
class Job:
    """One run to compute."""

    config: RunConfig
    folder: Path
    steps: int
    """Expected optimizer steps, for the display."""
    cost: float
    """Expected work in any unit: the costliest runs start first."""
    trials: int = 1
    """Settings that were tried to find this run's."""
    note: str = ""
    """What tells runs of one task, encoder, method and seed apart, such as the settings of a trial."""

    @property
    def label(self) -> str:
        """The run in words."""
        c = self.config
        part = "" if c.train_fraction is None else f"train_fraction={c.train_fraction:g}"
        return " ".join(filter(None, (c.task, c.encoder, c.method, part, f"seed={c.seed}", self.note)))


class Display(Protocol):
    """What the pool tells while it works."""

    def advanced(self, job: Job, step: int, total_steps: int) -> None:
        """A run has made steps."""

    def ended(self, job: Job, ended: Ended) -> None:
        """A run is done, has failed for good, or was finished by another study."""

    def message(self, text: str) -> None:
        """Something worth a line."""


@dataclass(slots=True)
class Report:
    """What became of the jobs."""

    done: int = 0
    failures: list[tuple[Job, str]] = field(default_factory=list)
    """Runs that failed, with a one-line reason."""
    stopped: bool = False
    """Whether a signal ended the work early; the same command goes on."""


class PoolError(RuntimeError):
    """Workers cannot be started at all."""


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    slot: Slot
    ready: bool = False
    job: Job | None = None


class Pool:
    """Computes jobs on slots, the costliest first.

    A worker that dies is replaced and its run is tried once more. A run that another study holds is put back and
    looked at again. SIGINT, SIGTERM and SIGUSR1 ask the workers to write a checkpoint and stop; a SIGINT after that
    kills them.

    Args:
        run: What a worker calls for a job; importable by name.
        slots: One worker each; processes are started as they are needed.
        display: Told of progress.
    """

    def __init__(self, run: RunFunction, slots: Sequence[Slot], display: Display) -> None:
        self._run, self._slots, self._display = run, list(slots), display
        self._queue: deque[Job] = deque()
        self._later: list[tuple[float, Job]] = []
        self._workers: list[_Worker] = []
        self._deaths: Counter[Path] = Counter()
        self._start_deaths = 0
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
            with self._signals():
                while self._unfinished and not (self._stop or self._broken):
                    self._requeue_later()
                    self._start_workers()
                    self._dispatch()
                    self._listen()
                self._shut_down()
                if self._broken:
                    raise PoolError(self._broken)
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
        self._report.stopped = self._stop
        return self._report

    @property
    def killed(self) -> bool:
        """Whether a second SIGINT stopped the workers without checkpoints."""
        return self._kill

    @property
    def _unfinished(self) -> bool:
        return bool(self._queue or self._later) or any(worker.job for worker in self._workers)

    def _requeue_later(self) -> None:
        now = time.monotonic()
        self._queue.extend(job for due, job in self._later if due <= now)
        self._later = [(due, job) for due, job in self._later if due > now]

    def _start_workers(self) -> None:
        free = [slot for slot in self._slots if all(worker.slot is not slot for worker in self._workers)]
        idle = sum(worker.job is None for worker in self._workers)
        for slot in free[: max(0, len(self._queue) - idle)]:
            self._workers.append(self._start(slot))

    def _start(self, slot: Slot) -> _Worker:
        return _Worker(*start_worker(self._run, slot.threads), slot)

    def _dispatch(self) -> None:
        for worker in self._workers:
            while self._queue and worker.ready and worker.job is None:
                job = self._queue.popleft()
                if self._finished_elsewhere(job):
                    continue
                config = dataclasses.replace(job.config, device=worker.slot.device, threads=worker.slot.threads)
                with suppress(OSError):  # it has just died: _listen sees that and retries the job
                    worker.job = job
                    worker.connection.send((config, job.folder))

    def _finished_elsewhere(self, job: Job) -> bool:
        result = None
        with suppress(SettingError):  # a damaged result.json: the run itself reports it
            result = RunDirectory(job.folder).read_result()
        if result is None or not result.done:
            return False
        score = result.best.score if result.best else None
        self._end(job, Ended(Outcome.DONE, result.status.value, score))
        return True

    def _listen(self) -> None:
        """Wait for messages and deaths, up to the poll interval, and deal with them."""
        sources = {id(w.connection): w for w in self._workers} | {w.process.sentinel: w for w in self._workers}
        waitables: list[Connection | int] = [
            *(w.connection for w in self._workers),
            *(w.process.sentinel for w in self._workers),
        ]
        if not waitables:
            time.sleep(_POLL_SECONDS)
            return
        heard = {
            id(worker): worker
            for source in wait(waitables, timeout=_POLL_SECONDS)
            if (worker := sources.get(source if isinstance(source, int) else id(source))) is not None
        }
        for worker in heard.values():
            try:
                while worker in self._workers and worker.connection.poll():
                    self._hear(worker, worker.connection.recv())
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if worker in self._workers and worker.process.exitcode is not None:
                self._bury(worker)

    def _hear(self, worker: _Worker, message: Ready | Advanced | Ended) -> None:
        if isinstance(message, Ready):
            worker.ready, self._start_deaths = True, 0
            return
        job = worker.job
        assert job is not None
        if isinstance(message, Advanced):
            self._display.advanced(job, message.step, message.total_steps)
            return
        worker.job = None
        if "out of memory" in message.error and sum(s.device == worker.slot.device for s in self._slots) > 1:
            message = dataclasses.replace(message, error=f"{message.error}; {_FEWER}")
        if message.outcome is Outcome.LOCKED:
            self._later.append((time.monotonic() + _LOCKED_SECONDS, job))
        elif message.outcome is Outcome.INTERRUPTED:
            self._queue.appendleft(job)  # a signal to this worker alone; when the pool stops too, it stays there
        else:
            self._end(job, message)
        if message.poisoned:
            self._dismiss(worker)

    def _end(self, job: Job, ended: Ended) -> None:
        if ended.outcome is Outcome.FAILED:
            self._report.failures.append((job, ended.error))
        else:
            self._report.done += 1
        self._display.ended(job, ended)

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()

    def _bury(self, worker: _Worker) -> None:
        """A worker has died: replace it, and try its run once more."""
        worker.process.join(timeout=_POLL_SECONDS)
        code = worker.process.exitcode
        self._dismiss(worker)
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if not worker.ready and not self._stop:
            self._start_deaths += 1
            if self._start_deaths >= _START_DEATHS:
                self._broken = f"{_START_DEATHS} workers died at their start ({how}); see the messages above"
        job = worker.job
        if job is None or self._stop or self._broken:
            return
        self._deaths[job.folder] += 1
        if self._deaths[job.folder] == 1:
            self._display.message(f"the worker of {job.label} died ({how}); trying the run once more")
            self._queue.appendleft(job)
        else:
            hint = f"; out of memory? {_FEWER}" if code == -signal.SIGKILL else ""
            self._end(job, Ended(Outcome.FAILED, error=f"its worker died twice ({how}){hint}"))

    def _shut_down(self) -> None:
        """Close idle workers; ask busy ones for a checkpoint and wait for them."""
        busy = [worker for worker in self._workers if worker.job is not None]
        for worker in [worker for worker in self._workers if worker.job is None]:
            worker.connection.close()
            if not worker.ready:
                worker.process.kill()
        if busy:
            self._display.message(
                f"stopping: {len(busy)} runs write a checkpoint; the same command goes on (Ctrl-C again kills)"
            )
        for worker in busy:
            worker.process.terminate()
        self._workers, idle = busy, [worker for worker in self._workers if worker.job is None]
        deadline = time.monotonic() + _STOP_SECONDS
        while any(worker.job for worker in self._workers) and not self._kill and time.monotonic() < deadline:
            self._listen()
        for worker in idle:
            worker.process.join(timeout=_POLL_SECONDS)
            worker.process.kill()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, frame: FrameType | None) -> None:
            self._kill = self._kill or (self._stop and number == signal.SIGINT)
            self._stop = True

        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
