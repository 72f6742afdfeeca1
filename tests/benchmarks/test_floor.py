"""Steps over the time of their matrix products: what is summed up, and the JSON file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import floor
from benchmarks.glue_rows import ROOT
from benchmarks.step_profile import KINDS
from data_utils.batching import epoch_batches
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets

FIGURES = {"step_over_floor", "step_over_floor_quartiles", "step_ms", "floor_ms", "gflop_per_step", "profile"}


def test_ratios_are_of_times_within_a_turn() -> None:
    # The second turn is ten times slower for both: the ratio stays.
    halves = [dict.fromkeys(KINDS, 0.0) | {"host": share, "norms": 1.0 - share} for share in (0.25, 0.75)]
    row = floor.summarise(np.array([1.5, 15.0, 3.0]), np.array([1.0, 10.0, 1.0]), halves)
    assert row["step_over_floor"] == 1.5
    assert row["step_over_floor_quartiles"] == [1.5, 2.25]
    assert row["step_ms"]["median"] == 3000.0
    assert row["floor_ms"]["median"] == 1000.0
    assert row["profile"] == dict.fromkeys(KINDS, 0.0) | {"host": 0.5, "norms": 0.5}


def test_everybody_has_every_turn_but_the_first() -> None:
    calls: list[str] = []
    seconds = floor.take_turns({name: lambda name=name: calls.append(name) for name in ("a", "b")}, 3)  # type: ignore[misc]
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_batches_are_those_of_a_runs_first_steps(tiny_run: Callable[..., RunConfig]) -> None:
    config = tiny_run()
    data = open_datasets(config)
    order = epoch_batches(len(data.train), 16, config.seed, 0)
    for (batch,), rows in zip(floor.first_batches(config, data, 2), order, strict=False):
        expected = np.concatenate([data.train.tokens[slice(*data.train.offsets[row : row + 2])] for row in rows])
        assert batch.input_ids.tolist() == expected.tolist()


def test_figures_of_both_methods(tiny_run: Callable[..., RunConfig]) -> None:
    runs = {name: (config := tiny_run(method=name), open_datasets(config)) for name in floor.METHODS}
    figures = json.loads(json.dumps(floor.measure(runs, n_batches=2, turns=2)))
    assert list(figures) == ["vanilla", "pats"]
    for row in figures.values():
        assert set(row) == FIGURES
        assert row["step_ms"]["turns"] == row["floor_ms"]["turns"] == 4
        assert set(row["profile"]) == set(KINDS)
        assert sum(row["profile"].values()) == pytest.approx(1.0)
    assert figures["vanilla"]["floor_ms"] == figures["pats"]["floor_ms"]


def test_another_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        floor.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "argument --device: cuda: only the CPU's products can be recorded; use cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_floor_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATS_GLUE_DIR", str(tmp_path / "none"))
    out, threads = tmp_path / "figures" / "floor.json", torch.get_num_threads()
    try:
        floor.main(["--tasks", "cola", "--threads", "1", "--batches", "1", "--turns", "1", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert result["machine"]["torch_threads"] == 1
    assert set(result["tasks"]["cola"]) == {"vanilla", "pats"}
    assert isinstance(result["tasks"]["cola"]["pats"]["step_over_floor"], float)
    assert "step over floor" in capsys.readouterr().out


def test_missing_data_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    out = tmp_path / "floor.json"
    command = ["-m", "benchmarks.floor", "--tasks", "cola", "--data_dir", tmp_path / "none", "--out", out]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: data_dir: ")
    assert not out.exists()
