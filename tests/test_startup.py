"""Slow libraries are imported where they are needed: command lines answer at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "ray", "transformers", "numba", "scipy", "sklearn", "pandas", "matplotlib", "tensorboard"]
RUN = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("status", end.code, file=sys.stderr)
print("imported", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("train.py --help", 0),
        ("train.py --nonsense 3", 2),
        ("train.py --method sage --sage.sensitivity_beta 2", 2),
        ("prepro_std.py --help", 0),
        ("-m experiments.study --help", 0),
        ("-m experiments.study --encoder bert-base-uncased --devices cpu --dry_run --data_dir nowhere", 2),
        ("-m experiments.glue.figure2 --help", 0),
        ("-m experiments.glue.figure3 --encoder bert-base-uncased --shares 0", 2),
        ("-m experiments.study.tables --help", 0),
        ("-m experiments.study.tables nowhere", 2),
        ("-m experiments.study.significance --help", 0),
        ("-m experiments.study.significance nowhere", 2),
        ("-m experiments.study.archive --help", 0),
        ("-m experiments.study.archive pack nowhere runs.tar.xz", 2),
        ("-m mt_dnn.trained.export --help", 0),
        ("predict.py --help", 0),
        ("-m experiments.study.report --help", 0),
        ("-m experiments.study.report nowhere", 2),
    ],
)
def test_help_and_mistakes_need_no_slow_library(command: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, ended, imported = done.stderr.splitlines()
    assert ended == f"status {status}"
    assert imported.split() == ["imported"]


def test_numba_waits_for_the_first_step_on_the_cpu() -> None:
    run = """
import sys, torch
from module import PATS, PATSAdamax, SAGEAdamax, noisytune
parameter = torch.nn.Parameter(torch.ones(4, 4))
optimizer = PATSAdamax([("encoder.layer.0.output.dense.weight", parameter)], 1e-3)
before = "numba" in sys.modules
parameter.grad = torch.ones(4, 4)
optimizer.step()
print(before, "numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
