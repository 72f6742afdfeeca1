"""The provenance of a result: revision, versions, machine and command, for ``run.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "numba", "scikit-learn", "scipy", "safetensors")
_OPTIONAL = ("triton", "peft", "optuna")


@cache
def provenance() -> dict[str, Any]:
    """Facts about this code and this machine.

    Returns:
        ``git`` (commit and whether files differ from it, or None outside a checkout), ``versions``, ``machine``,
        ``command``.
    """
    return {"git": _git(), "versions": _versions(), "machine": _machine(), "command": sys.argv}


def _git() -> dict[str, Any] | None:
    root = Path(__file__).resolve().parents[1]
    try:
        commit = _ask("git", "-C", str(root), "rev-parse", "HEAD")
        changed = bool(_ask("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        versions[package] = importlib.metadata.version(package)
    for package in _OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions["torch"] = str(torch.__version__)  # with its build, such as +cpu, which computes other bits
    platforms = {"cuda": torch.version.cuda, "rocm": torch.version.hip}  # that torch was built for
    return versions | {name: version for name, version in platforms.items() if version is not None}


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }
