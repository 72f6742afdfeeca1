import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_utils.errors import SettingError
from mt_dnn.leftovers import leftovers, sweep
from mt_dnn.results import EpochScore, RunResult, Status
from mt_dnn.run_directory import RunDirectory, RunLocked
from tests.edits import edit_json, flip


@pytest.fixture
def directory(tmp_path):
    folder = RunDirectory(tmp_path / "runs/cola/e/pats/abc/seed=1")
    with folder.lock():
        yield folder


RESULT = RunResult(
    status=Status.OK, task="cola", encoder="e", method="pats", seed=1, run_id="abc", primary_metric="MCC",
    datasets=["cola_dev"], epochs=2, steps=10, train_examples=64, seconds=1.5,
    best=EpochScore(1, 40.0, {"cola_dev": {"ACC": 80.0, "MCC": 40.0}}),
    last=EpochScore(2, 39.0, {"cola_dev": {"ACC": 79.0, "MCC": 39.0}}),
)  # fmt: skip


def test_result_round_trip(directory):
    assert directory.read_result() is None
    directory.write_result(RESULT)
    assert directory.read_result() == RESULT
    assert directory.read_result().done


def test_a_failed_run_is_not_done(directory):
    directory.write_result(replace(RESULT, status=Status.FAILED, error="boom", best=None, last=None))
    assert not directory.read_result().done
    assert directory.read_result().best is None


def test_nan_is_recorded(directory):
    nan = EpochScore(1, math.nan, {"cola_dev": {"MCC": math.nan}})
    directory.write_result(replace(RESULT, best=nan, last=nan))
    assert math.isnan(directory.read_result().best.metrics["cola_dev"]["MCC"])
    assert "NaN" in directory.result_json.read_text()


def test_a_damaged_result_is_no_result(directory):
    directory.write_result(RESULT)
    directory.result_json.write_text(directory.result_json.read_text()[:50])
    with pytest.raises(SettingError, match=r"result\.json is damaged"):
        directory.read_result()


def test_metrics_are_cut_back(directory):
    directory.append_metrics({"step": 1})
    size = directory.metrics_size()
    directory.append_metrics({"step": 2})
    directory.truncate_metrics(size)
    assert [json.loads(line) for line in directory.metrics_jsonl.read_text().splitlines()] == [{"step": 1}]
    with pytest.raises(SettingError, match="shorter"):
        directory.truncate_metrics(size + 1)
    directory.truncate_metrics(0)
    assert directory.metrics_size() == 0


def test_the_lock_keeps_other_processes_out(directory):
    code = (
        "import sys; from pathlib import Path; from mt_dnn.run_directory import RunDirectory, RunLocked\n"
        "try:\n"
        "    with RunDirectory(Path(sys.argv[1])).lock(): print('got it')\n"
        "except RunLocked: print('locked')"
    )
    ask = [sys.executable, "-c", code, str(directory.path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.check_output(ask, text=True, env=environment).strip() == "locked"
    with pytest.raises(RunLocked), RunDirectory(directory.path).lock():
        pass
    other = RunDirectory(directory.path.with_name("seed=2"))
    with other.lock():
        pass
    with other.lock():
        pass


def test_a_read_only_folder_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(SettingError, match=r"output_dir: cannot write .*file"), RunDirectory(blocked / "run").lock():
        pass


def test_a_file_in_the_place_of_the_output_dir_is_no_damaged_result(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert RunDirectory(blocked / "run").read_result() is None  # so lock() tells it, and nobody is told to delete


def test_a_machine_in_trouble_is_no_reason_to_delete_a_result(directory, monkeypatch):
    directory.result_json.parent.mkdir(parents=True, exist_ok=True)
    directory.result_json.write_text("{}")

    def too_many(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("data_utils.json_file.read_regular", too_many)
    with pytest.raises(SettingError, match=r"result\.json cannot be read: Too many open files$"):
        directory.read_result()


def test_predictions_round_trip(directory):
    arrays = {"cola_dev.uids": np.array([b"1", b"22"]), "cola_dev.best_logits": np.ones((2, 2), np.float32)}
    directory.write_predictions(arrays)
    with np.load(directory.predictions_npz, allow_pickle=False) as loaded:
        assert {k: loaded[k].tolist() for k in loaded} == {k: v.tolist() for k, v in arrays.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "the result of cola/e/pats/abc/seed=2 and not of its folder"),
        ({"task": "rte"}, "rte/e/pats/abc/seed=1"),
        ({"encoder": "f"}, "cola/f/pats/abc/seed=1"),
        ({"method": "vanilla"}, "cola/e/vanilla/abc/seed=1"),
        ({"run_id": "xyz"}, "cola/e/pats/xyz/seed=1"),
    ],
)
def test_a_result_of_another_run_is_refused(directory, changes, said):
    directory.write_result(replace(RESULT, **changes))
    with pytest.raises(SettingError, match=said):
        directory.read_result()
    assert directory.read_result(moved=True) == replace(RESULT, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"primary_metric": "BLEU"}, "'BLEU' is not a valid Metric"),
        ({"datasets": []}, r"datasets is \[\]"),
        ({"datasets": ["rte_dev"]}, "'rte_dev' is missing"),
        ({"seed": "1"}, "'1' stands where a number should"),
        ({"seed": True}, "True stands where a number should"),
        ({"task": 3}, "task is 3"),
        ({"status": "fine"}, "'fine' is not a valid Status"),
        ({"best": {"epoch": 1, "score": 40.0}}, "'metrics' is missing"),
        ({"best": {"epoch": 1, "score": "40", "metrics": {"cola_dev": {"MCC": 1.0}}}}, "'40' stands where a number"),
        ({"best": {"epoch": 1, "score": 4.0, "metrics": {"cola_dev": {"MCC": "x"}}}}, "'x' stands where a number"),
        ({"best": {"epoch": 1, "score": 4.0, "metrics": [3]}}, "no attribute"),
        ({"last": 7}, "no attribute 'get'"),
        ({"files": 7}, "not iterable"),
        ({"nonsense": 7}, "unexpected keyword"),
    ],
)
def test_a_result_of_another_form_is_one_line(directory, changes, said):
    directory.write_result(RESULT)
    edit_json(directory.result_json, **changes)
    with pytest.raises(SettingError, match=rf"result\.json is damaged \(.*{said}.*; delete it to run again") as caught:
        directory.read_result()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "1", "[" * 100_000, '{"a":' * 100_000, "\0", ""])
