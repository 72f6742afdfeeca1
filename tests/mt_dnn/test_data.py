"""What is wrong with a run's data is told before anything is computed."""

import pytest

from data_utils.errors import SettingError
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.data import missing_file, open_datasets


def error_of(config):
    with pytest.raises(SettingError) as caught:
        open_datasets(config)
    return str(caught.value)


def test_splits_without_dev_are_refused(tiny_run, tiny_task, tmp_path):
    own = tmp_path / "own.yml"
    text = (tiny_task / "task_def.yml").read_text()
    own.write_text(text.replace("toy:", "toy:\n  split_names: [train, validation]"))
    assert error_of(tiny_run(task_def=own)) == (
        f"{own}: task toy: none of the split_names train, validation ends in dev, so nothing would be scored; "
        "name one dev and its file toy_dev.tsv"
    )
    own.write_text(text.replace("toy:", "toy:\n  split_names: [train, dev]"))
    assert list(open_datasets(tiny_run(task_def=own)).dev) == ["toy_dev"]


def test_a_missing_file_of_ones_own_is_described(tiny_run, tmp_path):
    for task, columns in (("toy", "uid, label, premise"), ("toyscore", "uid, label, premise, hypothesis")):
        told = error_of(tiny_run(data_dir=tmp_path, train_datasets=task))
        assert told.startswith(f"data_dir: {tmp_path / task}_train.tsv does not exist; it is a file of your own")
        assert f"columns {columns} between tabs" in told
        assert "glue_prepro" not in told


def test_a_missing_file_of_glue_is_made_by_glue_prepro(tiny_run, tmp_path):
    config = tiny_run(data_dir=tmp_path, train_datasets="cola", task_def=GLUE_TASK_DEF)
    told = f"data_dir: {tmp_path}/cola_dev.tsv does not exist; make it with python experiments/glue/glue_prepro.py "
    assert missing_file(config, "cola_dev") == f"{told}--root_dir <raw GLUE folder> --out {tmp_path}"


def test_a_missing_file_of_the_next_benchmark_is_made_by_its_own_prepro(tiny_run, tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "next_task_def.yml").write_text((tiny_task / "task_def.yml").read_text())
    config = tiny_run(data_dir=tmp_path / "data", task_def=tmp_path / "next_task_def.yml")
    assert "a file of your own" in missing_file(config, "toy_dev")
    (tmp_path / "next_prepro.py").touch()
    assert "make it with python next_prepro.py --root_dir <raw NEXT folder>" in missing_file(config, "toy_dev")


def test_a_task_that_cannot_be_run_is_refused_by_its_reason(tiny_run, tiny_task, tmp_path):
    own = tmp_path / "own.yml"
    text = (tiny_task / "task_def.yml").read_text()
    own.write_text(text.replace("toyscore:", "ranking:").replace("Regression", "Ranking"))
    assert open_datasets(tiny_run(task_def=own)).task_def.name == "toy"
    assert error_of(tiny_run(task_def=own, train_datasets="ranking")).startswith(
        f"{own}: task ranking: task_type is 'Ranking'; legal values"
    )
    assert error_of(tiny_run(task_def=own, train_datasets="other")) == (
        f"train_datasets: unknown task 'other'; {own} defines toy"
    )
