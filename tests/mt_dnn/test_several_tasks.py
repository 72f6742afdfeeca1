"""Runs with several tasks."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_utils.batching import epoch_batches
from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.task_def import load_task_defs
from module.methods import METHODS as REGISTRY
from mt_dnn.assembly import assemble
from mt_dnn.config import RunConfig
from mt_dnn.data import open_all, open_datasets
from mt_dnn.encoder.source import resolve_encoder
from mt_dnn.epoch_order import check_mixing, epoch_windows, steps_per_epoch
from mt_dnn.identity import identity_of
from mt_dnn.precision import resolve_precision
from mt_dnn.results import RunResult, Status
from mt_dnn.run import open_run, run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir, run_id
from mt_dnn.training_model import TrainingModel
from mt_dnn.training_step import TrainingStep
from tests.mt_dnn.method_runs import CPU, assert_same_weights, final_weights
from tests.mt_dnn.test_resume import SETTINGS, SLOWLY, assert_same_run, run_in_parts

BOTH = {"train_datasets": "toy,toyscore"}
QUICK = ("pats", "smart", "sam", "child_tuning")
METHODS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in (*REGISTRY, "noisytune+pats", "noisytune+recadam", "pats+swa")
]


def both(config):
    """Parts of a run with two tasks, its step, and a batch of each task."""
    task_defs = load_task_defs(config.task_def)
    precision = resolve_precision("fp32", CPU)
    source = resolve_encoder(config.init_checkpoint)
    parts = assemble(config, [task_defs[task] for task in config.tasks], source, CPU, precision, 10)
    parts.model.choose_loss(config, {})
    rows = np.arange(16)
    batches = {
        data.task_def.name: parts.network.encoder.batch(data.train, rows, CPU, task=data.task_def.name)
        for data in open_all(config)
    }
    return parts, TrainingStep(parts, config.global_grad_clipping), batches


def test_each_batch_has_the_adv_loss_of_its_task(tiny_run, tmp_path):
    settings = {**BOTH, "method": "smart", "smart": {"divergence": "task", "proximal_weight": 0.0}}
    file = tmp_path / "task_def.yml"
    text = Path(tiny_run().task_def).read_text()
    for task, name in (("toy", "JSCriterion"), ("toyscore", "MseCriterion")):
        text = text.replace(f"{task}:\n", f"{task}:\n  adv_loss: {name}\n")
    file.write_text(text)
    parts, _, batches = both(tiny_run(**settings, task_def=file))
    model = parts.model
    assert [kind.adv_loss for kind in model.task_kinds] == ["JSCriterion", "MseCriterion"]
    assert {task: model.task_kind(batch).adv_loss for task, batch in batches.items()} == {
        "toy": "JSCriterion",
        "toyscore": "MseCriterion",
    }
    for batch in batches.values():
        assert parts.method.extra_loss(parts.context, batch, model.logits(batch)).isfinite()


def test_the_tasks_of_a_run_are_named_in_one_way():
    config = RunConfig(train_datasets=" mnli_matched+rte, qqp")
    assert (config.train_datasets, config.task) == ("mnli,rte,qqp", "mnli+rte+qqp")
    assert config.tasks == ("mnli", "rte", "qqp")
    assert run_id(config) == run_id(RunConfig(train_datasets="mnli,rte,qqp"))
    assert run_id(config) != run_id(RunConfig(train_datasets="rte,mnli,qqp"))  # another main task


def test_a_run_with_one_task_keeps_its_id():
    left = {"mix_opt": 0, "ratio": 0.0, "mix_temperature": None, "task_weights": None}
    assert run_id(RunConfig(train_datasets="rte", **left)) == run_id(RunConfig(train_datasets="rte"))
    assert RunConfig(train_datasets="rte").by_task() == [RunConfig(train_datasets="rte")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_datasets": "toy,toy"}, "train_datasets: toy stands there twice; give each task once"),
        ({"train_datasets": "toy", "ratio": 2.0}, "ratio is 2.0, but train_datasets names one task; leave it out"),
        ({"train_datasets": "toy", "mix_opt": 1}, "mix_opt is 1, but train_datasets names one task; leave it out"),
        ({**BOTH, "mix_opt": 2}, "mix_opt is 2; legal: one of 0, 1"),
        ({**BOTH, "ratio": -1.0}, "ratio is -1.0; legal: a number >= 0"),
        ({**BOTH, "ratio": math.nan}, "ratio is nan; legal: a number >= 0"),
        ({**BOTH, "mix_temperature": 0.5}, "mix_temperature is 0.5; legal: a number >= 1"),
        ({**BOTH, "mix_temperature": 2.0, "ratio": 1.0}, "ratio is 1.0 and mix_temperature is 2.0; give one"),
        ({**BOTH, "task_weights": "toy=1"}, "task_weights: toyscore has no weight; give each of toy, toyscore one"),
        ({**BOTH, "task_weights": "toy=1,toyscore=1,x=2"}, "task_weights: x is no task of the run; give each of"),
        ({**BOTH, "task_weights": "balanced"}, "task_weights is 'balanced'; legal: a number > 0 for each task"),
        ({**BOTH, "task_weights": "toy=0,toyscore=1"}, "task_weights is 'toy=0,toyscore=1'; legal: a number > 0"),
        ({**BOTH, "task_weights": "toy=1e31,toyscore=1"}, "task_weights is 'toy=1e31,toyscore=1'; legal: a number > 0"),
        (
            {**BOTH, "task_weights": "toy=1e-31,toyscore=1"},
            "task_weights is 'toy=1e-31,toyscore=1'; legal: a number > ",
        ),
        ({**BOTH, "test_datasets": "toy"}, "test_datasets: names no dev set of toyscore, one of the tasks toy, toysc"),
        ({**BOTH, "test_datasets": "toy,toyscore,x"}, "test_datasets: x is none of the tasks toy, toyscore"),
        ({"train_datasets": ",".join(f"task{i:02}" for i in range(40))}, "train_datasets name "),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(SettingError, match="^" + re.escape(message)) as refused:
        RunConfig(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_datasets": "toy,gone"}, "train_datasets: unknown task 'gone'"),
        ({**BOTH, "class_weights": "0=1,1=2"}, "class_weights is 0=1.0,1=2.0, but the run has several tasks; legal: b"),
        ({**BOTH, "train_balanced": True, "train_size": 8}, "train_balanced: task toyscore has scores and no classes"),
        ({**BOTH, "train_size": 71}, "train_size is 71; this training set has rows for 1 to 70 (task toy)"),
        (
            {**BOTH, "ratio": 0.19, "batch_size": 16},
            "ratio is 0.19: that is no batch of toyscore beside 5 of toy; legal: 0, which takes all, or at least 0.2",
        ),
    ],
)
def test_settings_that_do_not_fit_the_tasks_leave_nothing_behind(tiny_run, changes, message):
    config = tiny_run(**changes)
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        run(config)
    assert not run_dir(config).exists()


@pytest.mark.parametrize(("ratio", "batches"), [(0.0, 8), (0.2, 6), (0.59, 7), (0.6, 8), (1e308, 8)])
def test_a_ratio_counts_the_batches_of_the_others(ratio, batches):
    config = RunConfig(train_datasets="a,b,c", batch_size=4, ratio=ratio)
    assert steps_per_epoch(config, [20, 8, 4]) == batches
    check_mixing(config, [20, 8, 4])


def test_a_task_name_with_a_plus_is_refused(tmp_path, tiny_task):
    file = tmp_path / "task_def.yml"
    file.write_text((tiny_task / "task_def.yml").read_text().replace("toy:", "toy+more:", 1))
    with pytest.raises(SettingError, match=r"a task name holds no '\+', which joins the tasks of one run; write toy-m"):
        load_task_defs(file).find("toy+more", "train_datasets")


@pytest.mark.parametrize("sampler", ["reshuffle", "length", "mtdnn"])
def test_the_batches_of_a_task_are_those_of_a_run_with_it_alone(sampler):
    config = RunConfig(train_datasets="a,b", batch_size=4, sampler=sampler)
    lengths = [np.arange(1, 30) % 7 + 1, np.arange(1, 12) % 5 + 1]
    windows = epoch_windows(config, lengths, 3)
    assert len(windows) == steps_per_epoch(config, [29, 11]) == 8 + 3
    assert all(len(window) == 1 for window in windows)
    for task, of_task in enumerate(lengths):
        alone = epoch_batches(len(of_task), 4, config.seed, 3, sampler, lengths=of_task)
        mixed = [places.tolist() for window in windows for found, places in window if found == task]
        assert mixed == [places.tolist() for places in alone]


def test_a_step_of_several_micro_batches_may_see_several_tasks():
    config = RunConfig(train_datasets="a,b", batch_size=4, grad_accumulation_step=3)
    windows = epoch_windows(config, [np.ones(29, int), np.ones(11, int)], 0)
    assert [len(window) for window in windows] == [3, 3, 3, 2]
    assert any(len({task for task, _ in window}) == 2 for window in windows)
    plain = epoch_windows(RunConfig(train_datasets="a,b", batch_size=4), [np.ones(29, int), np.ones(11, int)], 0)
    flat = [places.tolist() for window in windows for _, places in window]
    assert flat == [places.tolist() for ((_, places),) in plain]


def test_a_small_task_starts_again_with_other_batches():
    config = RunConfig(train_datasets="a,b", batch_size=4, mix_temperature=1e6)
    windows = epoch_windows(config, [np.ones(76, int), np.ones(4, int)], 0)
    small = [places for ((task, places),) in windows if task == 1]
    assert len(small) == 10
    assert all(sorted(places.tolist()) == [0, 1, 2, 3] for places in small)
    assert len({tuple(places.tolist()) for places in small}) > 1


def test_a_step_moves_the_heads_of_its_tasks_alone(tiny_run):
    parts, step, batches = both(tiny_run(**BOTH, bert_dropout_p=0.0, dropout_p=0.0))
    before = {name: tensor.clone() for name, tensor in parts.network.state_dict().items()}
    for _ in range(2):  # the second has momentum
        step([batches["toy"]], tasks=frozenset({"toy"}))
    after = parts.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "heads.toyscore" in name)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"heads.toy.1.weight", "pooler.dense.weight"} <= moved
    assert any(name.startswith("encoder.") for name in moved)


@pytest.mark.parametrize("around", ["", "+freelb"])
def test_l2sp_penalises_the_head_of_an_examples_own_task(tiny_run, around):
    quiet = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "global_grad_clipping": 0.0}
    found = {}
    for strength in (0.0, 2.0):
        settings = {"method": f"l2sp{around}", "l2sp": {"alpha": 0.0, "beta": strength}}
        parts, step, batches = both(tiny_run(**BOTH, **quiet, **settings))
        heads = {name: p for name, p in parts.network.named_parameters() if name.startswith("heads.")}
        parts.optimizer.step = lambda: None
        step([batches["toy"]], tasks=frozenset({"toy"}))
        assert all(p.grad is None for name, p in heads.items() if name.startswith("heads.toyscore."))
        step([*batches.values()], tasks=frozenset({"toy", "toyscore"}))
        found[strength] = {name: p.grad.clone() for name, p in heads.items()}
    for name, weights in heads.items():  # half of the step's examples are of either task
        torch.testing.assert_close(found[2.0][name] - found[0.0][name], weights.detach(), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_step_is_that_of_the_mean_over_its_examples(tiny_run):
    config = tiny_run(**BOTH, bert_dropout_p=0.0, dropout_p=0.0, global_grad_clipping=0.0)
    parts, step, batches = both(config)
    parts.network.train()
    losses = [parts.model.loss(parts.model.logits(batch), batch) for batch in batches.values()]
    parameters = dict(parts.network.named_parameters())
    expected = torch.autograd.grad(sum(losses) / 32, list(parameters.values()), allow_unused=True)
    found = {}
    parts.optimizer.step = lambda: found.update({name: p.grad.to_dense() for name, p in parameters.items()})
    loss, _ = step([*batches.values()])
    assert loss.item() == pytest.approx(sum(losses).item(), rel=1e-6)
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient.to_dense(), rtol=1e-5, atol=1e-7)


def gradients_of(tiny_run, task, task_weights):
    """Gradients and logged loss of the first step on a batch of a task."""
    quiet = {"bert_dropout_p": 0.0, "dropout_p": 0.0, "global_grad_clipping": 0.0, "method": "rdrop"}
    parts, step, batches = both(tiny_run(**BOTH, **quiet, task_weights=task_weights))
    parts.optimizer.step = lambda: None
    loss, _ = step([batches[task]])
    named = parts.network.named_parameters()
    return {name: p.grad.to_dense() for name, p in named if p.grad is not None}, loss.item()


def test_weights_of_tasks_scale_gradients_and_not_the_logged_loss(tiny_run):
    for task, factor in (("toy", 4.0), ("toyscore", 1.0)):
        plain, loss = gradients_of(tiny_run, task, None)
        weighted, same_loss = gradients_of(tiny_run, task, "toy=4,toyscore=1")
        assert loss == same_loss
        for name, gradient in plain.items():
            torch.testing.assert_close(weighted[name], factor * gradient, rtol=1e-6, atol=1e-9)


def test_scores_of_each_task_and_their_mean(tiny_run):
    config = tiny_run(**BOTH, epochs=4, holdout=0.3, save="both")
    result = run(config)
    directory = RunDirectory(run_dir(config))
    assert result == directory.read_result()
    assert result.task == "toy+toyscore"
    assert result.primary_metric == "mean"
    assert result.datasets == ["toy_dev", "toyscore_dev"]
    assert result.train_examples == sum(scores.train_examples for scores in result.tasks.values()) == 98
    lines = [json.loads(line) for line in directory.metrics_jsonl.read_text().splitlines()]
    epochs = [line for line in lines if "evaluation" in line]
    metric = {"toy": "MCC", "toyscore": "Pearson"}
    for line in epochs:
        for key, split in (("score", "dev"), ("held_out", "holdout")):
            each = [line["evaluation"][f"{task}_{split}"][name] for task, name in metric.items()]
            assert line[key] == pytest.approx(sum(each) / 2)
    assert result.best.held_out == max(line["held_out"] for line in epochs)
    for of_task in result.by_task():
        held_out = [line["evaluation"][f"{of_task.task}_holdout"][metric[of_task.task]] for line in epochs]
        assert of_task.best.held_out == max(held_out)
        assert of_task.best.epoch == 1 + held_out.index(max(held_out))
        assert of_task.last.epoch == 4
        assert set(of_task.best.metrics) == {f"{of_task.task}_dev", f"{of_task.task}_holdout"}
        assert (of_task.run_id, of_task.seed, of_task.tasks) == (result.run_id, result.seed, {})
        assert (of_task.primary_metric, of_task.datasets) == (metric[of_task.task], [f"{of_task.task}_dev"])


def test_predictions_are_of_the_best_epoch_of_their_task(tiny_run):
    from data_utils.metrics import compute_metrics

    config = tiny_run(**BOTH, epochs=4)
    result = run(config)
    arrays = RunDirectory(run_dir(config)).read_predictions(result)
    task_defs = load_task_defs(config.task_def)
    for of_task in result.by_task():
        (name,) = of_task.datasets
        for selection, epoch in (("best", of_task.best), ("last", of_task.last)):
            logits = arrays[f"{name}.{selection}_logits"]
            assert compute_metrics(task_defs[of_task.task], logits, arrays[f"{name}.labels"]) == epoch.metrics[name]


def test_a_task_whose_labels_are_equal_makes_the_run_degenerate_and_the_other_is_ok(tiny_run, tiny_task, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in tiny_task.glob("*.tsv"):
        rows = [line.split("\t") for line in file.read_text().splitlines()]
        constant = file.name == "toyscore_dev.tsv"
        rows = [[uid, "1" if constant else label, *texts] for uid, label, *texts in rows]
        (folder / file.name).write_text("".join("\t".join(row) + "\n" for row in rows))
    result = run(tiny_run(**BOTH, data_dir=folder))
    assert (result.status, result.error) == (Status.DEGENERATE, "all 30 labels of toyscore_dev are 1")
    statuses = {of_task.task: (of_task.status, of_task.error) for of_task in result.by_task()}
    assert statuses["toyscore"] == (Status.DEGENERATE, "all 30 labels of toyscore_dev are 1")
    assert statuses["toy"] == (Status.OK, None)


def test_a_diverged_run_is_diverged_for_every_task(tiny_run):
    result = run(tiny_run(**BOTH, learning_rate=1e30, global_grad_clipping=0.0))
    assert result.status is Status.DIVERGED
    assert [of_task.status for of_task in result.by_task()] == [Status.DIVERGED] * 2
    assert RunResult.from_json(json.loads(json.dumps(read_json(run_dir(tiny_run(
        **BOTH, learning_rate=1e30, global_grad_clipping=0.0)) / "result.json")))) == result  # fmt: skip


def test_the_identity_holds_every_task(tiny_run):
    config = tiny_run(**BOTH)
    identity = identity_of(config)
    assert sorted(identity.data) == ["toy_dev.tsv", "toy_train.tsv", "toyscore_dev.tsv", "toyscore_train.tsv"]
    assert sorted(identity.task_def) == ["toy", "toyscore"]
    for each in config.by_task():
        alone = identity_of(each)
        assert identity.task_def[each.task] == alone.task_def
        assert alone.data.items() <= identity.data.items()


def test_a_changed_definition_of_one_task_is_named(tiny_run, tmp_path):
    config = tiny_run(**BOTH, epochs=1)
    run(config)
    file = tmp_path / "task_def.yml"
    file.write_text(config.task_def.read_text() + "  select_splits: [dev]\n")  # of toyscore
    with pytest.raises(
        SettingError, match=re.escape("the task definition (toyscore, select_splits: None against ['dev'])")
    ):
        run(dataclasses.replace(config, task_def=file))


@pytest.mark.parametrize(("limit", "expected"), [(None, (70, 70)), (20, (10, 10)), (21, (11, 10)), (1, (1, 0))])
def test_the_random_networks_of_pac_tuning_see_every_task(tiny_run, monkeypatch, limit, expected):
    settings = {"k_levels": 2, "k_models": 2, "k_examples": limit}
    losses_of = TrainingModel.example_losses
    numbers = {"toy": 1.0, "toyscore": 2.0}
    monkeypatch.setattr(
        TrainingModel, "example_losses", lambda *args: torch.full_like(losses_of(*args), numbers[args[2].task])
    )
    with open_run(tiny_run(**BOTH, method="pac_tuning", pac_tuning=settings)) as trainer:
        (method,) = trainer.parts.method.methods
        losses = method._losses(trainer.parts.context).tolist()
    assert (losses.count(1.0), losses.count(2.0)) == expected
    assert len(losses) == sum(expected)


def test_settings_of_the_data_hold_for_each_task(tiny_run):
    config = tiny_run(**BOTH, train_size=20, holdout=0.2)
    for each, data in zip(config.by_task(), open_all(config), strict=True):
        alone = open_datasets(tiny_run(train_datasets=each.task, train_size=20, holdout=0.2))
        assert data.train_rows.tolist() == alone.train_rows.tolist()
        assert len(data.train_rows) == 20
        assert list(data.held_out) == [f"{each.task}_holdout"]


def test_label_smoothing_holds_for_the_tasks_with_classes(tiny_run):
    config = tiny_run(**BOTH, label_smoothing=0.3, class_weights="balanced")
    run(config)
    weights = read_json(run_dir(config) / "run.json")["resolved_class_weights"]
    assert list(weights) == ["toy"]
    assert sum(weights["toy"].values()) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_going_on_changes_nothing(tiny_run, tmp_path, method):
    if method == "lora":
        pytest.importorskip("peft", reason="peft is missing: see requirements-lora.txt")
    changes = {**SLOWLY, **SETTINGS.get(method, {}), **BOTH, "epochs": 2, "learning_rate": 1e-3, "holdout": 0.2}
    whole = tiny_run(method=method, output_dir=tmp_path / "whole", **{**changes, "checkpoint_seconds": 600.0})
    assert run(whole).status in (Status.OK, Status.DEGENERATE)
    broken = tiny_run(method=method, output_dir=tmp_path / "broken", **changes)
    assert run_in_parts(broken, 3, 8, 11).steps == 16  # in an epoch, at its end, in the next
    assert_same_run(whole, broken)
    assert run(whole).tasks == run(broken).tasks


@pytest.mark.parametrize("method", ["pats", "sage"])
def test_packed_is_padded(tiny_run, method):
    changes = {**BOTH, "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3, "epochs": 1}
    packed, padded = (
        final_weights(tiny_run(method=method, attention=name, **changes)) for name in ("packed", "padded")
    )
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], rtol=2e-4, atol=5e-5)


def test_without_strength_pats_is_plain_adamax(tiny_run):
    changes = {**BOTH, "save": "last", "epochs": 2}
    nothing = final_weights(tiny_run(method="pats", pats={"noise_scale": 0.0}, **changes))
    assert_same_weights(nothing, final_weights(tiny_run(**changes)))


def test_the_weights_that_are_kept_are_of_the_epoch_best_on_average(tiny_run):
    config = tiny_run(**BOTH, epochs=4, save="both")
    result = run(config)
    best, last = (load_file(run_dir(config) / f"checkpoints/{name}/model.safetensors") for name in ("best", "last"))
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same is (result.best.epoch == 4)
    assert {name for name in best if name.startswith("heads.")} == {
        f"heads.{task}.1.{part}" for task in config.tasks for part in ("weight", "bias")
    }


def test_the_command_line_tells_each_task(tiny_run, capsys):
    import train
    from tests.mt_dnn.test_resume import command

    config = tiny_run(**BOTH, epochs=1)
    assert train.main(command(config)[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = RunDirectory(run_dir(config)).read_result()
    assert lines[0] == f"best epoch 1: mean {result.best.score:z.2f}"
    assert lines[2] == f"toy: best epoch 1 MCC {result.tasks['toy'].best.score:z.2f}, " + lines[2].partition(", ")[2]
    assert lines[3].startswith("toyscore: best epoch 1 Pearson ")
    assert lines[3].endswith(f"last epoch 1 Pearson {result.tasks['toyscore'].last.score:z.2f}")
    diverging = tiny_run(**BOTH, learning_rate=1e30, global_grad_clipping=0.0)
    assert train.main(command(diverging)[1:]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["toy: no epoch was scored", "toyscore: no epoch was scored"]
    assert told[2].startswith("diverged: ")