def test_a_result_that_is_no_mapping_is_one_line(directory, content):
    directory.result_json.write_text(content)
    with pytest.raises(SettingError, match=r"result\.json is damaged.*; delete it to run again"):
        directory.read_result()


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(directory):
    os.mkfifo(directory.result_json)
    with pytest.raises(SettingError, match="is no regular file"):
        directory.read_result()


def finished(directory):
    """A result with its files."""
    directory.write_predictions({"cola_dev.labels": np.arange(4), "cola_dev.best_logits": np.ones((4, 2))})
    directory.append_metrics({"step": 1, "epoch": 1, "loss": 0.5})
    return replace(RESULT, files=directory.hashes())


@pytest.mark.parametrize("harm", ["empty", "flip", "other", "remove"])
@pytest.mark.parametrize("name", ["predictions.npz", "metrics.jsonl"])
def test_files_that_are_not_of_the_result_are_refused(directory, name, harm):
    result, file = finished(directory), directory.path / name
    assert directory.read_metrics(result) == [{"step": 1, "epoch": 1, "loss": 0.5}]
    assert sorted(directory.read_predictions(result)) == ["cola_dev.best_logits", "cola_dev.labels"]
    if harm == "flip":
        flip(file)
    elif harm == "other":
        directory.append_metrics({"step": 2, "epoch": 1, "loss": 0.25})
        directory.write_predictions({"cola_dev.labels": np.arange(4), "cola_dev.best_logits": np.zeros((4, 2))})
    else:
        file.write_bytes(b"") if harm == "empty" else file.unlink()
    said = "is missing" if harm == "remove" else "is damaged or of another run"
    with pytest.raises(SettingError, match=rf"{name} {said}.*delete .*seed=1 to run again"):
        directory.check_file(file, result)
    with pytest.raises(SettingError, match=said):
        directory.read_predictions(result) if name == "predictions.npz" else directory.check_file(file, result)


def test_a_file_that_the_result_does_not_know_is_refused(directory):
    result = finished(directory)
    directory.sensitivity_json.write_text("{}")
    with pytest.raises(SettingError, match=r"sensitivity\.json is not of this run"):
        directory.check_file(directory.sensitivity_json, result)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_damaged_predictions_of_an_earlier_version_are_one_line_or_harmless(directory, share):
    finished(directory)
    whole = directory.read_predictions(RESULT)  # which names no files
    flip(directory.predictions_npz, share)
    found, said = whole, "predictions.npz is damaged"
    try:
        found = directory.read_predictions(RESULT)
    except SettingError as error:
        said = str(error)
    assert "predictions.npz is damaged" in said
    assert "\n" not in said
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    directory.predictions_npz.write_bytes(b"")
    with pytest.raises(SettingError, match=r"predictions\.npz is damaged"):
        directory.read_predictions(RESULT)


@pytest.mark.parametrize("line", ["{", "3", "[" * 100_000, '{"step": 1}', '{"epoch": "x"}'])
def test_damaged_metrics_of_an_earlier_version_are_one_line(directory, line):
    directory.metrics_jsonl.write_text(line + "\n")
    with pytest.raises(SettingError, match=r"metrics\.jsonl is damaged"):
        directory.read_metrics(RESULT)


def test_what_killed_processes_left_is_swept(directory):
    folder = directory.checkpoints
    for path in (".run.json.tmp-1-ab", ".result.json.tmp-99-cd", "checkpoints/best/.model.safetensors.tmp",
                 "checkpoints/best/model.safetensors", "checkpoints/last-00000004/state.pt",
                 "checkpoints/.last-00000005.tmp/state.pt", "evaluations/x_dev.npz",
                 "evaluations/.x_dev.npz.tmp-1-ab"):  # fmt: skip
        (directory.path / path).parent.mkdir(parents=True, exist_ok=True)
        (directory.path / path).touch()
    sweep(directory, done=False)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last-00000004"]
    assert [path.name for path in directory.path.iterdir() if ".tmp" in path.name] == []
    assert [path.name for path in (directory.path / "evaluations").iterdir()] == ["x_dev.npz"]
    sweep(directory, done=True)
    assert [path.name for path in folder.rglob("*")] == ["best", "model.safetensors"]
    assert leftovers(directory, done=True) == []
