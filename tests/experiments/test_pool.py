import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.study.launch import pool as pool_module
from experiments.study.launch import worker as worker_module
from experiments.study.launch.crew import LocalCrew
from experiments.study.launch.job import Job
from experiments.study.launch.pool import Pool, Report
from experiments.study.launch.slots import Slot, usable_cores
from experiments.study.launch.worker import Advanced, Died, Ended, Message, Outcome, Ready
from mt_dnn.config import RunConfig
from mt_dnn.run_directory import RunDirectory
from tests.experiments.fake_runs import behave, calls, fake_run, finished_run, make_result
from tests.experiments.pool_jobs import Recorder, make_jobs

ROOT = Path(__file__).resolve().parents[2]


def job_with_data(folder: Path) -> Job:
    for split in ("train", "dev"):
        (folder / f"cola_{split}.tsv").write_text("1\t1\tsome words\n" * 4)
    (folder / "runs").mkdir()
    (job,) = make_jobs(folder / "runs", seeds=1)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, task_def=GLUE_TASK_DEF, data_dir=folder))


def compute(jobs: list[Job], workers: int = 1) -> tuple[Report, Recorder]:
    display = Recorder()
    return Pool(LocalCrew(fake_run, [Slot("cpu", 1)] * workers), display).compute(jobs), display


def done(job: Job) -> bool:
    result = RunDirectory(job.folder).read_result()
    return result is not None and result.done


def test_runs_all_costliest_first_in_one_kept_worker(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, seeds=3)
    report, display = compute(jobs)
    assert report.done == 3
    assert not report.failures
    assert not report.stopped
    lines = [line.split() for line in calls(tmp_path)]
    assert [line[2] for line in lines] == ["3", "2", "1"]
    assert len({line[3] for line in lines}) == 1, "the worker should be kept between runs"
    assert {tuple(line[4:]) for line in lines} == {("cpu", "1")}
    assert display.steps[jobs[0].label] == 3
    assert all(map(done, jobs))


def test_a_failing_run_is_reported_and_the_rest_go_on(tmp_path: Path) -> None:
    behave(tmp_path, seed_2="raise", seed_3="setting")
    report, _ = compute(make_jobs(tmp_path, seeds=3))
    assert report.done == 1
    assert [(job.config.seed, error) for job, error in report.failures] == [
        (3, "warmup is 2; legal: a share in [0, 1)"),
        (2, "RuntimeError: boom second line"),
    ]
    log = next(tmp_path.glob("**/seed=2/log.txt")).read_text()
    assert "boom" in log
    assert "Traceback" in log
    # A worker with an unknown defect is replaced, one with a mere setting error is not.
    pids = [line.split()[3] for line in calls(tmp_path)]
    assert pids[0] == pids[1] != pids[2]


def test_a_dead_worker_costs_one_retry_and_a_lone_signal_only_a_delay(tmp_path: Path) -> None:
    behave(tmp_path, seed_1="die_once", seed_2="die", seed_3="terminate_once")
    report, display = compute(make_jobs(tmp_path, seeds=3))
    assert report.done == 2
    assert not report.stopped
    assert [job.config.seed for job, _ in report.failures] == [2]
    assert "signal 9" in report.failures[0][1]
    assert [line.split()[2] for line in calls(tmp_path)] == ["3", "3", "2", "2", "1", "1"]
    assert [("once more" in message) for message in display.messages] == [True, True]


def test_a_run_that_another_study_holds_is_awaited_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_LOCKED_SECONDS", 0.5)
    jobs = make_jobs(tmp_path, seeds=1)
    (job,) = jobs
    with RunDirectory(job.folder).lock():
        thread_report: list[Report] = []
        pool = Pool(LocalCrew(fake_run, [Slot("cpu", 1)]), Recorder())
        thread = threading.Thread(target=lambda: thread_report.append(pool.compute(jobs)))
        thread.start()
        # The worker has found the lock, and the pool has put the run back, at least once.
        wait_for(lambda: bool(pool._later))
        assert thread.is_alive(), "the pool should wait for the other study"
        RunDirectory(job.folder).write_result(make_result(job.config, 70.0, 69.0))
    thread.join(timeout=30)
    assert thread_report[0].done == 1
    assert calls(tmp_path) == [], "the other study's result should be taken"


def test_two_studies_at_once_share_the_runs(tmp_path: Path, study: Callable[..., subprocess.Popen[str]]) -> None:
    first = study("brief", wait=False)
    second = study("brief", wait=False)
    for process in (first, second):
        output, errors = process.communicate(timeout=60)
        assert output.split() == ["stopped", "False", "done", "3", "killed", "False"], errors
    made = [line.split()[2] for line in calls(tmp_path / "runs")]
    assert sorted(made) == ["1", "2", "3"], "each run once"


@pytest.mark.parametrize(("workers", "advised"), [(1, False), (2, True)])
def test_workers_that_fill_a_shared_device_get_advice(tmp_path: Path, workers: int, advised: bool) -> None:
    behave(tmp_path, seed_1="memory")
    report, _ = compute(make_jobs(tmp_path, seeds=2), workers)
    ((job, error),) = report.failures
    assert job.config.seed == 1
    assert "out of memory" in error
    assert error.endswith("; try fewer --workers_per_device") == advised


def test_a_worker_gives_the_gpu_memory_of_a_finished_run_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hooked:
        """Holds itself, as an optimizer and its hooks do."""

        def __init__(self) -> None:
            self.itself = self

    emptied: list[bool] = []
    cycle = weakref.ref(Hooked())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(cycle() is None))
    worker_module._free_memory()
    assert emptied == []  # CUDA was never used here, and must not be started for this
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    worker_module._free_memory()
    assert emptied == [True]


