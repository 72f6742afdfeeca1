from pathlib import Path

import pytest

from benchmarks import startup
from experiments.study.__main__ import main as study_main


def test_the_made_up_study_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "canonical_data"
    startup.write_data(data)
    arguments = ["--encoder", startup.PACKAGED, "--tasks", "mnli,stsb", "--seeds", "2", "--data_dir", str(data)]
    arguments += ["--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "results")]
    assert startup.finish_study(arguments) == 2 * 4 * 2

    assert study_main(arguments) == 0
    said = capsys.readouterr()
    assert "runs to do" not in said.err
    assert "n = 2 seeds" in said.out
    assert "strip.png" in said.out
