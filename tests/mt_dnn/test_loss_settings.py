import json

import numpy as np
import pytest
import torch

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType
from mt_dnn.config import RunConfig
from mt_dnn.loss_settings import canonical_weights, changed_loss, check_loss, class_weights_of, parse_weights
from mt_dnn.run import run
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.training_model import TrainingModel
from tests.mt_dnn.method_runs import build, final_weights
from tests.mt_dnn.test_loss import smoothed_and_weighted

QUIET = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "epochs": 2, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4}


def task(*labels: str) -> TaskDef:
    return TaskDef("t", DataFormat.PremiseOnly, TaskType.Classification, len(labels), (Metric.ACC,), labels)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("balanced", None),
        ("pos=3,neg=1", {"neg": 1.0, "pos": 3.0}),
        (" neg = 0.5 , pos = 1e-3", {"neg": 0.5, "pos": 1e-3}),
        ("0=1,1=2", {"0": 1.0, "1": 2.0}),
        ("well, good=2,a=b=1", {"a=b": 1.0, "well, good": 2.0}),
    ],
)
def test_weights_by_label_are_read(text, weights):
    assert parse_weights(text) == weights
    assert parse_weights(canonical_weights(text)) == weights


@pytest.mark.parametrize(
    "text", ["", "3", "pos", "pos=", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1,a=2", "a=1,", "a=x"]
)
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(SettingError) as caught:
        RunConfig(class_weights=text)
    assert str(caught.value) == (
        f"class_weights is {text!r}; legal: balanced, or a number > 0 for each label, such as negative=1,positive=3"
    )


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), "0.1"])
def test_label_smoothing_out_of_range_is_refused(value):
    with pytest.raises(SettingError, match=r"^label_smoothing is .*; legal: a share in \[0, 1\)$"):
        RunConfig(label_smoothing=value)


def test_the_loss_is_part_of_the_identity_and_its_default_is_not():
    ids = {run_id(RunConfig(**changes)) for changes in (
        {}, {"label_smoothing": 0.1}, {"class_weights": "balanced"}, {"class_weights": "a=1,b=2"},
    )}  # fmt: skip
    assert len(ids) == 4
    assert run_id(RunConfig(label_smoothing=0.0, class_weights=None)) == run_id(RunConfig())
    assert run_id(RunConfig(class_weights="b=2.0, a=1")) == run_id(RunConfig(class_weights="a=1,b=2"))


def test_balanced_weights_are_sklearns_and_one_on_average():
    from sklearn.utils.class_weight import compute_class_weight

    classes = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    found = class_weights_of("balanced", task("a", "b", "c"), classes)
    assert found.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=classes).tolist())
    assert found[classes].mean() == pytest.approx(1.0)
    assert class_weights_of("b=2,a=5,c=1", task("a", "b", "c"), classes).tolist() == [5.0, 2.0, 1.0]


def test_a_class_without_rows_has_no_balanced_weight():
    with pytest.raises(
        SettingError, match="none of the 3 rows trained on has the label 'b' of task t; train on more rows"
    ):
        class_weights_of("balanced", task("a", "b"), np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("a=1,c=2", "class_weights: task t has no label 'c'; it has a, b"),
        ("a=1", "class_weights: no weight of label 'b'; give each label one, such as 1"),
    ],
)
def test_weights_must_be_of_the_tasks_labels(weights, message):
    with pytest.raises(SettingError) as caught:
        check_loss(0.0, weights, [task("a", "b")])
    assert str(caught.value) == message


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_a_task_with_scores_is_refused_before_anything_is_written(tiny_run, changes):
    config = tiny_run(train_datasets="toyscore", **changes)
    ((name, value),) = changes.items()
    with pytest.raises(SettingError) as caught:
        run(config)
    assert str(caught.value) == f"{name} is {value}, but task toyscore has scores and no classes; leave it out"
    assert not run_dir(config).exists()


