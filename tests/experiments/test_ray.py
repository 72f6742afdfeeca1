"""The pool on a real Ray cluster of several nodes on this machine; see test_pool.py for one without."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.study import study
from experiments.study.__main__ import main
from experiments.study.launch import pool, slots
from experiments.study.launch.pool import Pool, PoolError
from experiments.study.launch.ray_crew import ray_crew
from experiments.study.launch.ray_host import SharedStorage
from mt_dnn.run_directory import RunDirectory
from tests.experiments.fake_runs import behave, calls, fake_run
from tests.experiments.pool_jobs import Recorder, make_jobs
from tests.experiments.ray_runs import GATE, gated_run, spy_run
from tests.experiments.test_pool import is_alive, wait_for, worker_pids

pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing; tests add nodes and take them away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Else every study that connects makes each node start idle processes, of which actors with variables take none.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 they wait for every other test
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def node(cluster: Any) -> Iterator[Any]:
    """Two CPUs and, as far as Ray is concerned, a GPU."""
    added = cluster.add_node(num_cpus=2, num_gpus=1)
    yield added
    cluster.remove_node(added, allow_graceful=False)


def test_deaths_failures_and_locks_end_as_on_one_machine(
    tmp_path: Path, cluster: Any, node: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_LOCKED_SECONDS", 0.3)
    behave(tmp_path, seed_1="die_once", seed_2="die", seed_3="setting")
    display, jobs = Recorder(), make_jobs(tmp_path, seeds=5)

    def another_study() -> None:
        with RunDirectory(jobs[4].folder).lock():
            held.set()
            wait_for(lambda: len(calls(tmp_path)) >= 3)

    held = threading.Event()
    other = threading.Thread(target=another_study)
    other.start()
    held.wait()
    with ray_crew(spy_run, SharedStorage(Path.cwd(), tmp_path), cluster.address, 0.5, 1) as crew:
        assert crew.summary == "2 at a time on 1 Ray nodes, 1 CPU and 0.5 GPU each"
        report = Pool(crew, display, retries=1).compute(jobs)
    other.join()
    assert report.done == 3
    assert {(job.config.seed, error.partition(";")[0]) for job, error in report.failures} == {
        (2, "its worker died twice (signal 9)"), (3, "warmup is 2"),
    }  # fmt: skip
    made = [line.split()[2] for line in calls(tmp_path)]
    assert sorted(made) == ["1", "1", "2", "2", "3", "4", "5"]
    assert made.index("5") >= 3, "a run that another study holds should wait, though it is the costliest"
    assert {tuple(line.split()[4:]) for line in calls(tmp_path)} == {("cuda:0", "1")}
    assert set((tmp_path / "environment.txt").read_text().splitlines()) == {f"0 1 {Path.cwd()}"}
    assert display.steps == {job.label: 3 for job in jobs if job.config.seed not in (2, 3)}
    assert capfd.readouterr() == ("", ""), "Ray should be silent"
    assert not any(map(is_alive, worker_pids(tmp_path)))


def test_a_node_without_the_studys_folders_is_named(tmp_path: Path, cluster: Any, node: Any) -> None:
    storage = SharedStorage(Path.cwd(), tmp_path, (Path("nowhere/canonical_data"),))
    with (
        ray_crew(fake_run, storage, cluster.address, None, 1) as crew,
        pytest.raises(PoolError, match=r"^node \S+ has no folder nowhere/canonical_data; put it on"),
    ):
        Pool(crew, Recorder()).compute(make_jobs(tmp_path))
    assert calls(tmp_path) == []


@pytest.mark.parametrize(("rule", "killed"), [("slow", False), ("stubborn", True)])
def test_ctrl_c_asks_for_checkpoints_and_a_second_kills(
    tmp_path: Path, cluster: Any, node: Any, rule: str, killed: bool
) -> None:
    behave(tmp_path, all=rule)

    def press() -> None:
        wait_for(lambda: len(calls(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGINT)
        if killed:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGINT)

    display = Recorder()
    fingers = threading.Thread(target=press)
    with ray_crew(fake_run, SharedStorage(Path.cwd(), tmp_path), cluster.address, 0.0, 1) as crew:
        made = Pool(crew, display)
        fingers.start()
        report = made.compute(make_jobs(tmp_path, seeds=3))
    fingers.join()
    assert (report.stopped, report.done, made.killed) == (True, 0, killed)
    assert len(calls(tmp_path)) == 2, "the third run should not start"
    assert len(list(tmp_path.glob("**/checkpoint"))) == (0 if killed else 2)
    assert not any(map(is_alive, worker_pids(tmp_path)))


RECIPE = """
encoder: {encoder}
method: {method}
source: a test
settings:
  epochs: 4
  batch_size: 16
  learning_rate: 3.0e-2
  precision: fp32
  tensorboard: false
  checkpoint_seconds: 0
  log_per_updates: 1
  save: none
