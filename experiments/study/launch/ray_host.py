"""The actor on a node of a Ray cluster: one worker process, its messages, and the storage that it needs."""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from experiments.study.launch.crew import LocalWorker
from experiments.study.launch.slots import Slot
from experiments.study.launch.worker import Advanced, Message, RunFunction

_PROBE = ".shared.lock"  # in --output_dir; held by every study, tried by its workers
_GATHER_SECONDS = 1.0  # steps of a run within it make one message


@dataclass(frozen=True, slots=True)
class SharedStorage:
    """Folders that every node must see under the same path."""

    start: Path
    """Working folder of the study, absolute: relative paths mean the same on every node."""
    output_dir: Path
    """Folder of the runs; the study holds a lock in it that every node must respect."""
    inputs: tuple[Path, ...] = ()
    """Folders that the runs read."""

    @property
    def probe(self) -> Path:
        """The file that the study has locked."""
        return self.output_dir / _PROBE

    def check(self) -> None:
        """Check that this node sees the folders, and the lock of the study.

        Raises:
            SettingError: it does not see one of them.
        """
        node = f"node {platform.node()}"
        shared = "put it on storage that every node has under the same path (docs/cluster.md)"
        for folder in (self.start, *self.inputs):
            if not (self.start / folder).is_dir():
                raise SettingError(f"{node} has no folder {folder}; {shared}")
        probe = self.start / self.probe
        try:
            handle = os.open(probe, os.O_RDWR)
        except OSError as error:
            raise SettingError(f"--output_dir: {node} cannot open {probe} ({error.strerror}); {shared}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            raise SettingError(
                f"--output_dir: {node} cannot lock {probe} ({error.strerror}); use storage with locks (docs/cluster.md)"
            ) from None
        finally:
            os.close(handle)
        raise SettingError(
            f"--output_dir: {node} does not see the lock that the study holds on {probe}, so runs could be done twice; "
            f"use storage whose locks hold between nodes (docs/cluster.md)"
        )


@dataclass(frozen=True, slots=True)
class ImportedFunction:
    """A function that is imported where it is called: passing it on costs no import."""

    module: str
    name: str

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Import and call the function."""
        return getattr(importlib.import_module(self.module), self.name)(*arguments, **keywords)


class Host(LocalWorker):
    """The actor: one worker process on a node of a cluster.

    Args:
        run: Computes a run; importable by name.
        slot: Device and threads of the worker.
        storage: Folders that the node must see.
        command: Command line of the study, for ``run.json``.

    Raises:
        SettingError: the node does not see the study's folders, or not its locks.
    """

    def __init__(self, run: RunFunction, slot: Slot, storage: SharedStorage, command: Sequence[str]) -> None:
        storage.check()
        os.chdir(storage.start)
        sys.argv = list(command)
        super().__init__(run, slot)

    def listen(self) -> list[Message]:
        """Wait until the worker has something to say; of steps made within a second, the last."""
        said: list[Message] = []
        until: float | None = None
        while True:
            wait(self.sources, None if until is None else max(0.0, until - time.monotonic()))
            said += self.hear()
            steps: list[Message] = [message for message in said if isinstance(message, Advanced)]
            if len(steps) < len(said) or (until is not None and time.monotonic() >= until):
                return steps[-1:] + [message for message in said if not isinstance(message, Advanced)]
            until = until or time.monotonic() + _GATHER_SECONDS
