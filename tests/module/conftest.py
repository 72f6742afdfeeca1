"""Triton's kernels on this machine: compiled where there is a GPU, through Triton's interpreter on the CPU elsewhere."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any import of one


@pytest.fixture
def device(monkeypatch):
    """A device whose parameters the Triton kernels update: CUDA, or the CPU's memory through the interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    for module in ("module.kernel_optimizer", "module.pats", "module.kernels.device_step"):
        monkeypatch.setattr(f"{module}.on_device", lambda tensor: True)
    return torch.device("cpu")
