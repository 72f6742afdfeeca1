"""The parts of the benchmark that need no GPU."""

import subprocess
import sys
from dataclasses import replace

import torch

from benchmarks import cuda_pass
from mt_dnn.data import open_datasets


def test_both_kinds_of_a_step_take_turns(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cuda_pass, "on_device", lambda turn, steps: {"kernels": 7 * steps, "busy_ms": 0.5})
    config = replace(tiny_run(), train_size=32)
    found = cuda_pass.measure(config, open_datasets(config), rounds=2)
    for kind in cuda_pass.KINDS:
        assert 0 < found[kind]["host_ms"]["median"] <= found[kind]["step_ms"]["median"]
        assert found[kind]["kernels"] == 14  # two steps of 16 rows
    cuda_pass.show("toy", "vanilla", found)
    assert "recorded is" in capsys.readouterr().out


def test_without_a_gpu_it_says_so():
    ended = subprocess.run(
        [sys.executable, "-c", "import torch\ntorch.cuda.is_available = lambda: False\n"
         "import sys; sys.argv = ['cuda_pass']\nfrom benchmarks.cuda_pass import main\nsys.exit(main())"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "needs a CUDA device" in ended.stderr
