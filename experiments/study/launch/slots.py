"""The slots of a machine: devices, and an even share of the CPU cores for each worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from data_utils.errors import SettingError, shown


@dataclass(frozen=True, slots=True)
class Slot:
    """Device and CPU threads of one worker."""

    device: str
    """``cpu`` or ``cuda:<index>``."""
    threads: int
    """CPU threads of the worker, >= 1."""


def plan_slots(devices: str, workers_per_device: int | None, runs: int) -> list[Slot]:
    """Plan a slot for each worker, with the cores shared evenly.

    Args:
        devices: ``auto``, ``cpu`` or CUDA indices such as ``0,1``.
        workers_per_device: Workers on each device, >= 1; None for 1 per CUDA device and one per core on the CPU.
        runs: Runs to do; no more workers than that.

    Raises:
        SettingError: an unknown device or a count below 1.
    """
    if workers_per_device is not None and workers_per_device < 1:
        raise SettingError(f"--workers_per_device is {workers_per_device}; legal: an integer >= 1")
    there = 0 if devices == "cpu" else _cuda_devices()
    if devices == "auto":
        devices = ",".join(map(str, range(there))) if there else "cpu"
    cores = usable_cores()
    if devices == "cpu":
        names = ["cpu"] * min(workers_per_device or cores, runs)
    else:
        indices = [part.strip() for part in devices.split(",")]
        bad = [part for part in indices if not part.isdecimal() or int(part) >= there]
        if bad:
            legal = f"cpu, auto, or indices below {there} (CUDA)" if there else "cpu or auto (no CUDA device is here)"
            raise SettingError(f"--devices {devices}: no device {shown(bad[0])}; legal: {legal}")
        each = [f"cuda:{int(index)}" for index in dict.fromkeys(indices)]
        names = (each * min(workers_per_device or 1, runs))[:runs]
    return [Slot(name, max(1, cores // len(names))) for name in names]


def _cuda_devices() -> int:
    if version("torch").endswith("+cpu"):
        return 0
    import torch  # a slow import, wanted only where a GPU may be

    return torch.cuda.device_count()


def usable_cores() -> int:
    """CPU cores that this process may use: its affinity, less where a container's quota is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
