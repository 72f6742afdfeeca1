"""Commands in processes of their own that need not import torch again: forked from one that has, and computes nothing.

A child is a process like any other: it has its own exit status, output, environment and signals. Only the start of
the interpreter is shared, so each command has a test that starts it as a user does.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.slow_imports"])


@dataclass(frozen=True)
class Ended:
    """A command that is over: its exit status, or minus the signal that ended it, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A running command.

    Args:
        command: A script and its arguments, or ``-m``, a module and its arguments.
        starts_others: Whether it starts processes by multiprocessing; it then outlives a test that forgets it.
        changes: Variables of its environment beside this process's.
    """

    def __init__(self, command: Sequence[object], *, starts_others: bool = False, **changes: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        arguments = ([str(part) for part in command], {**os.environ, **changes}, self._outputs)
        self._process = FORKSERVER.Process(target=_run, args=arguments, daemon=not starts_others)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float = 120) -> Ended:
        """Wait until it is over; after ``timeout`` seconds it is killed and has status -9."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        return Ended(self._process.exitcode, *(file.read_text(encoding="utf-8") for file in self._outputs))


def call(command: Sequence[object], **changes: str) -> Ended:
    """Run a command to its end; arguments as those of :class:`Child`."""
    return Child(command, **changes).wait()


def _run(command: Sequence[str], environment: Mapping[str, str], outputs: Sequence[Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if command[0] == "-m":
        sys.argv = [*command[1:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [*command]
        runpy.run_path(command[0], run_name="__main__")
