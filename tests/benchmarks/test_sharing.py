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


def test_one_to_four_workers_are_compared_unless_others_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {1: 10.0, 2: 18.0, 3: 24.0, 4: 23.0}
    monkeypatch.setattr(sharing, "time_pool", lambda *arguments: rates[arguments[-1]])
    monkeypatch.setattr(sharing, "open_datasets", lambda _: None)
    monkeypatch.setattr(sharing, "make_encoder", lambda *_: tmp_path)
    monkeypatch.setattr(sharing, "resolve_encoder", lambda _: argparse.Namespace(folder=tmp_path))
    out = tmp_path / "sharing.json"
    sharing.main(["--device", "cpu", "--steps", "2", "--turns", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["best_workers_per_device"] == 3
    assert {int(count): figures["median"] for count, figures in result["runs_per_hour"].items()} == rates
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split(", ")[1] for line in lines[:4]] == [
        f"{times} x that of 1" for times in ("1.00", "1.80", "2.40", "2.30")
    ]
    assert lines[4] == "best: 3 workers per device (--workers_per_device 3)"


@pytest.mark.parametrize(("workers", "runs"), [("1,2,3", "4"), ("1,0", "4"), ("2", "-2")])
def test_a_number_of_runs_that_leaves_workers_idle_is_refused(
    workers: str, runs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharing, "time_pool", lambda *_: 1.0)
    with pytest.raises(SystemExit) as ended:
        sharing.main(["--device", "cpu", "--workers", workers, "--runs", runs])
    assert ended.value.code == 2
    assert f"argument --runs: {runs} is no multiple of " in capsys.readouterr().err


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
