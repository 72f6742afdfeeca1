"""The part of the GPU benchmark that needs none."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.cuda_step import BASELINES, COPY, MODELS, contenders, show, step_bytes, summarise


@pytest.mark.parametrize(
    ("model", "millions", "layers"), [("BERT-base", 109.5, 12 * 16), ("RoBERTa-large", 355.4, 24 * 16)]
)
def test_shapes_and_bytes_are_those_of_the_models(model, millions, layers):
    shapes = MODELS[model]()
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert total / 1e6 == pytest.approx(millions, abs=0.1)
    assert sum(".layer." in name for name in shapes) == layers
    norms = ("LayerNorm.weight", "LayerNorm.bias")
    selected = sum(int(np.prod(s)) for n, s in shapes.items() if ".layer." in n and not n.endswith(norms))
    moved = step_bytes(shapes, 4)
    assert moved["Adamax"] == moved["torch.optim.Adamax"] == 28 * total
    assert moved["PATSAdamax"] == moved["SAGEAdamax"] == 28 * total + 16 * selected  # 44 where there is noise
    assert step_bytes(shapes, 2)["PATSAdamax"] == 22 * total + 12 * selected


def test_summary_from_known_times(capsys):
    seconds = {"PATSAdamax": [2.0, 4.0, 3.0], BASELINES[0]: [2.0, 2.0, 2.0], BASELINES[1]: [1.0, 1.0, 1.0]}
    seconds = {name: np.array(values) for name, values in {**seconds, COPY: [1.0, 1.0, 1.0]}.items()}
    summary = summarise(seconds, {**dict.fromkeys(seconds, 6_000_000_000), COPY: 4_000_000_000})
    assert summary["PATSAdamax"]["over"] == {BASELINES[0]: 1.5, BASELINES[1]: 3.0}
    assert summary["PATSAdamax"]["median_ms"] == 3000
    assert summary["PATSAdamax"]["quartiles_ms"] == [2500, 3500]
    assert summary["PATSAdamax"]["gb_per_s"] == pytest.approx(2.0)
    assert summary["PATSAdamax"]["of_copy_bandwidth"] == pytest.approx(0.5)
    show({"model": "m", "dtype": "fp32", "parameters": 1e6, "tensors": 2, "steps": summary})
    assert "PATSAdamax           3000.000 ms" in capsys.readouterr().out


def test_every_contender_steps():
    shapes = {"bert.encoder.layer.0.output.dense.weight": (3, 5), "bert.pooler.dense.bias": (2,)}
    for name, step in contenders(shapes, torch.float32, torch.device("cpu")).items():
        step()
        assert name in step_bytes(shapes, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cuda_step"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "benchmarks.cuda_step needs a CUDA device, and torch sees none here"
