import numpy as np
import pytest

from benchmarks.glue_rows import LOG_LENGTHS, TASKS, evenly_spaced, find_data
from data_utils.task_def import load_task_defs
from data_utils.token_cache import ensure_cache
from data_utils.tokenizer import load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pack


@pytest.mark.parametrize("task", TASKS)
def test_generated_rows_are_as_long_as_the_real_ones(tiny_encoder, tmp_path, monkeypatch, task):
    monkeypatch.setenv("PATS_GLUE_DIR", str(tmp_path / "none"))
    what, folder = find_data(None, tmp_path, [task])
    assert what == "generated rows"
    task_def = load_task_defs(GLUE_TASK_DEF)[task]
    for split in ("train", "dev"):
        name = task_def.dataset_name(split)
        cache = ensure_cache(folder / f"{name}.tsv", task_def, load_tokenizer(tiny_encoder), tmp_path / name, 512)
        mean, deviation = LOG_LENGTHS[task]
        assert np.log(cache.lengths).mean() == pytest.approx(mean, abs=0.08)
        assert np.log(cache.lengths).std() == pytest.approx(deviation, abs=0.08)
        assert len(np.unique(cache.labels)) == 2  # a metric of one class alone is no number


def test_glue_files_are_converted_where_they_are(glue_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATS_GLUE_DIR", str(glue_dir))
    what, folder = find_data(None, tmp_path, ["rte"])
    assert what == "GLUE's rows"
    assert len((folder / "rte_dev.tsv").read_text(encoding="utf-8").splitlines()) == 277


def test_a_given_folder_is_taken_as_it_is(tmp_path):
    assert find_data(tmp_path, tmp_path) == ("rows of --data_dir", tmp_path)


def test_evenly_spaced_rows_are_the_caches_own(tiny_run):
    cache = open_datasets(tiny_run(train_datasets="toyscore")).train
    few = evenly_spaced(cache, 8)
    rows = [0, 10, 20, 30, 39, 49, 59, 69]
    ours, theirs = pack(few, range(8)), pack(cache, rows)
    for name in ("input_ids", "token_type_ids", "cu_seqlens", "labels"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert few.uids.tolist() == [cache.uids[row] for row in rows]
    with pytest.raises(ValueError, match="rows for 1 to 70"):
        evenly_spaced(cache, 71)
