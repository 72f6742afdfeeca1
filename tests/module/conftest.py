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
    _search_once(monkeypatch)
    return torch.device("cpu")


def _search_once(monkeypatch):
    """Let Triton's interpreter search its language for what to replace once per launch and function, not per call.

    Another search for the same function finds all replaced and replaces nothing; they take a third of the time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    search, found = interpreter._patch_lang, set()

    def search_once(function):
        if tl.core.is_builtin(tl.load):  # nothing is replaced: a launch begins
            found.clear()
        if function in found:
            return None
        found.add(function)
        return search(function)

    monkeypatch.setattr(interpreter, "_patch_lang", search_once)
