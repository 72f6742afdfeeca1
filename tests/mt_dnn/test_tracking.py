"""Trackers of a run that was killed and started again, and trackers that fail."""

import json
import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_utils.errors import SettingError
from mt_dnn.config import TRACKERS, RunConfig
from mt_dnn.reporters import REPORTERS
from mt_dnn.results import EpochScore
from mt_dnn.run_directory import RunDirectory
from mt_dnn.tracking import Tracker


def test_every_name_in_report_to_has_a_reporter():
    assert tuple(REPORTERS) == TRACKERS


@pytest.mark.parametrize("checkpoint", [0, 2], ids=["from the start", "from a checkpoint"])
def test_tensorboard_shows_every_step_once_after_a_kill(tmp_path, checkpoint):
    directory = RunDirectory(tmp_path)
    for first, last, loss in ((0, 4, 1.0), (checkpoint, 3, 2.0)):
        tracker = Tracker(RunConfig(), directory)
        tracker.start(0, first)
        for step in range(first + 1, last + 1):
            tracker.log({"step": step, "epoch": 1, "loss": loss})
        tracker.close()
    events = EventAccumulator(str(directory.tensorboard)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        (step, 1.0 if step <= checkpoint else 2.0) for step in (1, 2, 3)
    ]


class Service:
    """A tracker that cannot take a point back: what each of its runs was told."""

    def __init__(self):
        self.runs, self.ends, self.broken = {}, [], ""

    def __call__(self, run):
        return Session(self, run.known or f"run {len(self.runs)}")


class Session:
    def __init__(self, service, known):
        self.service, self.known = service, known
        self.fail_if("start")
        self.points = service.runs.setdefault(known, [])

    def fail_if(self, action):
        if self.service.broken == action:
            raise ConnectionError("no\nroute")

    def report(self, values, step):
        self.fail_if("report")
        self.points += [(step, name, value) for name, value in values.items()]

    def flush(self):
        self.fail_if("flush")

    def close(self, done):
        self.fail_if("close")
        self.service.ends.append(done)


@pytest.fixture
def service(monkeypatch):
    made = Service()
    monkeypatch.setitem(REPORTERS, "wandb", made)
    return made


def session(directory, steps, metrics_size=0, report_to="wandb"):
    """Steps that log, and an evaluation at each even one; returns the tracker."""
    tracker = Tracker(RunConfig(report_to=report_to), directory)
    tracker.start(metrics_size, steps.start - 1)
    for step in steps:
        tracker.log({"step": step, "epoch": 1, "loss": step / 4, "grad_norm": None, "pats/ratio": float("nan")})
        if step % 2 == 0:
            tracker.evaluated(step, EpochScore(1, 50.0, {"cola_dev": {"MCC": 50.0 + step}}), None)
    return tracker


def expected(steps):
    points = []
    for step in steps:
        points.append((step, "train/loss", step / 4))
        if step % 2 == 0:
            points.append((step, "dev/cola_dev/MCC", 50.0 + step))
    return points


def test_a_tracker_is_told_every_step_once_after_a_kill(tmp_path, service):
    directory = RunDirectory(tmp_path)
    at_checkpoint = session(directory, range(1, 3)).flush()
    session(directory, range(3, 6), at_checkpoint)  # and killed: nothing was closed
    session(directory, range(3, 9), at_checkpoint).close(done=True)
    assert service.runs == {"run 0": expected(range(1, 9))}
    assert service.ends == [True]
    lines = [json.loads(line) for line in directory.metrics_jsonl.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))


def test_a_tracker_that_is_named_later_gets_what_comes_then(tmp_path, service):
    directory = RunDirectory(tmp_path)
    session(directory, range(1, 5), report_to="none")
    session(directory, range(3, 7)).close()
    assert service.runs == {"run 0": expected(range(3, 7))}
    assert service.ends == [False], "not done"


@pytest.mark.parametrize("action", ["report", "flush", "close"])
def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(tmp_path, service, caplog, action):
    directory = RunDirectory(tmp_path)
    tracker = session(directory, range(1, 2), report_to="wandb,tensorboard")
    service.broken = action
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            tracker.log({"step": step, "epoch": 1, "loss": 0.0})
            tracker.flush()
        tracker.close(done=True)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: wandb failed (no route) and is told nothing more; metrics.jsonl has all"
    ]
    assert len(directory.metrics_jsonl.read_text().splitlines()) == 3
    assert len(EventAccumulator(str(directory.tensorboard)).Reload().Scalars("train/loss")) == 3


def test_a_full_disk_under_tensorboard_is_the_runs_own_fault(tmp_path, monkeypatch):
    tracker = session(RunDirectory(tmp_path), range(1, 2), report_to="tensorboard")
    (reporter,) = tracker._reporters.values()
    monkeypatch.setattr(reporter, "report", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        tracker.log({"step": 2, "epoch": 1, "loss": 0.0})


def test_a_tracker_that_cannot_be_started_is_one_line(tmp_path, service):
    service.broken = "start"
    with pytest.raises(SettingError, match=r"report_to: wandb cannot be started \(no route\); set it up, or leave it"):
        session(RunDirectory(tmp_path), range(1, 2))
    assert not RunDirectory(tmp_path).trackers_json.exists()
