"""A task names the dev sets that give the score; the others are scored and shown, and choose nothing."""

import json
import shutil

import numpy as np
import pytest

from data_utils.errors import SettingError
from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from mt_dnn.data import open_datasets
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.tiny import TASK_DEF

KEYS = "  split_names: [train, dev, hard_dev]\n"


@pytest.fixture
def own_run(tiny_run, tiny_task, tmp_path):
    """Make a run on a task with two dev sets, of which the second has one label alone."""

    def make(select, **changes):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for split in ("train", "dev"):
            shutil.copy(tiny_task / f"toy_{split}.tsv", folder)
        (folder / "toy_hard_dev.tsv").write_text("1\t1\tgood film\n2\t1\tnever a good plot\n3\t1\tgood or bad\n")
        keys = KEYS + (f"  select_splits: [{select}]\n" if select else "")
        (folder / "task_def.yml").write_text(TASK_DEF.replace("toy:\n", f"toy:\n{keys}", 1))
        return tiny_run(task_def=folder / "task_def.yml", data_dir=folder, **changes)

    return make


def test_a_shown_set_is_scored_and_chooses_nothing(own_run):
    config = own_run("dev", epochs=4)
    result = run(config)
    assert result.datasets == ["toy_dev"]
    assert result.status == "ok", "labels that are all the same are no fault of a set that is only shown"
    assert list(result.best.metrics) == ["toy_dev", "toy_hard_dev"]
    lines = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()]
    scores = [line["evaluation"]["toy_dev"]["MCC"] for line in lines if "evaluation" in line]
    assert [line["score"] for line in lines if "evaluation" in line] == scores
    assert result.best.epoch == 1 + int(np.argmax(scores))
    with np.load(run_dir(config) / "predictions.npz") as arrays:
        assert arrays["toy_hard_dev.best_logits"].shape == (3, 2)

    text = " ".join(markdown(gather(config.output_dir), load_paper()).split())
    assert "is the mean of" not in text
    assert "### Best dev epoch, on toy_hard_dev, which is not in the score" in text
    assert f"| vanilla | {result.best.metrics['toy_hard_dev']['MCC']:.2f} |" in text.partition("on toy_hard_dev")[2]


def test_without_a_choice_all_dev_sets_count_and_the_heading_says_so(own_run):
    config = own_run(None, epochs=1)
    result = run(config)
    assert result.datasets == ["toy_dev", "toy_hard_dev"]
    assert result.best.score == np.mean([result.best.metrics[name]["MCC"] for name in result.datasets])
    text = markdown(gather(config.output_dir), load_paper())
    assert "toy is the mean of dev and hard." in text
    assert "not in the score" not in text


def test_dev_sets_that_give_no_score_are_refused(own_run):
    assert list(open_datasets(own_run("dev", test_datasets="toy")).dev) == ["toy_dev"]
    with pytest.raises(SettingError, match=r"test_datasets: toy_hard: only shown.*add one of toy_dev"):
        open_datasets(own_run("dev", test_datasets="toy_hard"))