def test_methods_get_the_changed_loss_and_distances_as_they_were(tiny_run):
    plain, _, ((batch,), *_) = build(tiny_run(**QUIET))
    config = tiny_run(**QUIET, label_smoothing=0.2, class_weights="0=1,1=4")
    parts, _, _ = build(config)
    parts.model.choose_loss(config, {"toy": np.zeros(1, np.int64)})
    logits = parts.model.logits(batch)
    expected = smoothed_and_weighted(logits.detach().numpy(), batch.labels.numpy(), 0.2, np.array([1.0, 4.0]))
    assert parts.model.example_losses(logits, batch).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert parts.model.loss(logits, batch).item() == pytest.approx(expected.sum(), rel=1e-5)
    assert torch.equal(parts.model.divergence(logits, 2 * logits), plain.model.divergence(logits, 2 * logits))


def test_rdrop_has_both_passes_smoothed_and_weighted_and_its_distance_plain(tiny_run, monkeypatch):
    config = tiny_run(method="rdrop", rdrop={"alpha": 0.7}, label_smoothing=0.2, class_weights="0=1,1=4")
    parts, _, ((batch,), *_) = build(config)
    parts.model.choose_loss(config, {"toy": np.zeros(1, np.int64)})
    parts.network.train()
    passes = []
    logits_of = TrainingModel.logits
    monkeypatch.setattr(TrainingModel, "logits", lambda *a, **k: passes.append(logits_of(*a, **k)) or passes[-1])
    first = parts.model.logits(batch)
    extra = parts.method.extra_loss(parts.context, batch, first)
    one, two = (z.detach().double().numpy() for z in passes)
    assert np.abs(one - two).max() > 1e-3, "dropout masks differ"
    losses = [smoothed_and_weighted(z, batch.labels.numpy(), 0.2, np.array([1.0, 4.0])).sum() for z in (one, two)]
    log_p, log_q = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (one, two))
    distance = ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum()
    assert extra.item() == pytest.approx((losses[1] - losses[0]) / 2 + 0.7 / 2 * distance, rel=1e-4)


@pytest.mark.parametrize("method", ["vanilla", "rdrop", "r3f"])
def test_a_step_is_the_same_in_one_batch_and_in_parts(tiny_run, method):
    changes = {**QUIET, "label_smoothing": 0.1, "class_weights": "balanced", "method": method}
    settings = {"r3f": {"r3f": {"noise_scale": 0.0}}}.get(method, {})
    whole = final_weights(tiny_run(**changes, **settings))
    parts = final_weights(tiny_run(**changes, **settings, batch_size=4, grad_accumulation_step=4))
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_the_log_says_what_loss_it_is(tiny_run):
    logged = {}
    for smoothing in (0.0, 0.5):
        config = tiny_run(**QUIET, label_smoothing=smoothing)
        run(config)
        logged[smoothing] = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").open()]
    assert {line.get("loss_by") for line in logged[0.5] if "loss" in line} == {"label_smoothing 0.5"}
    assert not any("loss_by" in line for line in logged[0.0])
    assert logged[0.0][0]["loss"] != logged[0.5][0]["loss"]
    assert (
        changed_loss({"label_smoothing": 0.1, "class_weights": "a=1.0"}) == "label_smoothing 0.1, class_weights a=1.0"
    )
    assert changed_loss({}) == changed_loss({"label_smoothing": 0.0, "class_weights": None}) == ""


def test_tensorboard_takes_the_log(tiny_run):
    config = tiny_run(**{**QUIET, "epochs": 1}, label_smoothing=0.1, tensorboard=True)
    assert run(config).done
    assert list((run_dir(config) / "tb").iterdir())


def test_weights_follow_the_rows_that_are_trained_on_and_stand_in_run_json(tiny_run):
    for changes, expected in (
        ({"train_size": 10, "train_balanced": True, "class_weights": "balanced"}, {"0": 1.0, "1": 1.0}),
        ({"train_size": 3, "train_balanced": True, "class_weights": "balanced"}, {"0": 0.75, "1": 1.5}),
        ({"class_weights": "0=2,1=0.5"}, {"0": 2.0, "1": 0.5}),
        ({}, None),
    ):
        config = tiny_run(epochs=1, save="none", **changes)
        run(config)
        assert read_json(run_dir(config) / "run.json").get("resolved_class_weights") == expected
