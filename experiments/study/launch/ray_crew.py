"""Workers on the nodes of a Ray cluster: Ray says where there is room and who is gone, the pool does the rest.

On a node, an actor holds the resources of one slot and starts the worker process that a pool on one machine has:
same threads, same signals, same log. The actor passes its messages on. A node that dies takes both with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from experiments.study.launch.crew import Worker
from experiments.study.launch.ray_host import Host, ImportedFunction, SharedStorage
from experiments.study.launch.slots import Slot
from experiments.study.launch.stopping import handlers_kept
from experiments.study.launch.worker import Died, Message, RunFunction
from mt_dnn.config import RunConfig

ROOT = Path(__file__).resolve().parents[3]

_SPARE = 4  # workers asked for beyond what the nodes hold: for nodes that join, and to tell an autoscaler to add some
_END_SECONDS = 5.0  # for actors to end their processes
_REACH_SECONDS = 10.0  # for the head's port to be open
_CONNECT_SECONDS = 45.0  # for the cluster to answer a process that joins it
_PROBE = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    print((str(error).strip() or type(error).__name__).splitlines()[0])
    sys.exit(1)
ray.shutdown()
"""
_MESSAGE_THREADS = 4  # of an actor: one listens, the others pass on what the pool says


@dataclass(frozen=True, slots=True)
class Share:
    """The resources of a node that one run gets."""

    cpus: int
    """CPU cores, >= 1; also the threads of its numerical libraries."""
    gpus: float
    """Share of a GPU, in (0, 1]; 0 computes on the CPU."""

    @property
    def slot(self) -> Slot:
        """Device and threads of a worker; Ray lets it see one GPU, which is its first."""
        return Slot("cuda:0" if self.gpus else "cpu", self.cpus)

    def room(self, resources: dict[str, float]) -> int:
        """Runs at a time on a node with these resources."""
        room = int(resources.get("CPU", 0.0)) // self.cpus
        return min(room, int(resources.get("GPU", 0.0)) * int(1 / self.gpus + 1e-6)) if self.gpus else room

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus}"


class RayWorker:
    """A worker on some node, as its study sees it.

    Args:
        actor: Handle of a :class:`Host`.
        slot: Its device and threads.
    """

    def __init__(self, actor: Any, slot: Slot) -> None:
        self._actor, self.slot = actor, slot
        self.heard = actor.listen.remote()
        """Reference to its next messages."""
        self.reached = self.dismissed = False

    def take(self, config: RunConfig, folder: Path) -> None:
        """Give the worker a run."""
        self._actor.take.remote(config, folder)

    def hear(self) -> list[Message]:
        """Messages since it was last heard."""
        import ray

        try:
            heard: list[Message] = ray.get(self.heard)
        except ray.exceptions.RayTaskError:
            raise  # a defect of the host
        except ray.exceptions.RayError as error:
            self.reached = False
            return [_death(error)]
        self.reached = True
        self.heard = self._actor.listen.remote()
        return heard

    def ask_to_stop(self) -> None:
        """Ask its run for a checkpoint and an end."""
        self._actor.ask_to_stop.remote()

    def release(self) -> None:
        """Let it end by itself."""
        self._actor.release.remote()

    def dismiss(self) -> None:
        """End it now."""
        end_actors([self])


def _death(error: Exception) -> Died:
    """The end of a worker that Ray cannot reach any more."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Died("its node ran out of memory", killed=True)
    if not (isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed):
        return Died("its node or its actor was lost", lost=True)
    # The error holds the node's whole traceback; its last line is ours, or names a module that is not there.
    kind, _, text = str(error).strip().splitlines()[-1].partition(": ")
    if not kind.endswith(SettingError.__name__):
        text = f"a node cannot start workers ({text or kind}); every node needs this code in {ROOT} and its packages"
    return Died(text, unfit=True)


def end_actors(workers: Sequence[RayWorker]) -> None:
    """End worker processes and their actors; those that are out of reach end with their node."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):
        ends = [worker._actor.dismiss.remote() for worker in workers if worker.reached]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=_END_SECONDS)
    for worker in workers:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker._actor)
        worker.dismissed = True


