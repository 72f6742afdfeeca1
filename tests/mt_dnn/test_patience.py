"""Early stopping: when a run ends, what its result says, and that a broken-off run ends at the same epoch."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from data_utils.errors import SettingError
from data_utils.json_file import write_json
from mt_dnn.config import RunConfig
from mt_dnn.results import EpochScore, Status
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.score_keeper import ScoreKeeper, is_better
from tests.mt_dnn.test_resume import assert_same_run, run_in_parts

STUCK = {"learning_rate": 1e-20, "epochs": 6, "patience": 2}  # every epoch scores the same: the first stays the best


def epochs_made(scores, patience, held_out=None):
    """Epochs of a run with these scores, one per epoch."""
    state = SimpleNamespace(best=None, last=None)
    keeper = SimpleNamespace(state=state, config=SimpleNamespace(epochs=len(scores), patience=patience))
    for epoch, score in enumerate(scores, start=1):
        state.last = EpochScore(epoch, score, {}, None if held_out is None else held_out[epoch - 1])
        state.best = state.last if is_better(state.last, state.best) else state.best
        if ScoreKeeper.is_over(keeper):
            return epoch
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("scores", "patience", "made"),
    [
        ([1, 2, 3, 4], 1, 4),
        ([5, 4, 3, 2], None, 4),
        ([5, 4, 3, 2], 1, 2),
        ([5, 4, 3, 2], 2, 3),
        ([5, 4, 6, 5, 4, 9], 2, 5),
        ([5, 5, 5, 5], 2, 3),  # equal is not better
        ([math.nan, math.nan, math.nan, 1], 2, 3),
        ([math.nan, 1, math.nan, math.nan, 2], 2, 4),
        ([5, 4], 1, 2),
        ([5, 4, 3], 9, 3),
    ],
)
def test_it_ends_after_so_many_epochs_without_a_better_one(scores, patience, made):
    assert epochs_made(scores, patience) == made


def test_the_held_out_score_decides_where_there_is_one():
    assert epochs_made([1, 2, 3, 4, 5], 2, held_out=[5, 4, 3, 2, 1]) == 3
    assert epochs_made([5, 4, 3, 2, 1], 2, held_out=[1, 2, 3, 4, 5]) == 5


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_out_of_range_is_refused(patience):
    with pytest.raises(SettingError, match=r"^patience is .*; legal: "):
        RunConfig(patience=patience)


def test_patience_is_part_of_the_identity_and_its_default_is_not():
    assert run_id(RunConfig(patience=None)) == run_id(RunConfig()) != run_id(RunConfig(patience=3))


def test_the_result_says_that_it_stopped_early(tiny_run):
    config = tiny_run(**STUCK, save="both")
    result = run(config)
    assert (result.best.epoch, result.last.epoch, result.epochs, result.steps) == (1, 3, 6, 15)
    assert result.stopped_early
    assert result.done
    assert run(config) == result, "there is nothing left to do"
    directory = RunDirectory(run_dir(config))
    assert directory.read_result() == result
    assert "toy_dev.last_logits" in directory.read_predictions(result)
    assert {"checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors"} <= result.files.keys()
    assert load_file(directory.path / "checkpoints/last/model.safetensors")


def test_the_learning_rate_falls_as_for_all_epochs(tiny_run):
    rates = []
    for patience in (2, None):
        config = tiny_run(**{**STUCK, "patience": patience}, log_per_updates=1)
        run(config)
        lines = map(json.loads, (run_dir(config) / "metrics.jsonl").open())
        rates.append([line["learning_rate"] for line in lines if "loss" in line])
    assert rates[0] == rates[1][:15]


def test_a_run_that_makes_all_its_epochs_has_not_stopped_early(tiny_run):
    result = run(tiny_run(**{**STUCK, "epochs": 3}))
    assert (result.last.epoch, result.stopped_early) == (3, False)


def test_a_broken_off_run_stops_at_the_same_epoch(tiny_run, tmp_path):
    settings = {**STUCK, "save": "last", "checkpoint_seconds": 0.0, "log_per_updates": 1}
    whole, broken = (tiny_run(**settings, output_dir=tmp_path / name) for name in ("whole", "broken"))
    run(whole)
    result = run_in_parts(broken, 4, 10, 15)  # 15: after the epoch at which it stops
    assert (result.stopped_early, result.steps) == (True, 15)
    assert_same_run(whole, broken)


def test_the_prune_rule_is_not_asked_of_a_run_that_is_over(tiny_run):
    asked = []
    result = run(tiny_run(**STUCK), prune=lambda epochs, best: asked.append(epochs))
    assert (result.status is Status.PRUNED, asked) == (False, [1, 2])


def test_a_result_of_an_earlier_version_has_not_stopped_early(tiny_run):
    config = tiny_run(epochs=1)
    result = run(config)
    file = run_dir(config) / "result.json"
    values = asdict(result)
    del values["stopped_early"]
    write_json(file, values)
    assert RunDirectory(run_dir(config)).read_result() == result
    write_json(file, {**values, "stopped_early": 1})
    with pytest.raises(SettingError, match="stopped_early is 1"):
        RunDirectory(run_dir(config)).read_result()
