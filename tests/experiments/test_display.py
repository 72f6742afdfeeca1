import io
import sys
from pathlib import Path

import pytest

from experiments.study.launch.display import StudyDisplay
from experiments.study.launch.worker import Ended, Outcome, evaluates_next
from mt_dnn.config import RunConfig
from tests.experiments.pool_jobs import make_jobs


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def last(terminal: Terminal) -> str:
    return terminal.getvalue().rpartition("\r")[2].rpartition("\n")[2]


def test_a_terminal_shows_the_phase_a_moving_clock_and_a_line_per_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_jobs(tmp_path)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with StudyDisplay([first, second]) as display:
        assert "0/2 runs:" in last(terminal)
        display.started(first)
        display.started(second)
        assert "0/2 runs, 2 loading:" in last(terminal)
        shown = len(terminal.getvalue())
        display.tick()
        assert len(terminal.getvalue()) > shown, "drawn anew although nothing happened"
        display.advanced(first, 3, 100)  # of 10 epochs
        assert "0/2 runs, 1 loading, 1 training:" in last(terminal)
        display.advanced(first, 9, 100)
        assert "0/2 runs, 1 loading, 1 evaluating:" in last(terminal)
        display.put_back(second)
        assert "0/2 runs, 1 evaluating:" in last(terminal)
        display.ended(first, Ended(Outcome.DONE, "ok", -0.001, seconds=117.2))
        display.ended(second, Ended(Outcome.FAILED, error="boom", seconds=3.0))
        assert "1/2 runs, 1 failed:" in last(terminal)
    lines = [line.rpartition("\r")[2] for line in terminal.getvalue().splitlines()]
    assert "[1/2] cola all-MiniLM-L6-v2 vanilla seed=1: ok, best 0.00, 117 s" in lines
    assert "[2/2] cola all-MiniLM-L6-v2 vanilla seed=2: failed: boom" in lines


def test_a_run_that_nobody_computed_was_already_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = make_jobs(tmp_path, seeds=1)
    with StudyDisplay([job]) as display:
        display.ended(job, Ended(Outcome.DONE, "degenerate", 50.0))
    assert capsys.readouterr().err.endswith("seed=1: already done: degenerate, best 50.00\n")


def test_evaluation_is_known_from_the_step_before_it() -> None:
    config = RunConfig(epochs=3)
    assert [step for step in range(1, 13) if evaluates_next(config, step, 12)] == [3, 7, 11]
    assert not any(evaluates_next(config, step, 3) for step in range(1, 4)), "an epoch of one step is all of both"
