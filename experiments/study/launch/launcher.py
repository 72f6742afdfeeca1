"""Where a study computes: the command line's choice, checked, and the crew that it means."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_utils.errors import SettingError
from experiments.study.launch.crew import Crew, LocalCrew
from experiments.study.launch.pool import Job
from experiments.study.launch.slots import plan_slots
from experiments.study.launch.worker import RunFunction
from mt_dnn.config import MAX_THREADS
from mt_dnn.requirements import check_requirements

_RETRIES = {"local": 1, "ray": 3}
_RAY_ONLY = ("address", "gpus_per_run", "cpus_per_run")


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say where and how many at a time."""
    how = parser.add_argument_group("how")
    how.add_argument(
        "--devices", default="auto",
        help="0,1,2,3 (CUDA devices), cpu, or auto; with --launcher ray, which picks the devices, cpu or auto; "
        "default: %(default)s",
    )  # fmt: skip
    how.add_argument(
        "--workers_per_device", type=int,
        help="runs at a time on each device; default: 1 per CUDA device; on the CPU one per core, which share its "
        "cores evenly (mind the memory: a worker holds a model, its gradients and optimizer state)",
    )  # fmt: skip
    how.add_argument(
        "--retries", type=int,
        help="times that a run is tried again, from its last checkpoint, after its worker or node died; "
        "default: 1, with --launcher ray 3",
    )  # fmt: skip
    how.add_argument(
        "--launcher", choices=list(_RETRIES), default="local",
        help="local: processes of this machine; ray: the nodes of a Ray cluster (pip install -r requirements-ray.txt; "
        "docs/cluster.md); default: %(default)s",
    )  # fmt: skip
    ray = parser.add_argument_group("with --launcher ray")
    ray.add_argument("--address", help="head of the cluster: host:port, or auto for this machine's; default: auto")
    ray.add_argument(
        "--gpus_per_run", type=float,
        help="share of a GPU in (0, 1]: 0.5 puts two runs on each; default: 1 if the cluster has a GPU now, else the "
        "runs compute on CPUs. Give it if GPU nodes are yet to join",
    )  # fmt: skip
    ray.add_argument("--cpus_per_run", type=int, help="cores of each run, which are its threads; default: 1")


def check_launcher(chosen: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is started.

    Raises:
        SettingError: one of them, or Ray is wanted and not installed.
    """
    if chosen.retries is not None and chosen.retries < 0:
        raise SettingError(f"--retries is {chosen.retries}; legal: an integer >= 0")
    if chosen.launcher != "ray":
        for name in _RAY_ONLY:
            if getattr(chosen, name) is not None:
                raise SettingError(f"--{name} is for --launcher ray; drop it or add --launcher ray")
        return
    if chosen.devices not in ("auto", "cpu"):
        raise SettingError(f"--devices {chosen.devices}: Ray picks the devices; legal with --launcher ray: auto, cpu")
    if chosen.workers_per_device is not None:
        share = max(1, chosen.workers_per_device)
        raise SettingError(
            f"--workers_per_device is for --launcher local; with ray give --gpus_per_run {1 / share:.4g} or "
            f"--cpus_per_run"
        )
    if chosen.gpus_per_run is not None and not 0 < chosen.gpus_per_run <= 1:
        raise SettingError(f"--gpus_per_run is {chosen.gpus_per_run}; legal: a share in (0, 1]")
    if chosen.gpus_per_run is not None and chosen.devices == "cpu":
        raise SettingError(f"--devices cpu and --gpus_per_run {chosen.gpus_per_run} contradict each other; drop one")
    if chosen.cpus_per_run is not None and not 1 <= chosen.cpus_per_run <= MAX_THREADS:
        raise SettingError(f"--cpus_per_run is {chosen.cpus_per_run}; legal: an integer in [1, {MAX_THREADS}]")
    if chosen.address is not None and not re.fullmatch(r"auto|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", chosen.address):
        raise SettingError(
            f"--address {chosen.address}: legal: auto, or host:port of the cluster's head; start the study on one of "
            f"the cluster's nodes"
        )
    if importlib.util.find_spec("ray") is None:
        raise SettingError("--launcher ray: ray is not installed; pip install -r requirements-ray.txt")


def check_machine(chosen: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Refuse what this machine lacks before anything slow is imported; Ray asks the nodes of its cluster.

    Raises:
        SettingError: no such device, or a run needs a package or a compiler that is not here.
    """
    if chosen.launcher == "local":
        plan_slots(chosen.devices, chosen.workers_per_device, len(jobs))
        for job in jobs:
            check_requirements(job.config, on_cpu=chosen.devices == "cpu")


def retries(chosen: argparse.Namespace) -> int:
    """Times that a run is tried again."""
    return _RETRIES[chosen.launcher] if chosen.retries is None else int(chosen.retries)


@contextmanager
def launch(chosen: argparse.Namespace, run: RunFunction, jobs: Sequence[Job]) -> Iterator[Crew]:
    """The crew that the command line asks for, for as long as it is needed.

    Args:
        chosen: Checked by :func:`check_launcher`.
        run: What a worker calls for each run; importable by name.
        jobs: The runs to do.

    Raises:
        SettingError: no such device or cluster.
    """
    if chosen.launcher == "local":
        yield LocalCrew(run, plan_slots(chosen.devices, chosen.workers_per_device, len(jobs)))
        return
    from experiments.study.launch.ray_crew import ray_crew
    from experiments.study.launch.ray_host import Ground

    encoders = {Path(job.config.init_checkpoint) for job in jobs}
    ground = Ground(
        Path.cwd(), chosen.output_dir, (chosen.data_dir, *sorted(path for path in encoders if path.is_dir()))
    )
    gpus = 0.0 if chosen.devices == "cpu" else chosen.gpus_per_run
    with ray_crew(run, ground, chosen.address or "auto", gpus, chosen.cpus_per_run or 1) as crew:
        yield crew
