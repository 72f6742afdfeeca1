"""Triton's kernels on this machine: compiled where there is a GPU, elsewhere through Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any import of one


@pytest.fixture
def device(monkeypatch):
    """Where the Triton kernels run: CUDA, or the CPU for tensors that :func:`tests.module.models.to_device` marks."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    for module in (
        "module.kernel_optimizer",
        "module.kernels.engine",
        "module.kernels.member",
        "module.kernels.device_step",
    ):
        monkeypatch.setattr(f"{module}.on_device", lambda tensor: getattr(tensor, "simulates_cuda", False))
    return torch.device("cpu")
