"""scripts/ray_slurm.sh with stand-ins for SLURM, Ray and the study: who is started where, and what signals do."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PYTHON = """#!/usr/bin/env bash
case "$*" in
  *sys.prefix*) echo "$VIRTUAL_ENV" ;;
  *"import ray"*) exit "${NO_RAY:-0}" ;;
  "-m experiments"*)
    echo "study $*" >>"$CALLS"
    trap 'echo usr1 >>"$CALLS"; sleep 0.3; exit 75' USR1
    trap 'echo term >>"$CALLS"; exit 75' TERM
    if [[ -n $QUICK ]]; then until grep -q '^ray.*--address' "$CALLS"; do sleep 0.05; done; exit 0; fi
    while :; do sleep 0.05; done ;;
esac
"""
# The head answers on its port; the others only say that they were started.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "srun $1" >>"$CALLS"; shift; done
echo "ray ${*:5}" >>"$CALLS"
[[ $* == *--head* ]] || exec sleep 60
exec $REAL_PYTHON -c "import socket, time; s = socket.create_server(('127.0.0.1', $PORT)); time.sleep(60)"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '%s\\n' n1 n2 n3; else echo "scontrol $*" >>"$CALLS"; fi
"""


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the script as SLURM would."""
    for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "venv.sh").write_bytes((ROOT / "scripts" / "venv.sh").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def start(**more: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"), "REAL_PYTHON": sys.executable, "QUICK": "",
            "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_ON_NODE": "4", "HEAD_IP": "127.0.0.1", "PORT": str(port), **more,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "ray_slurm.sh"), "--encoder", "bert-base-uncased"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_a_head_the_other_nodes_and_one_study(tmp_path: Path, submit: Callable[..., subprocess.Popen[str]]) -> None:
    job = submit(QUICK="1")
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors) == (0, "")
    made = calls(tmp_path)
    head = next(line for line in made if "--head" in line)
    assert head.startswith("ray ")
    assert "--disable-usage-stats" in head
    assert {"srun --nodelist=n1", "srun --exclude=n1", "srun --nodes=1", "srun --nodes=2"} <= set(made)
    (study,) = [line for line in made if line.startswith("study")]
    assert study.startswith("study -m experiments.study --launcher ray --address 127.0.0.1:")
    assert study.endswith("--encoder bert-base-uncased")
    assert not any("requeue" in line for line in made)


@pytest.mark.parametrize(
    ("sent", "heard", "requeued"), [(signal.SIGUSR1, "usr1", True), (signal.SIGTERM, "term", False)]
)
def test_signals_reach_the_study_and_only_the_time_limit_requeues(
    tmp_path: Path, submit: Callable[..., subprocess.Popen[str]], sent: signal.Signals, heard: str, requeued: bool
) -> None:
    job = submit()
    deadline = time.monotonic() + 30
    while not any(line.startswith("study") for line in calls(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # for the traps on both sides
    job.send_signal(sent)
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors) == (75, "")
    assert heard in calls(tmp_path)
    assert ("scontrol requeue 7" in calls(tmp_path)) == requeued


def test_what_is_missing_is_one_line(submit: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    for more, message in (
        ({"SLURM_JOB_ID": ""}, "error: not inside a SLURM job; submit it: sbatch scripts/ray_slurm.sh ...\n"),
        ({"SLURM_SUBMIT_DIR": "/"}, "error: / is not the project's folder; run sbatch there\n"),
        (
            {"NO_RAY": "1"},
            f"error: ray is not installed in {tmp_path}; pip install -r requirements-ray.txt on the login node\n",
        ),
    ):
        job = submit(**more)
        assert (job.communicate(timeout=30)[1], job.returncode) == (message, 2)
    assert calls(tmp_path) == []
