import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_utils.errors import SettingError
from data_utils.task_def import (
    DataFormat,
    LossCriterion,
    Metric,
    TaskType,
    from_settings,
    load_task_defs,
    split_dataset_name,
    to_settings,
)

ROOT = Path(__file__).resolve().parents[2]
TASK: dict[str, Any] = {
    "data_format": "PremiseOnly",
    "task_type": "Classification",
    "n_class": 2,
    "metric_meta": ["ACC"],
    "enable_san": False,
}


def load(folder: Path, name: str = "toy", **changes: Any) -> Any:
    settings = {key: value for key, value in (TASK | changes).items() if value != "absent"}
    path = folder / "tasks.yml"
    path.write_text(yaml.safe_dump({name: settings}))
    return load_task_defs(path)[name]


def test_the_glue_file_defines_nine_tasks() -> None:
    tasks = load_task_defs(ROOT / "experiments/glue/glue_task_def.yml")
    assert list(tasks) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst", "stsb", "wnli"]
    assert {name: str(task.primary_metric) for name, task in tasks.items()} == {
        "cola": "MCC",
        "mnli": "ACC",
        "mrpc": "F1",
        "qnli": "ACC",
        "qqp": "F1",
        "rte": "ACC",
        "sst": "ACC",
        "stsb": "Pearson",
        "wnli": "ACC",
    }
    assert tasks["mnli"].dev_splits == ("matched_dev", "mismatched_dev")
    assert tasks["mnli"].labels == ("contradiction", "neutral", "entailment")
    assert tasks["rte"].labels == tasks["qnli"].labels == ("not_entailment", "entailment")
    assert {name: task.dropout_p for name, task in tasks.items()} == {n: 0.05 if n == "cola" else 0.1 for n in tasks}
    assert tasks["stsb"].task_type is TaskType.Regression
    assert tasks["stsb"].loss is LossCriterion.MseCriterion
    assert tasks["cola"].data_format is tasks["sst"].data_format is DataFormat.PremiseOnly
    assert not any(task.enable_san for task in tasks.values())


def test_defaults(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert task.split_names == ("train", "dev", "test")
    assert task.labels is None
    assert task.dropout_p is None
    assert task.loss is LossCriterion.CeCriterion
    assert task.kd_loss is None
    assert task.dataset_name("dev") == "toy_dev"
    regression = load(tmp_path, task_type="Regression", n_class=1, metric_meta=["Spearman", "Pearson"])
    assert regression.loss is LossCriterion.MseCriterion
    assert regression.metric_meta == (Metric.Spearman, Metric.Pearson)
    assert regression.primary_metric is Metric.Pearson


def test_dataset_names_lead_back_to_the_task() -> None:
    assert [split_dataset_name(n) for n in ("cola", "mnli_matched", "mnli_matched_dev")] == ["cola", "mnli", "mnli"]


def test_fingerprint_follows_what_changes_the_cache_and_nothing_else(tmp_path: Path) -> None:
    base = load(tmp_path)
    for same in (load(tmp_path, dropout_p=0.3), load(tmp_path, metric_meta=["MCC"]), load(tmp_path, name="other")):
        assert same.fingerprint == base.fingerprint
    different = [
        load(tmp_path, n_class=3),
        load(tmp_path, labels=["a", "b"]),
        load(tmp_path, labels=["b", "a"]),
        load(tmp_path, data_format="PremiseAndOneHypothesis"),
        load(tmp_path, task_type="Regression", n_class=1, metric_meta=["Pearson"]),
    ]
    assert len({base.fingerprint, *(task.fingerprint for task in different)}) == 6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_clas": 2}, "unknown key 'n_clas'; legal keys: data_format, task_type, n_class"),
        ({"data_format": "Premise"}, "'Premise'; legal values: PremiseOnly, PremiseAndOneHypothesis"),
        ({"task_type": "Ranking"}, "'Ranking'; legal values: Classification, Regression"),
        ({"metric_meta": ["AUC"]}, "'AUC'; legal values: MCC, F1, F1MAC, Pearson, Spearman, ACC"),
        ({"metric_meta": "ACC"}, "it must be a list"),
        ({"metric_meta": []}, "it must be a list"),
        ({"metric_meta": ["ACC", "ACC"]}, "holds an entry twice"),
        ({"metric_meta": ["Pearson"]}, "Pearson does not fit Classification; legal values: ACC, F1, F1MAC, MCC"),
        ({"metric_meta": ["F1"], "n_class": 3}, "n_class is 3"),
        ({"loss": "Ce"}, "'Ce'; legal values: CeCriterion, MseCriterion"),
        ({"loss": "MseCriterion"}, "loss MseCriterion does not fit Classification; use CeCriterion"),
        ({"kd_loss": "Nope"}, "kd_loss is 'Nope'"),
        ({"adv_loss": "Nope"}, "adv_loss is 'Nope'"),
        ({"n_class": 1}, "for task_type Classification it is at least 2"),
        ({"n_class": 2.0}, "it must be a whole number"),
        ({"n_class": True}, "it must be a whole number"),
        ({"n_class": 2, "task_type": "Regression", "metric_meta": ["Pearson"]}, "for task_type Regression it is 1"),
        ({"n_class": "absent"}, "key 'n_class' is missing"),
        ({"enable_san": "absent"}, "key 'enable_san' is missing"),
        ({"enable_san": True}, "a SAN head compares two texts; data_format PremiseOnly has one: set enable_san: false"),
        ({"enable_san": "yes"}, "enable_san is 'yes'; legal: true or false"),
        ({"enable_san": 1}, "enable_san is 1; legal: true or false"),
        ({"labels": ["a"]}, "1 labels for n_class 2"),
        ({"labels": ["a", "a"]}, "holds an entry twice"),
        ({"labels": [["a"], "b"]}, "holds ['a'], which is no text; put it in quotes"),
        ({"n_class": 1_000_001}, "at least 2 and at most 1,000,000"),
        ({"labels": ["a", "b\tc"]}, "no tab or line end"),
        ({"labels": ["a", ""]}, "is not empty"),
        ({"dropout_p": 1.0}, "it must be a number in [0, 1)"),
        ({"dropout_p": "x"}, "it must be a number in [0, 1)"),
        ({"dropout_p": False}, "it must be a number in [0, 1)"),
        ({"select_splits": ["test"]}, "select_splits holds 'test', no dev split; legal values: dev"),
        ({"select_splits": ["dev"], "split_names": ["train"]}, "legal values: none: no split ends in dev"),
        ({"select_splits": []}, "select_splits is []; it must be a list of at least one name"),
        ({"split_names": ["../x"]}, "split name '../x' is not allowed"),
        (
            {"task_type": "Regression", "n_class": 1, "metric_meta": ["Pearson"], "labels": ["a"]},
            "labels are given for a Regression task",
        ),
    ],
)
def test_mistakes_name_file_task_and_legal_values(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(tmp_path, **changes)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'tasks.yml'}: task toy")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["my_task", "../x", "a b"])
def test_task_names_are_plain_and_without_underscore(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError):
        load(tmp_path, name=name)


