"""Steps of devices: numba's on the CPU, Triton's on CUDA, where those packages are; elsewhere a plain torch one."""

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor

PACKAGES = {"cpu": "numba", "cuda": "triton"}
"""Needed for the compiled step of a type of devices."""
VARIABLE = "PATS_STEP"
"""Of the environment; ``plain``: the plain step everywhere."""


def has_kernels(device_type: str) -> bool:
    """Whether there is a compiled step for a type of devices.

    Raises:
        ValueError: If the variable has another value than ``plain``.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted not in (None, "", "plain"):
        raise ValueError(f"Invalid {VARIABLE}: {wanted!r}: plain is needed, or unset it")
    return wanted != "plain" and _installed(device_type)


@cache
def _installed(device_type: str) -> bool:
    return device_type in PACKAGES and find_spec(PACKAGES[device_type]) is not None


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor is updated by the kernels of a GPU."""
    return tensor.is_cuda and has_kernels("cuda")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is updated by the plain step."""
    return not has_kernels(tensor.device.type)
