"""The switches of torch's CUDA backends, set for a run and set back after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when its first handle is made
_FIXED_WORKSPACE = ":4096:8"  # with it cuBLAS is deterministic, by its manual


@contextmanager
def cuda_backends(device: torch.device, *, tf32: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Compute on a CUDA device as a run asks for; on other devices nothing is changed.

    cuDNN's attention is switched off: it plans anew for every shape, and packed batches bring new ones at every step;
    its dropout rounds probabilities to sixteenths, and its backward pass is not deterministic.

    Args:
        device: Of the run.
        tf32: Whether float32 matrix products may round their inputs to TF32's 10 bits.
        deterministic: Whether torch takes deterministic kernels only. ``CUBLAS_WORKSPACE_CONFIG`` stays set afterwards,
            because cuBLAS reads it once per process; a value that is set already takes precedence.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn, products, only, warns = before
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(only, warn_only=warns)
