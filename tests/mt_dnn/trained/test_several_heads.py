"""Predictions and exports of a run with several tasks: one head at a time."""

import re

import numpy as np
import pytest

import predict
from data_utils.errors import SettingError
from data_utils.metrics import compute_metrics
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.data import open_all
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir
from mt_dnn.trained.export import main as export_main
from mt_dnn.trained.load import load_exported, load_run, read_run
from mt_dnn.trained.scoring import canonical_rows, logits_on


@pytest.fixture(scope="module")
def trained(tiny_encoder, tiny_task, tmp_path_factory):
    """The settings of a finished run with two tasks."""
    config = config_from_mapping(
        {
            "task_def": str(tiny_task / "task_def.yml"), "data_dir": str(tiny_task), "train_datasets": "toy,toyscore",
            "init_checkpoint": str(tiny_encoder), "output_dir": str(tmp_path_factory.mktemp("heads") / "runs"),
            "epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "seed": 1, "precision": "fp32",
            "tensorboard": False, "device": "cpu", "save": "both",
        }
    )  # fmt: skip
    run(config)
    return config


def logits_of(trained, task, epoch):
    model = load_run(read_run(run_dir(trained), task=task), epoch, "cpu")
    rows = canonical_rows(trained.data_dir / f"{task}_dev.tsv", model.task_def)
    return model, rows, logits_on([model], rows, 8192, "dev")


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_the_last_weights_give_the_last_predictions(trained, task):
    _, _, logits = logits_of(trained, task, "last")
    result = RunDirectory(run_dir(trained)).read_result()
    stored = RunDirectory(run_dir(trained)).read_predictions(result)
    assert np.array_equal(logits, stored[f"{task}_dev.last_logits"])


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_the_best_weights_give_the_scores_of_the_epoch_best_on_average(trained, task):
    model, rows, logits = logits_of(trained, task, "best")
    result = RunDirectory(run_dir(trained)).read_result()
    found = compute_metrics(model.task_def, logits, np.asarray(rows.labels))
    assert found == result.best.metrics[f"{task}_dev"]
    finished = read_run(run_dir(trained), task=task)
    assert finished.score("best").metrics == {f"{task}_dev": found}
    assert finished.result.best.score == found[finished.result.primary_metric]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "--task: {} has several tasks; give one of toy, toyscore"),
        ("x", "--task: {} has no task 'x'; give one of toy"),
    ],
)
def test_the_head_must_be_named(trained, task, message):
    with pytest.raises(SettingError, match="^" + re.escape(message.format(run_dir(trained)))):
        read_run(run_dir(trained), task=task)


def test_a_run_with_one_task_takes_its_own_name_alone(tiny_trained):
    assert read_run(tiny_trained["cola"], task="cola").task_def.name == "cola"
    with pytest.raises(SettingError, match="has no task 'rte'; give one of cola"):
        read_run(tiny_trained["cola"], task="rte")


@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_an_exported_head_is_the_runs(trained, tmp_path, task):
    assert export_main([str(run_dir(trained)), str(tmp_path / task), "--task", task]) == 0
    model, rows, logits = logits_of(trained, task, "best")
    exported = load_exported(tmp_path / task, "cpu")
    assert exported.task_def == model.task_def
    np.testing.assert_allclose(logits_on([exported], rows, 8192, "dev"), logits, rtol=1e-5, atol=1e-6)
    card = (tmp_path / task / "README.md").read_text()
    other = {"toy": "toyscore", "toyscore": "toy"}[task]
    assert (
        f"- **Data**: the training set of {task}, 70 examples; dev: {task}_dev; trained together with {other}." in card
    )


def test_without_a_head_nothing_is_exported(trained, tmp_path, capsys):
    assert export_main([str(run_dir(trained)), str(tmp_path / "out")]) == 2
    assert "has several tasks; give one of toy, toyscore" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_predicts_with_one_head(trained, capsys):
    rows = str(trained.data_dir / "toyscore_dev.tsv")
    assert predict.main([str(run_dir(trained)), rows, "--task", "toyscore", "--score"]) == 0
    out = capsys.readouterr().out
    result = RunDirectory(run_dir(trained)).read_result()
    assert f"Pearson\t{result.best.metrics['toyscore_dev']['Pearson']:z.2f}\n" in out
    assert predict.main([str(run_dir(trained)), rows]) == 2
    assert "has several tasks; give one of toy, toyscore" in capsys.readouterr().err


def test_an_exported_folder_has_one_task(trained, tmp_path, capsys):
    out = tmp_path / "toy"
    assert export_main([str(run_dir(trained)), str(out), "--task", "toy"]) == 0
    rows = str(trained.data_dir / "toy_dev.tsv")
    assert predict.main([str(out), rows, "--task", "toyscore"]) == 2
    assert f"--task toyscore: {out} was exported for toy alone" in capsys.readouterr().err
    alone = [str(out), rows, "--score", "--precision", "fp32"]
    assert predict.main(alone) == 0
    expected = capsys.readouterr().out
    # Beside a run with several tasks, which needs the name of one.
    assert predict.main([*alone, "--task", "toy", "--ensemble", str(run_dir(trained))]) == 0
    assert capsys.readouterr().out == expected


def test_open_data_are_those_of_the_heads(trained):
    assert [data.task_def.name for data in open_all(trained)] == ["toy", "toyscore"]
