"""A worker process of the pool: one run after the other, with encoder and caches kept loaded between them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError, error_line
from mt_dnn.config import RunConfig
from mt_dnn.interrupt import Interrupted
from mt_dnn.results import Status
from mt_dnn.run_directory import RunLocked

RunFunction = Callable[..., Any]
"""``run(config, on_progress=...) -> RunResult``; must be importable by name, as workers are spawned."""

_CONTEXT = multiprocessing.get_context("spawn")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_REPORT_SECONDS = 0.2
_ORPHAN_GRACE_SECONDS = 120.0


class Outcome(StrEnum):
    """The end of a worker's run."""

    DONE = "done"
    FAILED = "failed"
    LOCKED = "locked"  # another study has it
    INTERRUPTED = "interrupted"  # a signal; a checkpoint was written


@dataclass(frozen=True, slots=True)
class Ready:
    """The message that the worker can take a run."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """The message with the steps of the current run so far."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The message that the current run is over."""

    outcome: Outcome
    status: str = ""
    score: float | None = None
    """Best epoch's score, percent."""
    error: str = ""
    seconds: float | None = None
    """Seconds that workers had it, by the pool's clock; None for a run that was done already."""
    poisoned: bool = False
    """Whether the process may be left in a bad state (CUDA) and should be replaced."""


@dataclass(frozen=True, slots=True)
class Died:
    """The message, by its crew, that the worker is gone; the last one of a worker."""

    how: str
    """In a few words, such as ``signal 9``."""
    killed: bool = False
    """Whether the kernel killed it, as it does for want of memory."""
    lost: bool = False
    """Whether it went down with its machine: nothing that it or its run did."""
    unfit: bool = False
    """Whether no worker could ever compute there; ``how`` is the fault of the place."""


Message = Ready | Advanced | Ended | Died


def start_worker(run: RunFunction, threads: int) -> tuple[SpawnProcess, Connection]:
    """Start a worker process.

    Args:
        run: Computes a run.
        threads: CPU threads of its numerical libraries, >= 1.

    Returns:
        The process and our end of its connection, which gets a :class:`Ready` once it can take a run.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=serve, args=(theirs, run), daemon=True)
    with _environment(dict.fromkeys(_THREAD_VARIABLES, str(threads))), _only_sigint_blocked():
        process.start()
    theirs.close()
    return process, ours


def serve(connection: Connection, run: RunFunction) -> None:
    """Take runs until None comes or the connection is closed.

    The output of a run goes to ``log.txt`` in its folder. The first message is :class:`Ready`; every
    ``(config, folder)`` received is answered by :class:`Advanced` messages and one :class:`Ended`. When the process
    that started this one is gone, however it died, the current run writes a checkpoint and the worker stops.
    """
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    connection.send(Ready())
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        config, folder = job
        ended = _compute(connection, run, config, folder)
        _free_memory()
        try:
            connection.send(ended)
        except OSError:
            return


def _compute(connection: Connection, run: RunFunction, config: RunConfig, folder: Path) -> Ended:
    reported = 0.0

    def report(progress: Any) -> None:
        nonlocal reported
        now = time.monotonic()
        worth = progress.step == progress.total_steps or evaluates_next(config, progress.step, progress.total_steps)
        if now - reported < _REPORT_SECONDS and not worth:
            return
        reported = now
        # A closed pipe is the watchdog's business: it stops the run at a step boundary, with a checkpoint.
        try:
            connection.send(Advanced(progress.step, progress.total_steps))
        except OSError:
            reported = float("inf")

    try:
        _redirect_output(folder)
        result = run(config, on_progress=report)
    except RunLocked:
        return Ended(Outcome.LOCKED)
    except Interrupted:
        return Ended(Outcome.INTERRUPTED)
    except (SettingError, OSError) as error:
        return Ended(Outcome.FAILED, error=_one_line(error))
    except Exception as error:
        traceback.print_exc()
        return Ended(Outcome.FAILED, error=f"{type(error).__name__}: {_one_line(error)}", poisoned=True)
    if result.status is Status.FAILED:
        return Ended(Outcome.FAILED, error=result.error or "failed without a message", poisoned=True)
    return Ended(Outcome.DONE, result.status.value, result.best.score if result.best else None)


def evaluates_next(config: RunConfig, step: int, total_steps: int) -> bool:
    """Whether the step after this one ends an epoch, and the dev sets are scored before it is reported."""
    per_epoch = total_steps // config.epochs
    return per_epoch > 1 and (step + 1) % per_epoch == 0


def _free_memory() -> None:
    """Return the memory of a finished run to the system, and a GPU's to the device's other workers."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    from mt_dnn.allocator import return_free_memory  # torch is there already, so this brings nothing slow

    gc.collect()  # an optimizer and its hooks hold each other
    return_free_memory()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _redirect_output(folder: Path) -> None:
    """Send stdout and stderr of this process, native libraries included, to ``log.txt`` of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _stop_when_orphaned() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # idle: ends at once; in a run: checkpoint first
    time.sleep(_ORPHAN_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _one_line(error: BaseException) -> str:
    text = error_line(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _only_sigint_blocked() -> Iterator[None]:
    """Hide Ctrl-C, which a terminal sends to the whole group, from a child started here: the pool decides.

    The mask is inherited by the child for good; ours is put back and a Ctrl-C in between arrives then. Signals that
    this thread has blocked, such as the one that asks for a checkpoint, are open in the child.
    """
    before = signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
