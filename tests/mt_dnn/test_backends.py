"""The switches are flags that a torch without CUDA has as well."""

import os
from contextlib import suppress

import pytest
import torch

from data_utils.text_rows import TextRows
from mt_dnn import run as run_module
from mt_dnn.backends import cuda_backends
from mt_dnn.run import run
from mt_dnn.trained import prediction
from mt_dnn.trained.load import load_run, read_run

CUDA = torch.device("cuda")


def switches() -> dict[str, object]:
    return {
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture
def workspace(monkeypatch):
    """An environment without cuBLAS's setting, now and afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_switches_hold_inside_alone(workspace, tf32, deterministic):
    before = switches()
    assert before["cudnn"]
    with cuda_backends(CUDA, tf32=tf32, deterministic=deterministic):
        expected = {"cudnn": False, "products": "high" if tf32 else "highest", "deterministic": deterministic}
        assert switches() == expected
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    assert switches() == before


def test_they_are_set_back_after_an_error_and_a_users_own_are_kept(workspace, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with suppress(KeyError), cuda_backends(CUDA, deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_cpu_is_left_as_it_is():
    before = switches()
    with cuda_backends(torch.device("cpu"), tf32=True, deterministic=True):
        assert switches() == before


def test_a_run_computes_under_them(tiny_run, monkeypatch):
    asked, seen, before = [], [], switches()

    def on_cuda(device, **wanted):
        asked.append((device.type, wanted))
        return cuda_backends(CUDA, **wanted)

    monkeypatch.setattr(run_module, "cuda_backends", on_cuda)
    run(tiny_run(epochs=1, deterministic=True), lambda _: seen.append(switches()))
    assert asked == [("cpu", {"tf32": False, "deterministic": True})]
    assert seen[0] == {"cudnn": False, "products": "highest", "deterministic": True}
    assert switches() == before


def test_predictions_are_computed_under_them(tiny_trained, monkeypatch):
    model = load_run(read_run(tiny_trained["cola"]), "best", "cpu")
    rows = TextRows(["a"], ["some words"], None)
    seen, original = [], prediction.all_logits
    monkeypatch.setattr(prediction, "cuda_backends", lambda _: cuda_backends(CUDA))
    monkeypatch.setattr(prediction, "all_logits", lambda *call: (seen.append(switches()), original(*call))[1])
    assert len(list(prediction.predict(model, [rows]))) == 1
    assert not seen[0]["cudnn"]
