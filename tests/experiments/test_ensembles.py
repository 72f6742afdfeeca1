"""The seeds of a cell as an ensemble, from the predictions that a study keeps."""

import csv
import shutil

import numpy as np
import pytest

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from data_utils.metrics import compute_metrics
from data_utils.named_arrays import arrays_bytes
from data_utils.task_def import load_task_defs
from experiments.study.comparison.ensembles import ensemble_scores, write_ensembles
from experiments.study.table.gathering import gather
from mt_dnn.config_parser import config_from_mapping
from mt_dnn.run import run
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json
from tests.reference.distillation import mean_prediction


@pytest.fixture(scope="module")
def runs(tiny_encoder, tiny_task, tmp_path_factory):
    """Folder of runs: three seeds on both tasks together, one seed of another method."""
    root = tmp_path_factory.mktemp("ensembles") / "runs"
    for method, seed in (("vanilla", 1), ("vanilla", 2), ("vanilla", 3), ("pats", 1)):
        config = config_from_mapping(
            {
                "task_def": str(tiny_task / "task_def.yml"), "data_dir": str(tiny_task), "epochs": 2,
                "train_datasets": "toy,toyscore", "init_checkpoint": str(tiny_encoder), "output_dir": str(root),
                "batch_size": 16, "learning_rate": 1e-2, "seed": seed, "precision": "fp32", "method": method,
                "tensorboard": False, "device": "cpu", "save": "none",
            }
        )  # fmt: skip
        run(config)
    return root


def folders(runs):
    return sorted(runs.glob("*/*/vanilla/*/seed=*"))


@pytest.mark.parametrize("selection", ["best", "last"])
@pytest.mark.parametrize("task", ["toy", "toyscore"])
def test_the_score_is_that_of_the_mean_prediction(runs, tiny_task, task, selection):
    directories = [RunDirectory(folder) for folder in folders(runs)]
    arrays = [directory.read_predictions(directory.read_result()) for directory in directories]
    mean = mean_prediction([each[f"{task}_dev.{selection}_logits"] for each in arrays])
    definition = load_task_defs(tiny_task / "task_def.yml")[task]
    expected = compute_metrics(definition, mean, arrays[0][f"{task}_dev.labels"])[definition.primary_metric]
    found = {(one.cell.task, one.selection): one for one in ensemble_scores(gather(runs), runs)}
    one = found[f"toy+toyscore:{task}", selection]
    assert one.score == pytest.approx(expected, abs=1e-4)
    assert one.seeds == (1, 2, 3)
    scores = [getattr(directory.read_result().tasks[task], selection).score for directory in directories]
    assert one.mean == pytest.approx(np.mean(scores))


def test_one_seed_is_no_ensemble_and_the_mean_over_tasks_has_none(runs):
    found = ensemble_scores(gather(runs), runs)
    assert {(one.cell.method, one.cell.task) for one in found} == {
        ("vanilla", "toy+toyscore:toy"), ("vanilla", "toy+toyscore:toyscore"),
    }  # fmt: skip


def test_files(runs, tmp_path):
    markdown, table = write_ensembles(gather(runs), runs, tmp_path)
    assert "toyscore in toy+toyscore pcc" in markdown.read_text()
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4
    assert {line["n"] for line in lines} == {"3"}
    assert {line["seeds"] for line in lines} == {"1 2 3"}


def test_without_predictions_nothing_is_written(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    for folder in folders(copy)[1:]:
        (folder / "predictions.npz").unlink()
    assert write_ensembles(gather(copy), copy, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_predictions_without_a_set_are_damaged(runs, tmp_path):
    from data_utils.file_hash import sha256_of

    copy = shutil.copytree(runs, tmp_path / "runs")
    directory = RunDirectory(folders(copy)[1])
    arrays = directory.read_predictions(directory.read_result())
    del arrays["toyscore_dev.last_logits"]
    directory.predictions_npz.write_bytes(arrays_bytes(arrays))
    files = read_json(directory.result_json)["files"]
    edit_json(directory.result_json, files=files | {"predictions.npz": sha256_of(directory.predictions_npz)})
    with pytest.raises(
        SettingError, match=r"the predictions of a seed are damaged \('toyscore_dev.last_logits'\); delete"
    ):
        ensemble_scores(gather(copy), copy)


def test_seeds_on_other_examples_are_refused(runs, tmp_path):
    from data_utils.file_hash import sha256_of

    copy = shutil.copytree(runs, tmp_path / "runs")
    folder = folders(copy)[0]
    directory = RunDirectory(folder)
    arrays = directory.read_predictions(directory.read_result())
    arrays["toy_dev.labels"] = arrays["toy_dev.labels"][::-1]
    directory.predictions_npz.write_bytes(arrays_bytes(arrays))
    files = read_json(folder / "result.json")["files"]
    edit_json(folder / "result.json", files=files | {"predictions.npz": sha256_of(directory.predictions_npz)})
    with pytest.raises(SettingError, match="the seeds were scored on different examples of toy_dev; run all on one"):
        ensemble_scores(gather(copy), copy)
