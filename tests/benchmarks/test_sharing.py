import argparse
import json
from pathlib import Path

import pytest

from benchmarks import sharing
from data_utils.task_def import load_task_defs


def test_its_runs_have_a_task_definition(tmp_path: Path) -> None:
    options = argparse.Namespace(steps=2, method="pats", optimizer="adamax")
    for job in sharing.make_jobs(options, tmp_path, tmp_path, tmp_path, 2):
        assert job.config.task in load_task_defs(job.config.task_def)


@pytest.mark.slow
def test_workers_on_a_cpu_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharing, "usable_cores", lambda: 2)
    out = tmp_path / "sharing.json"
    arguments = ["--device", "cpu", "--workers", "2,1", "--runs", "2", "--steps", "2", "--turns", "1"]
    sharing.main([*arguments, "--out", str(out)])
    result = json.loads(out.read_text())
    rates = {count: figures["median"] for count, figures in result["runs_per_hour"].items()}
    assert set(rates) == {"1", "2"}
    assert all(rate > 0 for rate in rates.values())
    assert rates[str(result["best_workers_per_device"])] == max(rates.values())
    assert f"best: {result['best_workers_per_device']} workers" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_run_is_no_figure(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--workers", "1", "--runs", "1", "--steps", "2", "--turns", "1"]
    with pytest.raises(RuntimeError, match=r"1 workers: cola .*sage"):
        sharing.main([*arguments, "--method", "sage", "--optimizer", "adamw"])
