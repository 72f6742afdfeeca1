"""Runs whose scores tell nothing are degenerate, runs whose numbers burst are diverged; neither is ok."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
from sklearn.metrics import f1_score

from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import Paper
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir
from mt_dnn.score_keeper import ScoreKeeper
from mt_dnn.training_step import TrainingStep


@pytest.fixture
def edited(tiny_task, tmp_path, tiny_run):
    """Make the configuration of a run whose data are the tiny task's with other labels or rows."""

    def make(split, edit, **changes):
        folder = shutil.copytree(tiny_task, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
        for path in folder.glob(f"*{split}*.tsv"):
            rows = edit([line.split("\t") for line in path.read_text().splitlines()])
            path.write_text("".join("\t".join(row) + "\n" for row in rows))
        return tiny_run(data_dir=folder, epochs=2, **changes)

    return make


def one_label(rows):
    return [[row[0], "1", *row[2:]] for row in rows]


@pytest.mark.parametrize(
    ("split", "edit", "changes", "reason", "score"),
    [
        ("dev", one_label, {}, "all 30 labels of toy_dev are 1", 0.0),
        ("dev", one_label, {"train_datasets": "toyscore"}, "all 30 labels of toyscore_dev are 1", math.nan),
        ("dev", lambda rows: rows[:1], {}, "toy_dev has one row", None),
        ("dev", lambda rows: rows[:1], {"train_datasets": "toyscore"}, "toyscore_dev has one row", math.nan),
        ("train", one_label, {}, "all 70 labels of toy_train are 1", None),
        ("train", one_label, {"train_datasets": "toyscore"}, "all 70 labels of toyscore_train are 1", None),
        ("none", None, {"holdout": 0.02}, "toy_holdout has one row", None),
        ("none", None, {"holdout": 0.02, "train_datasets": "toyscore"}, "toyscore_holdout has one row", None),
    ],
)
def test_labels_that_tell_nothing_make_a_run_degenerate(edited, caplog, split, edit, changes, reason, score):
    with caplog.at_level(logging.WARNING):
        result = run(edited(split, edit, **changes))
    assert (result.status, result.error) == (Status.DEGENERATE, reason)
    assert sum(f"{reason}: the scores will tell nothing" in line for line in caplog.messages) == 1
    if score is not None:
        assert [result.best.score, result.last.score] == pytest.approx([score, score], nan_ok=True)


def test_an_ordinary_run_is_ok_without_a_word(tiny_run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = run(tiny_run(epochs=6, cache_dir=tmp_path / "cache"))  # its own: another test's would be made anew
    assert (result.status, result.error, caplog.messages) == (Status.OK, None, [])


@pytest.mark.parametrize("epochs", [{1}, {2}, {1, 2}])
def test_a_correlation_that_is_nan_in_the_best_or_the_last_epoch_is_not_ok(tiny_run, monkeypatch, epochs):
    scores = ScoreKeeper.scores

    def of_one_value(keeper, epoch):
        with monkeypatch.context() as patch:
            if epoch in epochs:  # as of a network that predicts one value for every example
                patch.setattr("data_utils.metrics.predictions", lambda _, logits: np.zeros(len(logits)))
            return scores(keeper, epoch)

    monkeypatch.setattr(ScoreKeeper, "scores", of_one_value)
    result = run(tiny_run(train_datasets="toyscore", epochs=2))
    assert math.isnan(result.last.score) == (2 in epochs)
    assert math.isnan(result.best.score) == (epochs == {1, 2}), "a number beats NaN"
    if 2 in epochs:
        which = "best" if epochs == {1, 2} else "last"
        assert (result.status, result.error) == (
            Status.DEGENERATE, f"Pearson of the {which} epoch is NaN on the dev sets",
        )  # fmt: skip
    else:
        assert (result.status, result.error, result.best.epoch) == (Status.OK, None, 2)


# A step of 1e30 leaves weights whose layer norms are infinite: no loss is computed with them before the evaluation.
BURST = {"learning_rate": 1e30, "batch_size": 35, "epochs": 1, "log_per_updates": 50}


@pytest.mark.parametrize("task", ["toy", "toyscore"])
@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw"}, {"method": "ema"}, {"method": "pats"}, {"holdout": 0.1}]
)
def test_a_last_step_that_bursts_is_diverged(tiny_run, task, changes):
    config = tiny_run(train_datasets=task, **(BURST | changes))
    result = run(config)
    assert (result.status, result.best, result.last, result.steps) == (Status.DIVERGED, None, None, 2)
    assert result.error == f"a logit of {task}_dev after epoch 1 is NaN or infinite"
    assert run(config) == result
    with np.load(run_dir(config) / "predictions.npz") as arrays:
        assert not [name for name in arrays if name.endswith("logits")]


class Bursting:
    """Sets a row of a weight to a value after some step, as a last step that explodes would."""

    def __init__(self, monkeypatch, step, value, name="heads.toy.1.weight", row=0):
        step_once = TrainingStep.__call__

        def then_burst(training_step, batches, **told):
            made = step_once(training_step, batches, **told)
            if training_step.parts.context.step + 1 == step:
                dict(training_step.parts.network.named_parameters())[name].data[row] = value
            return made

        monkeypatch.setattr(TrainingStep, "__call__", then_burst)


@pytest.mark.parametrize("method", ["vanilla", "ema", "swa"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_finite_best_epoch_stays_and_the_last_is_diverged(tiny_run, monkeypatch, method, value):
    Bursting(monkeypatch, 15, value)  # the last of 3 x 5
    result = run(tiny_run(method=method, log_per_updates=50))
    assert (result.status, result.last) == (Status.DIVERGED, None)
    assert result.best.epoch in (1, 2)
    assert math.isfinite(result.best.score)
    assert result.error == "the weight 'heads.toy.1.weight' is NaN or infinite after epoch 3"


def test_a_weight_that_no_dev_example_shows_is_looked_at(tiny_run, monkeypatch):
    """The embedding of a word that the data do not have: every logit is finite."""
    name = "encoder.model.embeddings.word_embeddings.weight"
    Bursting(monkeypatch, 1, math.nan, name, row=4)  # [MASK]
    result = run(tiny_run(epochs=1, batch_size=70, warmup=0.0, log_per_updates=50))
    assert (result.status, result.error) == (Status.DIVERGED, f"the weight {name!r} is NaN or infinite after epoch 1")


def test_a_run_whose_only_step_has_no_learning_rate_says_so(tiny_run, caplog):
    with caplog.at_level(logging.WARNING):
        run(tiny_run(epochs=1, batch_size=70, output_dir=tiny_run().output_dir / "a"))
    assert any("its only step stands at the start of the warm-up" in line for line in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(tiny_run(epochs=1, batch_size=70, warmup=0.0))
        run(tiny_run(epochs=2, batch_size=70))
    assert not [line for line in caplog.messages if "warm-up" in line]


def test_macro_f1_of_three_classes_is_the_score_and_chooses_the_epoch(tiny_task, tiny_run, tmp_path):
    folder = tmp_path / "three"
    folder.mkdir()
    for split in ("train", "dev"):
        rows = [line.split("\t") for line in (tiny_task / f"toy_{split}.tsv").read_text().splitlines()]
        for i, row in enumerate(rows):
            row[1] = "neutral" if i % 3 == 0 else ("neg", "pos")[int(row[1])]
        (folder / f"three_{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (folder / "task_def.yml").write_text(
        "three: {data_format: PremiseOnly, enable_san: false, metric_meta: [ACC, F1MAC], n_class: 3, "
        "labels: [neg, neutral, pos], task_type: Classification}\n"
    )
    config = tiny_run(
        task_def=folder / "task_def.yml", data_dir=folder, train_datasets="three", epochs=4, save="none",
        class_weights="balanced", label_smoothing=0.1,
    )  # fmt: skip
    result = run(config)
    assert result.primary_metric == "F1MAC"
    arrays = RunDirectory(run_dir(config)).read_predictions(result)
    for which, epoch in (("best", result.best), ("last", result.last)):
        predicted = arrays[f"three_dev.{which}_logits"].argmax(axis=1)
        expected = 100 * f1_score(arrays["three_dev.labels"], predicted, average="macro")
        assert epoch.score == epoch.metrics["three_dev"]["F1MAC"] == pytest.approx(expected)
    lines = map(json.loads, (run_dir(config) / "metrics.jsonl").open())
    assert result.best.score == max(line["score"] for line in lines if "evaluation" in line)
    assert "macro-F1" in markdown(gather(config.output_dir), Paper({}))
