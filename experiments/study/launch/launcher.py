"""The launcher of a study: the command line's choice, checked, and its crew."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_utils.errors import SettingError
from experiments.study.arguments import LAUNCHERS
from experiments.study.launch.crew import Crew, LocalCrew
from experiments.study.launch.job import Job
from experiments.study.launch.slots import plan_slots
from experiments.study.launch.worker import RunFunction
from mt_dnn.config import MAX_THREADS
from mt_dnn.requirements import check_requirements
from mt_dnn.run_reference import path_of

_RETRIES = dict(zip(LAUNCHERS, (1, 3), strict=True))
_RAY_ONLY = ("address", "gpus_per_run", "cpus_per_run")


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
    """Refuse a device or package that this machine lacks, before slow imports; Ray asks its nodes.

    Raises:
        SettingError: no such device, or a run needs a package or a compiler that is not here.
    """
    if chosen.launcher == "local":
        slots = plan_slots(chosen.devices, chosen.workers_per_device, len(jobs))
        for job in jobs:
            check_requirements(job.config, slots[0].device.partition(":")[0])  # all are of one kind


def retries(chosen: argparse.Namespace) -> int:
    """Times that a run is tried again."""
    return _RETRIES[chosen.launcher] if chosen.retries is None else int(chosen.retries)


@contextmanager
def launch(chosen: argparse.Namespace, run: RunFunction, jobs: Sequence[Job]) -> Iterator[Crew]:
    """The crew that the command line asks for, for as long as it is needed.

    Args:
        chosen: Checked by :func:`check_launcher`.
        run: Computes a run; importable by name.
        jobs: The runs to do.

    Raises:
        SettingError: no such device or cluster.
    """
    if chosen.launcher == "local":
        yield LocalCrew(run, plan_slots(chosen.devices, chosen.workers_per_device, len(jobs)))
        return
    from experiments.study.launch.ray_crew import ray_crew
    from experiments.study.launch.ray_host import SharedStorage

    encoders = {path_of(job.config.init_checkpoint) for job in jobs}
    storage = SharedStorage(
        Path.cwd(), chosen.output_dir, (chosen.data_dir, *sorted(path for path in encoders if path.is_dir()))
    )
    gpus = 0.0 if chosen.devices == "cpu" else chosen.gpus_per_run
    with ray_crew(run, storage, chosen.address or "auto", gpus, chosen.cpus_per_run or 1) as crew:
        yield crew
