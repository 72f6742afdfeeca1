import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_utils.errors import SettingError
from data_utils.holdout import held_out_rows, take
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pack
from mt_dnn.results import EpochScore, Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.score_keeper import is_better


@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=200), share=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_labels_are_held_out_in_proportion(labels, share):
    n = len(labels)
    if not 0 < round(share * n) < n:
        with pytest.raises(SettingError, match="hold out 1 to"):
            held_out_rows(labels, share, stratify=True)
        return
    rows = held_out_rows(labels, share, stratify=True)
    assert len(rows) == len(set(rows)) == round(share * n)
    assert rows.tolist() == sorted(rows)
    for label in set(labels):
        there = labels.count(label)
        assert abs(sum(labels[row] == label for row in rows) - there * len(rows) / n) <= 1.0
    assert rows.tolist() == held_out_rows(labels, share, stratify=True).tolist()


def test_numbers_are_held_out_at_random():
    rows = held_out_rows(np.linspace(0, 5, 100), 0.2, stratify=False)
    assert len(rows) == 20
    assert 20 < rows.mean() < 80


def test_held_out_rows_are_not_trained_on_and_dev_is_untouched(tiny_run):
    whole = open_datasets(tiny_run())
    for changes in ({}, {"method": "pats", "seed": 7}):
        data = open_datasets(tiny_run(holdout=0.3, **changes))
        (name, held_out), *others = data.held_out.items()
        assert (name, others) == ("toy_holdout", [])
        assert len(held_out) == 21
        train_uids = np.asarray(data.train.uids)[data.train_rows].tolist()
        assert set(train_uids).isdisjoint(held_out.uids.tolist())
        assert sorted(train_uids + held_out.uids.tolist()) == sorted(whole.train.uids.tolist())
        assert data.dev["toy_dev"].fingerprint == whole.dev["toy_dev"].fingerprint
        assert data.sources == whole.sources
        assert held_out.uids.tolist() == open_datasets(tiny_run(holdout=0.3)).held_out[name].uids.tolist()


def test_rows_taken_from_a_set_are_the_same_examples(tiny_run):
    cache = open_datasets(tiny_run(train_datasets="toyscore")).train
    rows = np.array([40, 3, 3, 69, 0])
    taken, direct = pack(take(cache, rows), np.arange(5)), pack(cache, rows)
    for name in ("input_ids", "position_ids", "token_type_ids", "labels", "cu_seqlens"):
        assert torch.equal(getattr(taken, name), getattr(direct, name)), name
    assert take(cache, rows).fingerprint != take(cache, rows[::-1]).fingerprint != cache.fingerprint


def test_a_run_chooses_its_epoch_on_what_is_held_out(tiny_run):
    config = tiny_run(holdout=0.3, epochs=4, save="best")
    result = run(config)
    assert result.datasets == ["toy_dev"]
    assert result.train_examples == 49
    lines = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "evaluation" in line]
    held_out = [line["held_out"] for line in epochs]
    assert held_out == [line["evaluation"]["toy_holdout"]["MCC"] for line in epochs]
    assert result.best.epoch == 1 + held_out.index(max(held_out))
    assert result.best.held_out == max(held_out)
    assert result.best.score == result.best.metrics["toy_dev"]["MCC"] == epochs[result.best.epoch - 1]["score"]
    with np.load(run_dir(config) / "predictions.npz") as arrays:
        assert arrays["toy_holdout.best_logits"].shape == (21, 2)
        assert arrays["toy_dev.best_logits"].shape == (30, 2)


def test_the_better_epoch_is_the_better_on_what_is_held_out():
    low_dev, high_dev = EpochScore(1, 10.0, {}, 90.0), EpochScore(2, 99.0, {}, 80.0)
    assert not is_better(high_dev, low_dev)
    assert is_better(low_dev, high_dev)
    assert is_better(low_dev, EpochScore(2, 99.0, {}, math.nan))


def test_without_a_holdout_runs_keep_their_identity():
    assert run_id(RunConfig()) == "55ad2fd33e73"  # as it was before there was such a setting
    assert run_id(RunConfig(method="pats", train_fraction=0.5)) == "a39f2debc8ae"
    assert len({run_id(RunConfig(holdout=share)) for share in (None, 0.1, 0.2)}) == 3
    with pytest.raises(SettingError, match=r"holdout is 1.0; legal: a share in \(0, 1\)"):
        RunConfig(holdout=1.0)


def test_a_training_size_is_of_what_is_left(tiny_run):
    assert run(tiny_run(holdout=0.3, train_size=20, epochs=1)).train_examples == 20
    with pytest.raises(SettingError, match="train_size is 60; this training set has rows for 1 to 49"):
        run(tiny_run(holdout=0.3, train_size=60, epochs=1))


@pytest.mark.parametrize("save", ["last", "none"])
def test_a_pruned_run_is_no_result_and_goes_on_to_the_same_end(tiny_run, tmp_path, save):
    asked = []

    def prune(epoch, best):
        asked.append((epoch, best))
        return epoch == 2

    config = tiny_run(epochs=4, save=save, method="pats", output_dir=tmp_path / "pruned")
    pruned = run(config, prune=prune)
    assert pruned.status is Status.PRUNED
    assert not pruned.done
    assert (pruned.last, pruned.steps) == (None, 10)
    assert [epoch for epoch, _ in asked] == [1, 2]
    assert asked[-1][1] == pruned.best.score
    assert not (run_dir(config) / "predictions.npz").exists()
    assert (run_dir(config) / "checkpoints").exists() == (save == "last")
    assert run(config, prune=prune) == pruned, "for those who prune it is over"
    assert len(asked) == 2
    whole = run(config)
    other = dataclasses.replace(config, save="last", output_dir=tmp_path / "whole")
    undisturbed = run(other, prune=lambda epoch, best: False)
    assert whole.done
    assert (whole.best, whole.last, whole.steps) == (undisturbed.best, undisturbed.last, undisturbed.steps)
    assert whole.sessions == (2 if save == "last" else 1)
    assert (run_dir(config) / "metrics.jsonl").read_text() == (run_dir(other) / "metrics.jsonl").read_text()
    if save == "last":
        ours, theirs = (load_file(run_dir(c) / "checkpoints/last/model.safetensors") for c in (config, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
