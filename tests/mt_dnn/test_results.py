import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_utils.errors import SettingError
from mt_dnn.results import EpochScore, RunDirectory, RunLocked, RunResult, Status


@pytest.fixture
def directory(tmp_path):
    folder = RunDirectory(tmp_path / "runs" / "seed=1")
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
    nan = EpochScore(1, math.nan, {"stsb_dev": {"Pearson": math.nan}})
    directory.write_result(replace(RESULT, best=nan, last=nan))
    assert math.isnan(directory.read_result().best.metrics["stsb_dev"]["Pearson"])
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
        "import sys; from pathlib import Path; from mt_dnn.results import RunDirectory, RunLocked\n"
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


def test_resuming_on_other_data_is_refused(directory):
    description = {"data_fingerprint": "a", "encoder_fingerprint": "b"}
    directory.start(description)
    directory.start({**description, "data_fingerprint": "other"})  # no checkpoint yet: nothing to protect
    directory.checkpoints.mkdir()
    with pytest.raises(SettingError, match="data_fingerprint differs"):
        directory.start(description)


def test_predictions_round_trip(directory):
    arrays = {"cola_dev.uids": np.array([b"1", b"22"]), "cola_dev.best_logits": np.ones((2, 2), np.float32)}
    directory.write_predictions(arrays)
    with np.load(directory.predictions_npz, allow_pickle=False) as loaded:
        assert {k: loaded[k].tolist() for k in loaded} == {k: v.tolist() for k, v in arrays.items()}