def test_a_run_that_another_study_finished_on_other_data_is_not_taken(tmp_path: Path) -> None:
    job = job_with_data(tmp_path)
    fake_run(job.config)

    def take() -> Report:
        return Pool(LocalCrew(finished_run, [Slot("cpu", 1)]), Recorder()).compute([job])

    assert take().done == 1
    (tmp_path / "cola_dev.tsv").write_text("1\t0\tsome words\n" * 4)
    ((_, error),) = take().failures
    assert error.startswith("cola_dev.tsv is not what ")


def test_usable_cores_is_positive() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


PROGRAM = """
import sys
from pathlib import Path
from experiments.study.launch import pool as pool_module
from experiments.study.launch.crew import LocalCrew
from experiments.study.launch.pool import Pool
from experiments.study.launch.slots import Slot
from tests.experiments.fake_runs import fake_run
from tests.experiments.pool_jobs import Recorder, make_jobs

if __name__ == "__main__":
    pool_module._LOCKED_SECONDS = 0.3
    pool = Pool(LocalCrew(fake_run, [Slot("cpu", 1)] * int(sys.argv[2])), Recorder())
    report = pool.compute(make_jobs(Path(sys.argv[1]), seeds=3))
    print("stopped", report.stopped, "done", report.done, "killed", pool.killed)
"""


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a pool in a process group of its own and wait until it is in the middle of slow runs."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    runs = tmp_path / "runs"

    def start(rule: str = "slow", workers: int = 1, wait: bool = True) -> subprocess.Popen[str]:
        behave(runs, all=rule)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            [sys.executable, str(script), str(runs), str(workers)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if wait:
            wait_for(lambda: len(calls(runs)) == workers, process)
        return process

    return start


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def worker_pids(runs: Path) -> list[int]:
    return [int(line.split()[3]) for line in calls(runs)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose new parent does not collect it is dead all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_ctrl_c_stops_the_workers_with_checkpoints(tmp_path: Path, study: Callable[..., subprocess.Popen[str]]) -> None:
    process = study(workers=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output, errors = process.communicate(timeout=60)
    assert output.split() == ["stopped", "True", "done", "0", "killed", "False"], errors
    assert len(list(tmp_path.glob("runs/**/checkpoint"))) == 2
    assert len(calls(tmp_path / "runs")) == 2, "the third run should not start"
    assert not any(map(is_alive, worker_pids(tmp_path / "runs")))
    assert "Traceback" not in errors


def test_no_orphans_when_the_pool_is_killed(tmp_path: Path, study: Callable[..., subprocess.Popen[str]]) -> None:
    process = study()
    process.kill()
    process.communicate(timeout=60)
    pids = worker_pids(tmp_path / "runs")
    wait_for(lambda: not any(map(is_alive, pids)), seconds=30)
    assert len(list(tmp_path.glob("runs/**/checkpoint"))) == 1, "orphans should write a checkpoint before they stop"


def test_a_second_ctrl_c_kills(tmp_path: Path, study: Callable[..., subprocess.Popen[str]]) -> None:
    process = study("stubborn")
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None, "the first Ctrl-C should wait for checkpoints"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert output.split()[-1] == "True"
    assert not any(map(is_alive, worker_pids(tmp_path / "runs")))


class Clockwork:
    """A crew of one worker that says what it is told to say, each a number of seconds later."""

    summary = advice = needs = logs = ""

    def __init__(self, clock: list[float], script: list[tuple[float, Message]]) -> None:
        self.slot, self._clock, self._script = Slot("cpu", 1), clock, script
        self._hired = self._silences = 0

    def hire(self, wanted: int) -> list["Clockwork"]:
        self._hired += 1
        return [self] if self._hired == 1 or isinstance(self._last, Died) else []

    def wait(self, seconds: float) -> list["Clockwork"]:
        return [self]

    def hear(self) -> list[Message]:
        if not self._script:
            self._silences += 1
            assert self._silences < 10, "the pool waits for more than there is to be said"
            return []
        seconds, self._last = self._script.pop(0)
        self._clock[0] += seconds
        return [self._last]

    def take(self, config: RunConfig, folder: Path) -> None: ...

    def shares(self, worker: object) -> bool:
        return False

    release = dismiss = close = ask_to_stop = lambda self: None


def test_a_run_takes_from_when_its_worker_took_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: clock[0])
    done = Ended(Outcome.DONE, "ok", 60.0)
    script: list[tuple[float, Message]] = [
        (9.0, Ready()), (114.0, Advanced(1, 3)), (3.0, done),
        # The second run's worker dies after 50 s; the next one needs 20 s more.
        (50.0, Died("signal 9")), (7.0, Ready()), (20.0, done),
    ]  # fmt: skip
    display = Recorder()
    report = Pool(Clockwork(clock, script), display).compute(make_jobs(tmp_path))  # type: ignore[arg-type]
    assert report.done == 2
    assert [ended.seconds for _, ended in display.ends] == [117.0, 70.0]
    assert [label.split()[-1] for label in display.taken] == ["seed=2", "seed=1", "seed=1"]
    assert [label.split()[-1] for label in display.waiting] == ["seed=1"]


def test_a_result_of_another_study_has_no_time_of_ours(tmp_path: Path) -> None:
    job = job_with_data(tmp_path)
    fake_run(job.config)
    display = Recorder()
    Pool(Clockwork([0.0], [(0.0, Ready())]), display).compute([job])  # type: ignore[arg-type]
    assert [ended.seconds for _, ended in display.ends] == [None]