def test_a_file_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yml").write_text("")
    with pytest.raises(SettingError, match="holds no task"):
        load_task_defs(tmp_path / "empty.yml")
    (tmp_path / "empty.yml").write_text("toy: 3\n")
    with pytest.raises(SettingError, match="must be a mapping"):
        load_task_defs(tmp_path / "empty.yml")


BODY = "data_format: PremiseOnly, task_type: Classification, metric_meta: [ACC], enable_san: false"


@pytest.mark.parametrize(
    "labels", [["01", "02"], ["12:30", "13:30"], ["no", "yes"], ["1.0", "2.0"], ["2001-01-01", "null"], ["-1", "+1"]]
)
def test_labels_and_splits_are_the_texts_that_were_written(tmp_path: Path, labels: list[str]) -> None:
    path = tmp_path / "tasks.yml"
    path.write_text(f"toy: {{{BODY}, n_class: 2, labels: [{', '.join(labels)}], split_names: [train, 01, 1e3]}}\n")
    task = load_task_defs(path)["toy"]
    assert task.labels == tuple(labels)
    assert task.split_names == ("train", "01", "1e3")
    path.write_text(yaml.safe_dump({"toy": to_settings(task)}))
    assert load_task_defs(path)["toy"] == task


@pytest.mark.parametrize("key", ["on", "01", "2001-01-01", "null", "1e5", "12:30"])
def test_task_names_that_yaml_does_not_read_as_text_want_quotes(tmp_path: Path, key: str) -> None:
    path = tmp_path / "tasks.yml"
    path.write_text(f"{key}: {{{BODY}, n_class: 2}}\n")
    with pytest.raises(SettingError, match=r"quote it to make it a name|between quotes if it is a text"):
        load_task_defs(path)


