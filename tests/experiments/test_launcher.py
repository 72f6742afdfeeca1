import fcntl
import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.errors import SettingError
from experiments.study.__main__ import main
from experiments.study.launch import ray_crew as ray_module
from experiments.study.launch.ray_crew import Share, ray_crew
from experiments.study.launch.ray_host import Ground
from experiments.study.launch.slots import Slot
from experiments.study.launch.stopping import study_status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--address auto", "--address is for --launcher ray; drop it or add --launcher ray"),
        ("--gpus_per_run 0.5", "--gpus_per_run is for --launcher ray; drop it or add --launcher ray"),
        ("--retries -1", "--retries is -1; legal: an integer >= 0"),
        ("--launcher ray --gpus_per_run 1.5", "--gpus_per_run is 1.5; legal: a share in (0, 1]"),
        ("--launcher ray --gpus_per_run 0", "--gpus_per_run is 0.0; legal: a share in (0, 1]"),
        ("--launcher ray --cpus_per_run 0", "--cpus_per_run is 0; legal: an integer in [1, 1024]"),
        (
            "--launcher ray --devices 0,1",
            "--devices 0,1: Ray picks the devices; legal with --launcher ray: auto, cpu",
        ),
        (
            "--launcher ray --devices cpu --gpus_per_run 1",
            "--devices cpu and --gpus_per_run 1.0 contradict each other; drop one",
        ),
        (
            "--launcher ray --workers_per_device 4",
            "--workers_per_device is for --launcher local; with ray give --gpus_per_run 0.25 or --cpus_per_run",
        ),
        (
            "--launcher ray --address ray://head:10001",
            "--address ray://head:10001: legal: auto, or host:port of the cluster's head; start the study on one of "
            "the cluster's nodes",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_named(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--encoder", "all-MiniLM-L6-v2", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_without_ray_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["--encoder", "all-MiniLM-L6-v2", "--launcher", "ray"]) == 2
    error = "error: --launcher ray: ray is not installed; pip install -r requirements-ray.txt\n"
    assert capsys.readouterr().err == error


@given(cpus=st.integers(1, 8), parts=st.integers(0, 16), cores=st.integers(0, 128), gpus=st.integers(0, 16))
def test_a_node_is_never_promised_more_than_it_has(cpus: int, parts: int, cores: int, gpus: int) -> None:
    share = Share(cpus, 1 / parts if parts else 0.0)
    room = share.room({"CPU": float(cores), "GPU": float(gpus)} if gpus else {"CPU": float(cores)})
    assert room * cpus <= cores
    assert room <= gpus * parts or not parts
    assert room == min(cores // cpus, gpus * parts) if parts else room == cores // cpus
    assert share.slot == Slot("cuda:0" if parts else "cpu", cpus)


def test_a_share_that_fits_a_gpu_once_is_not_joined_from_two() -> None:
    assert Share(1, 0.6).room({"CPU": 64.0, "GPU": 4.0}) == 4


def test_a_node_must_see_the_folders_and_the_lock_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    ground = Ground(tmp_path, Path("runs"), (Path("data"),))
    with pytest.raises(
        SettingError, match=r"^--output_dir: node \S+ cannot open .*lock \(No such file.* every node has"
    ):
        ground.check()
    (tmp_path / "runs").mkdir()
    with (tmp_path / ground.probe).open("a+b") as held:
        with pytest.raises(SettingError, match=r"^--output_dir: node \S+ does not see the lock that the study holds"):
            ground.check()
        fcntl.flock(held, fcntl.LOCK_SH)  # two studies may hold it
        ground.check()
        ground.check()
    with pytest.raises(SettingError, match=r"^node \S+ has no folder elsewhere; put it on storage that every node has"):
        Ground(tmp_path, Path("runs"), (Path("elsewhere"),)).check()


@pytest.fixture
def deaf() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def connect(address: str, tmp_path: Path) -> None:
    with ray_crew(print, Ground(Path.cwd(), tmp_path), address, None, 1):
        pytest.fail("there is no cluster")


def test_a_cluster_that_does_not_answer_is_given_up_in_time(
    tmp_path: Path, deaf: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")
    monkeypatch.setattr(ray_module, "_CONNECT_SECONDS", 0.5)
    said = rf"^--address 127.0.0.1:{deaf}: no Ray cluster has answered within 0 s; start a cluster with ray start"
    with pytest.raises(SettingError, match=said):
        connect(f"127.0.0.1:{deaf}", tmp_path)
    assert capfd.readouterr() == ("", ""), "Ray's own warnings are not for the user"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(SettingError, match=r"Connection refused; start a cluster with ray start --head, or give"):
            connect(f"127.0.0.1:{closed.getsockname()[1]}", tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_it_connects_ends_the_study(
    tmp_path: Path, deaf: int, number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")

    def press() -> int:
        timer.start()
        connect(f"127.0.0.1:{deaf}", tmp_path)
        return 0

    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    assert study_status(press) == status
    assert capsys.readouterr().err == "stopped; the same command goes on\n"
