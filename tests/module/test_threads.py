"""Numbers do not depend on threads or processes; the kernel compiles quietly wherever it is put."""

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from module.bert_optim import PATSAdamax, SAGEAdamax
from tests.module.models import assert_same_bits, make_parameters, train

ROOT = Path(__file__).resolve().parents[2]
# More than one chunk of 256 blocks in one tensor, and a chunk that ends inside another.
SHAPES = {
    "embeddings.word_embeddings.weight": (3001, 100),
    "encoder.layer.0.output.dense.weight": (1500, 700),
    "encoder.layer.0.output.dense.bias": (1500,),
    "encoder.layer.1.output.dense.weight": (777, 333),
}


def run(threads, make):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parameters = make_parameters(shapes=SHAPES)
        return train(parameters, make(parameters.items()), 3)
    finally:
        torch.set_num_threads(before)


def pats(named):
    return PATSAdamax(named, 1e-3, sensitivity_threshold=3e-6)


@pytest.mark.parametrize("make", [pats, lambda named: SAGEAdamax(named, 1e-3)], ids=["pats", "sage"])
def test_any_number_of_threads_gives_the_same_bits(make):
    one = run(1, make)
    for threads in (2, 3, 7):
        assert_same_bits(one, run(threads, make))


def test_a_forked_process_makes_its_own_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parameters = make_parameters(shapes=SHAPES)
        optimizer = pats(parameters.items())
        train(parameters, optimizer, 1)
        for parameter in parameters.values():
            parameter.data.share_memory_()
        train(parameters, optimizer, 1)  # threads are there now, and the state is
        # The child does nothing but the step: torch's own loops hang after a fork.
        child = multiprocessing.get_context("fork").Process(target=optimizer.step)
        child.start()
        child.join(60)
        if child.is_alive():
            child.kill()
        assert child.exitcode == 0
        again = make_parameters(shapes=SHAPES)
        other = pats(again.items())
        train(again, other, 1)
        train(again, other, 1)
        other.step()
        assert_same_bits(again, parameters)
    finally:
        torch.set_num_threads(before)


STEPS = """
import hashlib, numpy as np, torch
from module.bert_optim import PATSAdamax
draws = np.random.default_rng(0)
p = torch.nn.Parameter(torch.from_numpy(draws.standard_normal((70, 77), np.float32) * np.float32(0.04)))
optimizer = PATSAdamax([("encoder.layer.0.output.dense.weight", p)], 1e-3, sensitivity_threshold=3e-6)
for _ in range(3):
    p.grad = torch.from_numpy(draws.standard_normal((70, 77), np.float32) * np.float32(1e-4))
    optimizer.step()
print(hashlib.sha256(p.detach().numpy().tobytes()).hexdigest())
"""


def steps(folder, **changes):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", STEPS],
        cwd=folder, env=environment | changes, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plainest(tmp_path_factory):
    """Steps of a package that cannot be written, compiled for the plainest processor: one compilation for two tests."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "module", folder / "module", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("module", "module/kernels"):
        (folder / name / "__pycache__").write_text("not a folder")
    blocked = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    return steps(folder, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", **blocked)


def test_a_package_that_cannot_be_written_compiles_without_a_word(plainest):
    assert (plainest.stderr, plainest.returncode) == ("", 0)


def test_code_for_the_plainest_processor_gives_the_same_bits(plainest):
    with redirect_stdout(io.StringIO()) as here:
        exec(STEPS, {})
    assert plainest.stdout == here.getvalue() != ""