def test_a_task_that_cannot_be_run_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "tasks.yml"
    path.write_text(
        f"ranking: {{{BODY.replace('Classification', 'Ranking')}, n_class: 2}}\n"
        f"toy: {{{BODY}, n_class: 2}}\n"
        f"spans: {{{BODY.replace('PremiseOnly', 'MRC')}, n_class: 2}}\n"
        "odd: 3\n"
    )
    tasks = load_task_defs(path)
    assert list(tasks) == ["toy"]
    assert tasks.find("toy", "--tasks") is tasks["toy"]
    for name, reason in (
        ("ranking", f"{path}: task ranking: task_type is 'Ranking'; legal values: Classification, Regression"),
        ("spans", f"{path}: task spans: data_format is 'MRC'; legal values: PremiseOnly, PremiseAndOneHypothesis"),
        ("odd", f"{path}: task odd: must be a mapping"),
        ("other", f"--tasks: unknown task 'other'; {path} defines toy"),
    ):
        with pytest.raises(SettingError) as caught:
            tasks.find(name, "--tasks")
        assert str(caught.value).startswith(reason)


def test_values_of_a_file_cannot_flood_a_message(tmp_path: Path) -> None:
    path = tmp_path / "tasks.yml"
    for value in ("0x" + "f" * 9000, "'" + "x" * 100_000 + "'", "[" + "[1]," * 1000 + "]"):
        path.write_text(f"toy: {{{BODY}, n_class: {value}}}\n")
        with pytest.raises(SettingError, match="n_class is") as caught:
            load_task_defs(path)
        assert len(str(caught.value)) < 500


def test_mt_dnn_files_load_unchanged(tmp_path: Path) -> None:
    # The keys and values of MT-DNN's own GLUE file, two of its tasks.
    (tmp_path / "mtdnn.yml").write_text(
        "mnli:\n  data_format: PremiseAndOneHypothesis\n  dropout_p: 0.1\n  enable_san: false\n  labels:\n"
        "  - contradiction\n  - neutral\n  - entailment\n  metric_meta:\n  - ACC\n  loss: CeCriterion\n"
        "  kd_loss: MseCriterion\n  adv_loss: SymKlCriterion\n  n_class: 3\n  split_names:\n  - train\n"
        "  - matched_dev\n  - mismatched_dev\n  - matched_test\n  - mismatched_test\n  task_type: Classification\n"
        "stsb:\n  data_format: PremiseAndOneHypothesis\n  enable_san: false\n  metric_meta:\n  - Pearson\n"
        "  - Spearman\n  n_class: 1\n  loss: MseCriterion\n  kd_loss: MseCriterion\n  adv_loss: MseCriterion\n"
        "  task_type: Regression\n"
    )
    ours = load_task_defs(ROOT / "experiments/glue/glue_task_def.yml")
    theirs = load_task_defs(tmp_path / "mtdnn.yml")
    assert theirs["mnli"] == ours["mnli"]
    assert theirs["stsb"] == dataclasses.replace(ours["stsb"], dropout_p=None)


def test_of_mt_dnns_superglue_file_the_tasks_that_fit_load(tmp_path: Path) -> None:
    # Keys and values of MT-DNN's own file, three of its tasks.
    (tmp_path / "mtdnn.yml").write_text(
        "cb:\n  data_format: PremiseAndOneHypothesis\n  encoder_type: BERT\n  dropout_p: 0.1\n  enable_san: false\n"
        "  metric_meta:\n  - F1\n  - ACC\n  n_class: 3\n  task_type: Classification\n  labels:\n  - contradiction\n"
        "  - neutral\n  - entailment\n"
        "rte:\n  data_format: PremiseAndOneHypothesis\n  encoder_type: BERT\n  enable_san: true\n  labels:\n"
        "  - not_entailment\n  - entailment\n  metric_meta:\n  - ACC\n  n_class: 2\n  task_type: Classification\n"
        "sst:\n  data_format: PremiseOnly\n  encoder_type: BERT\n  enable_san: false\n  metric_meta:\n  - ACC\n"
        "  n_class: 2\n  task_type: Classification\n"
    )
    tasks = load_task_defs(tmp_path / "mtdnn.yml")
    assert {name: task.enable_san for name, task in tasks.items()} == {"rte": True, "sst": False}
    assert to_settings(tasks["rte"])["enable_san"] is True
    assert "encoder_type" not in to_settings(tasks["sst"]), "runs keep their identity"
    with pytest.raises(SettingError, match=r"task cb: metric_meta F1 is the F1 of class 1 of two; .* take F1MAC"):
        tasks.find("cb", "--tasks")


def test_select_splits_names_the_dev_sets_of_the_score(tmp_path: Path) -> None:
    splits = {"split_names": ["train", "dev", "hard_dev"]}
    task = load(tmp_path, **splits)
    assert [task.selects(name) for name in ("toy_dev", "toy_hard_dev")] == [True, True]
    assert "select_splits" not in to_settings(task), "runs of a task without it keep their identity"
    task = load(tmp_path, **splits, select_splits=["dev"])
    assert [task.selects(name) for name in ("toy_dev", "toy_hard_dev")] == [True, False]
    assert from_settings("toy", to_settings(task), "again") == task
