"""Every side of the benchmark sees the same batches and computes the same losses."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.glue_rows import ROOT
from benchmarks.peers import ours
from benchmarks.peers.assignment import cut, python_rows
from benchmarks.peers.contender import CONTENDERS, assign
from mt_dnn.assembly import assemble
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pad
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.precision import resolve_precision
from mt_dnn.run import run
from mt_dnn.run_id import run_dir

QUIET = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "learning_rate": 5e-3, "epochs": 2, "log_per_updates": 1}


def our_losses(config):
    result = run(config)
    lines = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()]
    (metrics,) = result.last.metrics.values()
    return [line["loss"] for line in lines if "loss" in line], metrics


def start_alike(model, config, data):
    """Give a peer's model the first weights of our own network, head included."""
    device, source = torch.device("cpu"), resolve_encoder(config.init_checkpoint)
    parts = assemble(config, [data.task_def], source, device, resolve_precision("fp32", device), 1)
    renamed = {}
    for name, value in parts.network.state_dict().items():
        name = name.replace("encoder.model.", "bert.", 1).replace("pooler.dense", "bert.pooler.dense")
        renamed[name.replace(f"heads.{data.task_def.name}.1", "classifier")] = value
    model.load_state_dict(renamed)


@pytest.fixture
def trainer_peer():
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate: see requirements-bench.txt")
    from benchmarks.peers import trainer_peer

    return trainer_peer


@pytest.mark.parametrize(("task", "width"), [("toy", None), ("toy", 40), ("toyscore", None)])
def test_trainer_has_our_losses_step_by_step(tiny_run, tmp_path, trainer_peer, task, width):
    config = tiny_run(train_datasets=task, optimizer="adamw", train_size=65, **QUIET)  # 10 steps, 1 of warm-up
    data = open_datasets(config)
    losses, metrics = our_losses(config)
    trainer = trainer_peer.make_trainer(
        assign(config, data), tmp_path, width, logging_strategy="steps", logging_steps=1
    )
    start_alike(trainer.model, config, data)
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    assert max(losses) - min(losses) > 0.02  # they move far enough to tell one batch from another
    last = trainer.state.log_history[-2]
    assert {name: last[f"eval_{name}"] for name in metrics} == pytest.approx(metrics, abs=0.05)


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_mtdnn_has_our_losses_step_by_step(tiny_run, task):
    pytest.importorskip("transformers")
    from benchmarks.peers.mtdnn_peer import MTDNNPeer

    config = tiny_run(train_datasets=task, adamax_rule="torch", weight_decay=0.0, **QUIET)
    data = open_datasets(config)
    losses, metrics = our_losses(config)
    peer = MTDNNPeer(assign(config, data))
    start_alike(peer.model, config, data)
    assert peer.train() == pytest.approx(metrics, abs=0.05)
    np.testing.assert_allclose(peer.losses, losses, rtol=1e-5)


def test_mtdnn_collates_the_same_rectangle(tiny_run):
    from benchmarks.peers.mtdnn_peer import MTDNNPeer

    config = tiny_run(train_datasets="toyscore")
    data = open_datasets(config)
    rows = [3, 0, 69, 11]
    expected = pad(data.train, rows, data.pad_id)
    found = MTDNNPeer(assign(config, data)).collate(python_rows(data.train, rows))
    for name in ("input_ids", "token_type_ids", "attention_mask", "labels"):
        np.testing.assert_array_equal(found[name].numpy(), getattr(expected, name))
    second = 1 - found["hypothesis_masks"].numpy()
    np.testing.assert_array_equal(second, expected.token_type_ids)
    np.testing.assert_array_equal(1 - found["premise_masks"].numpy() + second, expected.attention_mask)


@pytest.mark.parametrize("method", ["vanilla", "pats"])
def test_our_contender_is_a_run_of_train_py(tiny_run, tmp_path, method):
    config = tiny_run(method=method)
    result = run(config)
    folder = tmp_path / "scratch"
    folder.mkdir()
    train = ours.prepare(config, open_datasets(config), folder)
    assert train() == result.last.metrics["toy_dev"]
    assert not list(folder.rglob("*.safetensors"))  # as with the peers, no weights are written


def test_every_contender_evaluates_with_the_tasks_metrics(tiny_run, tmp_path):
    config = tiny_run(epochs=1)
    data = open_datasets(config)
    for name, contender in CONTENDERS.items():
        if contender.module == "trainer_peer":
            pytest.importorskip("accelerate")
        folder = tmp_path / name
        folder.mkdir()
        # The tiny encoder has 64 positions: too few for a width of 128.
        small = dataclasses.replace(contender, arguments=(("width", 48),)) if contender.arguments else contender
        metrics = small.builder(dataclasses.replace(config, method=contender.method), data, folder)()()
        assert list(metrics) == ["ACC", "MCC"]
        assert not np.isnan(list(metrics.values())).any()


def test_rows_are_cut_before_their_last_separator(tiny_run):
    (whole,) = python_rows(open_datasets(tiny_run(train_datasets="toyscore")).train, [5])
    short = cut(whole, 5)
    assert len(whole["input_ids"]) > 5
    assert short["input_ids"] == [*whole["input_ids"][:4], whole["input_ids"][-1]]
    assert len(short["token_type_ids"]) == 5
    assert short["label"] == whole["label"]
    assert cut(whole, len(whole["input_ids"])) == whole


@pytest.mark.parametrize("change", [{"sampler": "length"}, {"grad_accumulation_step": 2}])
def test_a_run_that_peers_cannot_replay_is_refused(tiny_run, change):
    config = tiny_run(**change)
    with pytest.raises(ValueError, match="a peer needs sampler"):
        assign(config, open_datasets(config))


def test_a_peers_process_holds_none_of_our_algorithms():
    """They would count into its memory: the compiler of the CPU kernels takes 100 MB."""
    code = (
        "import sys, benchmarks.peak_memory, benchmarks.peers.trainer_peer, benchmarks.peers.mtdnn_peer\n"
        "print(sorted({'numba', 'module', 'experiments', 'mt_dnn.trainer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
