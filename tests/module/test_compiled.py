"""Regions of compiled code: every block once, on any threads, in torch's runtime or beside it, cached by content."""

import ast
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import carray

from module.kernels import threads as threads_module
from module.kernels.compiled import integers_at, job_at, next_chunk, region
from tests.child import Child
from tests.first_use import regions
from tests.module.models import assert_same_bits, make_parameters, train
from tests.module.test_threads import pats

ROOT = Path(__file__).resolve().parents[2]
# Several chunks in all, but so small that torch itself stays on one thread: its own loops hang after a fork.
SHAPES = {f"encoder.layer.{i}.output.dense.weight": (100, 200) for i in range(10)}


@region(("counts", np.int64))
def count(jobs):
    """Add one to each block's count."""
    job = job_at(jobs)
    counts = carray(integers_at(job.counts), (job.blocks,))
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for block in range(first, last):
            counts[block] += 1


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["torch's runtime", "pool"])
def runtime(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(threads_module, "_parallel", lambda: None)
    elif threads_module._parallel() is None:
        pytest.skip("torch's runtime has no GOMP_parallel here")


@pytest.mark.usefixtures("threads", "runtime")
@pytest.mark.parametrize("blocks", [0, 1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("chunk", [1, 2, 3, 64, 5000])
def test_every_block_is_done_once(blocks, chunk):
    counts = np.zeros(max(blocks, 1), np.int64)
    for times in range(1, 4):
        count(blocks, chunk, counts.ctypes.data)
        assert (counts[:blocks] == times).all()
    assert blocks or counts[0] == 0


def stepped(steps=1):
    parameters = make_parameters(shapes=SHAPES)
    return train(parameters, pats(parameters.items()), steps)


def test_the_pool_gives_the_same_bits(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = stepped()
        torch.set_num_threads(5)
        monkeypatch.setattr(threads_module, "_parallel", lambda: None)
        monkeypatch.setattr(threads_module, "_pools", {})
        assert_same_bits(expected, stepped())
        assert threads_module._pools  # it ran there
    finally:
        torch.set_num_threads(before)


FORKED = """
import multiprocessing, sys, torch
from tests.module.models import make_gradients, set_gradients
from tests.module.test_compiled import SHAPES, make_parameters, pats
torch.set_num_threads(2)
kernels_before = sys.argv[1] == "kernels"
parameters = make_parameters(shapes=SHAPES)
optimizer = pats(parameters.items())
set_gradients(parameters, make_gradients(1, SHAPES))
if kernels_before:
    optimizer.step()
torch.randn(1000, 1000) @ torch.randn(1000, 1000)  # torch's threads are there now
for p in parameters.values():
    p.data.share_memory_()
child = multiprocessing.get_context("fork").Process(target=optimizer.step)
before = [p.detach().clone() for p in parameters.values()]
child.start()
child.join(30)
if child.is_alive():
    child.kill()
    sys.exit("the child hangs")
assert child.exitcode == 0
torch.set_num_threads(1)
other = make_parameters(shapes=SHAPES)
again = pats(other.items())
set_gradients(other, make_gradients(1, SHAPES))
for _ in range(2 if kernels_before else 1):
    again.step()
assert not any(map(torch.equal, before, parameters.values()))
assert all(map(torch.equal, other.values(), parameters.values()))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
@pytest.mark.parametrize("first", ["kernels", "torch"])
def test_a_forked_child_steps_whatever_ran_in_its_parent(tmp_path, first):
    """GNU OpenMP hangs in a child whose parent had threads, torch's among them."""
    (tmp_path / "forked.py").write_text(FORKED, encoding="utf-8")
    done = Child([tmp_path / "forked.py", first], starts_others=True).wait()
    assert (done.returncode, done.stderr) == (0, "")


KERNELS = Path("module/kernels")


def sources():
    """The files of compiled code, and those whose functions, tables and constants it takes in."""
    own = {*(ROOT / KERNELS).glob("cpu*.py"), ROOT / KERNELS / "compiled.py"}
    nodes = [node for path in own for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    taken = {
        (ROOT / KERNELS if node.level == 1 else ROOT / KERNELS.parent) / f"{node.module}.py"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.level
    }
    return sorted(path.relative_to(ROOT) for path in own | taken if path.name != "threads.py")


def test_every_region_is_compiled_before_the_tests():
    written = [path.read_text(encoding="utf-8").count("\n@region(") for path in (ROOT / KERNELS).glob("cpu*.py")]
    assert len(set(map(id, regions()))) == sum(written) > 10


NAMES = """
import importlib, sys
from pathlib import Path
from module.kernels import compiled
def name():
    def function(): pass
    return importlib.reload(compiled).region()(function)._function.__qualname__
print(name())
for path in map(Path, sys.argv[1:]):
    text = path.read_text()
    path.write_text(text + "\\n# changed\\n")
    print(name())
    path.write_text(text)
print(name())
"""


def test_cached_code_is_not_that_of_other_sources(tmp_path):
    """numba looks at the file of the kernel alone."""
    shutil.copytree(ROOT / "module", tmp_path / "module", ignore=shutil.ignore_patterns("__pycache__"))
    assert {"cpu.py", "cpu_layers.py", "cpu_stream.py", "compiled.py", "rows.py", "noise.py"} <= {
        path.name for path in sources()
    }
    done = subprocess.run(
        [sys.executable, "-c", NAMES, *map(str, sources())],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    first, *changed, last = done.stdout.split()
    assert first == last
    assert first.startswith("module.kernels.")
    assert [path for path, name in zip(sources(), changed, strict=True) if name == first] == []
