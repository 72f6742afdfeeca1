"""Recorded passes on a GPU. Which batches are recorded: test_pass_graphs.py."""

import pytest
import torch

from mt_dnn import pass_graphs
from tests.mt_dnn.method_runs import assert_same_weights, final_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def replays(monkeypatch):
    """Sizes of the batches that a graph has worked on."""
    sizes = []
    replay = pass_graphs._PassGraph.__call__
    monkeypatch.setattr(
        pass_graphs._PassGraph, "__call__", lambda graph, batch: (sizes.append(batch.size), replay(graph, batch))[1]
    )
    return sizes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "pats"},
        {"method": "noisytune+sage"},
        {"method": "child_tuning"},
        {"method": "bitfit"},
        {"method": "ema"},
        {"optimizer": "adamw"},
        {"precision": "bf16"},
        {"precision": "fp16", "method": "pats", "optimizer": "adamw"},
        {"bert_dropout_p": 0.0, "dropout_p": 0.0, "precision": "bf16"},
    ],
    ids=str,
)
def test_a_recorded_pass_gives_the_bits_of_the_pass_itself(tiny_run, tmp_path, monkeypatch, replays, changes):
    settings = {"device": "cuda", "save": "last", "epochs": 6, "deterministic": True, **changes}
    recorded = final_weights(tiny_run(**settings))
    assert len(replays) > 6
    replays.clear()
    monkeypatch.setattr(pass_graphs._Memory, "suffices", lambda *_: False)
    assert_same_weights(final_weights(tiny_run(**settings, output_dir=tmp_path / "plain")), recorded)
    assert not replays


def test_without_recording_batches_are_not_filled_and_the_run_is_the_same_to_rounding(tiny_run, tmp_path, replays):
    settings = {"device": "cuda", "save": "last", "bert_dropout_p": 0.0, "dropout_p": 0.0, "learning_rate": 1e-3}
    recorded = final_weights(tiny_run(**settings))
    assert replays
    replays.clear()
    plain = final_weights(tiny_run(**settings, cuda_graphs=False, output_dir=tmp_path / "plain"))
    assert not replays
    for name, values in recorded.items():
        torch.testing.assert_close(plain[name], values, rtol=1e-2, atol=2e-4, msg=name)


def test_a_method_that_draws_in_its_passes_is_not_recorded(tiny_run, replays):
    final_weights(tiny_run(device="cuda", save="last", method="hype"))
    assert not replays