class RayCrew:
    """Workers on a Ray cluster that this process is connected to; see :func:`ray_crew`.

    Args:
        run: Computes a run; importable by name on every node.
        share: Resources of each worker.
        storage: Folders that its node must see.
    """

    advice = "give each run more: a larger --gpus_per_run or --cpus_per_run"
    logs = "see its log in /tmp/ray/session_latest/logs on its node"

    def __init__(self, run: RunFunction, share: Share, storage: SharedStorage) -> None:
        import ray

        self._arguments = (ImportedFunction(run.__module__, run.__qualname__), share.slot, storage, tuple(sys.argv))
        self._share = share
        self._actor = ray.remote(Host).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=_MESSAGE_THREADS, max_restarts=0
        )
        self._staff: list[RayWorker] = []

    @property
    def summary(self) -> str:
        """A phrase with the number of runs at a time and their place."""
        rooms = [room for room in self._rooms() if room]
        return f"{sum(rooms)} at a time on {len(rooms)} Ray nodes, {self._share} each"

    @property
    def needs(self) -> str:
        """The condition that a worker waits for before it starts."""
        return f"each needs a node with {self._share} free (ray status shows what there is)"

    def shares(self, worker: Worker) -> bool:
        """Whether others may compute on the same GPU."""
        return 0 < self._share.gpus < 1

    def hire(self, wanted: int) -> list[RayWorker]:
        """Ask Ray for actors, a few more than the nodes hold now."""
        self._staff = [worker for worker in self._staff if not worker.dismissed]
        room = sum(self._rooms()) + _SPARE - len(self._staff)
        hired = [RayWorker(self._actor.remote(*self._arguments), self._share.slot) for _ in range(min(wanted, room))]
        self._staff += hired
        return hired

    def wait(self, seconds: float) -> list[RayWorker]:
        """The workers that have something to say."""
        import ray

        workers = {worker.heard: worker for worker in self._staff if not worker.dismissed}
        if not workers:
            time.sleep(seconds)
            return []
        said, silent = ray.wait(list(workers), num_returns=1, timeout=seconds)
        if said and silent:
            said += ray.wait(silent, num_returns=len(silent), timeout=0)[0]
        return [workers[reference] for reference in said]

    def close(self) -> None:
        """End every worker that is left."""
        end_actors([worker for worker in self._staff if not worker.dismissed])
        self._staff.clear()

    def _rooms(self) -> list[int]:
        import ray

        return [self._share.room(node["Resources"]) for node in ray.nodes() if node["Alive"]]


@contextmanager
def ray_crew(
    run: RunFunction, storage: SharedStorage, address: str, gpus_per_run: float | None, cpus_per_run: int
) -> Iterator[RayCrew]:
    """Connect to a Ray cluster for the time of a study.

    Args:
        run: Computes a run; importable by name on every node.
        storage: Folders that every node must see; its ``output_dir`` is made if it is missing.
        address: ``auto`` or ``<host>:<port>`` of the cluster's head.
        gpus_per_run: Share of a GPU, in [0, 1]; None for a whole one where the cluster has GPUs now, else 0.
        cpus_per_run: Cores of each run, >= 1.

    Raises:
        SettingError: there is no such cluster, or a value out of its range.
    """
    # Before the import: no usage statistics, no advice on how later versions will treat GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    storage.output_dir.mkdir(parents=True, exist_ok=True)
    with storage.probe.open("a+b") as held, contextlib.redirect_stdout(io.StringIO()):
        # Ray prints the last log lines of a lost node to stdout, where the table belongs; the pool says it in one line.
        fcntl.flock(held, fcntl.LOCK_SH)
        try:
            _reach(address)
            with handlers_kept():  # Ray's ends the process with 15 at SIGTERM
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    # Not the node's packages: the code of this very folder.
                    runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}:${{PYTHONPATH}}"}},
                )
        except (OSError, RuntimeError, ValueError) as error:
            text = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
            reason = text.splitlines()[0].partition(". ")[0]
            raise SettingError(
                f"--address {address}: {reason}; start a cluster with ray start --head, or give --address host:port of "
                "one (docs/cluster.md)"
            ) from None
        try:
            if gpus_per_run is None:
                gpus_per_run = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
            yield RayCrew(run, Share(cpus_per_run, gpus_per_run), storage)
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """Fail where no cluster answers in time. Ray would try for minutes, deaf to signals; so another process tries.

    Raises:
        OSError: nobody listens at the address, or no cluster answers.
        RuntimeError: Ray says why it cannot connect.
    """
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
            timeout=_CONNECT_SECONDS, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no Ray cluster has answered within {_CONNECT_SECONDS:.0f} s") from None
    if probe.returncode:
        reason = probe.stdout.strip() or "Ray cannot connect"
        raise RuntimeError(reason)
