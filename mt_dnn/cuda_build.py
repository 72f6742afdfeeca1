"""The GPUs that the installed torch has kernels for."""

from __future__ import annotations

import torch

from data_utils.errors import SettingError


def check_kernels(device: torch.device) -> None:
    """Refuse a GPU for which the installed torch has no kernels; it would fail at the first of them.

    Raises:
        SettingError: names the GPU, what torch was built for, and a build for older GPUs.
    """
    built = torch.cuda.get_arch_list()
    if not built:
        return
    capability = torch.cuda.get_device_capability(device)
    if not any(_runs_on(arch, capability) for arch in built):
        has = ".".join(map(str, capability))
        raise SettingError(
            f"device: {torch.cuda.get_device_name(device)} has compute capability {has}, and torch {torch.__version__} "
            f"was built for {' '.join(built)}; install torch's build for an older CUDA (cu126 has V100's 7.0; "
            f"docs/reproduce.md), or use --device cpu"
        )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``sm_<major><minor>`` or ``compute_<major><minor>`` runs on a GPU, by NVIDIA's rules."""
    kind, _, number = arch.partition("_")
    digits = number.rstrip("af")  # of one GPU or family alone
    major, minor = int(digits[:-1]), int(digits[-1])
    if kind == "compute":  # the driver compiles it for newer GPUs too
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]