tasks: {{toy: {{}}}}
"""


@pytest.mark.usefixtures("forked_workers")  # of the local study; Ray's hosts spawn theirs
def test_a_node_killed_in_mid_run_changes_nothing_in_the_table(
    tmp_path: Path, cluster: Any, node: Any, tiny_encoder: Path, tiny_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("vanilla", "pats"):
        (tmp_path / f"{method}.yml").write_text(RECIPE.format(encoder=tiny_encoder, method=method))

    def arguments(launcher: str, *more: str) -> list[str]:
        return [
            "--recipes", f"{tmp_path / 'vanilla.yml'},{tmp_path / 'pats.yml'}", "--seeds", "2", "--devices", "cpu",
            "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--name", "table",
            "--output_dir", str(tmp_path / launcher), "--results_dir", str(tmp_path / launcher),
            "--launcher", launcher, *more,
        ]  # fmt: skip

    def disaster() -> None:
        in_the_middle = f"ray/**/checkpoints/last-{GATE - 1:08d}"
        try:
            wait_for(lambda: len(list(tmp_path.glob("ray/waiting-*"))) == 3, seconds=120)
            assert len(list(tmp_path.glob(in_the_middle))) == 3
            cluster.remove_node(victim, allow_graceful=False)
            # A worker lives on for a moment after its node, on a busy machine long enough to end its run.
            workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("ray/waiting-*")]
            wait_for(lambda: not all(map(is_alive, workers)), seconds=60)
        finally:
            (tmp_path / "ray" / "gate").touch()

    monkeypatch.setattr(study, "_figures", lambda table, out: [])  # seconds for nothing that Ray could change
    victim = cluster.add_node(num_cpus=1)
    thread = threading.Thread(target=disaster)
    thread.start()
    assert main(arguments("ray", "--address", cluster.address), run=gated_run) == 0
    thread.join()
    monkeypatch.setattr(slots, "usable_cores", lambda: 1)  # one thread, as on Ray
    assert main(arguments("local")) == 0

    sessions = []
    for folder in sorted(path.parent for path in tmp_path.glob("local/**/result.json")):
        there, here = folder, tmp_path / "ray" / folder.relative_to(tmp_path / "local")
        expected, found = RunDirectory(there).read_result(), RunDirectory(here).read_result()
        assert expected is not None
        assert found is not None
        sessions.append(found.sessions)
        same = {"seconds": 0.0, "sessions": 1}
        assert dataclasses.replace(found, **same) == dataclasses.replace(expected, **same)  # type: ignore[arg-type]
        # A line per step: none is lost, none is there twice.
        assert (here / "metrics.jsonl").read_bytes() == (there / "metrics.jsonl").read_bytes()
        with np.load(here / "predictions.npz") as ours, np.load(there / "predictions.npz") as theirs:
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)
    assert len(sessions) == 4
    assert sorted(sessions) == [1, 1, 1, 2], "the lost node's run, and only it, should go on from its checkpoint"
    for table in ("table.md", "table.csv", "table_seeds.csv"):
        assert (tmp_path / "ray" / "table" / table).read_bytes() == (tmp_path / "local" / "table" / table).read_bytes()
