"""Signals that come to a study while no run is computed."""

import os
import signal
import time

import pytest

from data_utils.errors import SettingError
from experiments.study.launch.stopping import handlers_kept, study_status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_signal_ends_the_study_in_one_line(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    cleaned = []

    def work() -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
            return 0
        except BaseException:
            os.kill(os.getpid(), number)  # pressed again: the clean-up goes on
            cleaned.append(True)
            raise

    assert study_status(work) == status
    assert cleaned == [True]
    assert capsys.readouterr().err == "stopped; the same command goes on\n"
    assert signal.getsignal(number) is before


def test_work_that_is_left_alone_keeps_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert study_status(lambda: 1) == 1
    assert study_status(lambda: None) == 0

    def fail() -> int:
        raise SettingError("x is 3")

    assert study_status(fail) == 2
    assert capsys.readouterr().err == "error: x is 3\n"


def test_a_librarys_handlers_do_not_stay() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
