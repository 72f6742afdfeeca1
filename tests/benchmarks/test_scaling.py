import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_encoder import make_encoder
from benchmarks.scaling import fit, make_config, measure
from data_utils.task_def import load_task_defs


def test_a_fit_tells_linear_from_quadratic_growth() -> None:
    tokens = np.array([1e4, 1e5, 1e6, 1e7])
    linear = fit(tokens, 2e-6 * tokens)
    assert linear["exponent"] == pytest.approx(1.0)
    assert linear["r_squared"] == pytest.approx(1.0)
    assert linear["microseconds_per_token"] == pytest.approx(2.0)
    assert fit(tokens, 1e-9 * tokens**2)["exponent"] == pytest.approx(2.0)
    offset = fit(tokens, 3.0 + 2e-6 * tokens)
    assert offset["intercept_seconds"] == pytest.approx(3.0)
    assert offset["exponent"] < 0.9


def test_its_run_has_a_task_definition(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1)
    assert config.task in load_task_defs(config.task_def)


@pytest.mark.slow
def test_one_size_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scaling.CHILD", "import sys; from benchmarks import scaling; "
                        "scaling.LEAST_STEPS = 6; scaling.child(sys.argv[1])")  # fmt: skip
    make_encoder(tmp_path / "encoder", "tiny")
    figures = measure(70, tmp_path)
    assert figures["rows"] == 70
    assert figures["epochs_timed"] == 2
    assert figures["tokens"] > 70 * 20
    assert min(figures["epoch_seconds"], figures["assembly_seconds"], figures["own_mib"], figures["mapped_mib"]) > 0
    assert json.loads(json.dumps(figures)) == figures
