"""The checks themselves, made of the CPU; kernels for CUDA have stand-ins there."""

import re
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import attended, check_attention, check_dropout, check_method, check_resume, report

CPU = torch.device("cpu")


def right(q, k, v, dropout, scaling, packed):
    assert scaling is None
    assert packed.max_seqlen == max(gpu_check.LENGTHS)
    assert packed.slots is None
    out = attended(q.float(), k.float(), v.float())
    return torch.dropout(out, dropout, True).to(q.dtype)


@pytest.mark.parametrize("dtype", list(gpu_check.TOLERANCE))
def test_attention_is_held_to_float64(monkeypatch, dtype):
    monkeypatch.setattr(gpu_check, "varlen_attention", right)
    assert check_attention(CPU, dtype).endswith("of float64")
    monkeypatch.setattr(gpu_check, "varlen_attention", lambda q, *rest: right(1.2 * q, *rest))
    with pytest.raises(ValueError, match="differs from float64 by"):
        check_attention(CPU, dtype)
    monkeypatch.setattr(gpu_check, "varlen_attention", lambda *_: None)
    with pytest.raises(RuntimeError, match="no kernel takes"):
        check_attention(CPU, dtype)


def test_dropout_is_held_to_its_share_and_its_generator(monkeypatch):
    monkeypatch.setattr(gpu_check, "varlen_attention", right)
    assert re.match(r"drops 0\.(09|10)\d for 0\.1, the same", check_dropout(CPU, torch.float32))
    monkeypatch.setattr(gpu_check, "varlen_attention", lambda *call: 0.9 * right(*call))
    with pytest.raises(ValueError, match=r"dropout of 0\.1 keeps 0\.8"):
        check_dropout(CPU, torch.float32)
    own = torch.Generator().manual_seed(1)

    def with_a_generator_of_its_own(q, k, v, dropout, scaling, packed):
        out = right(q, k, v, 0.0, scaling, packed)
        return out * torch.empty_like(out).bernoulli_(1 - dropout, generator=own) / (1 - dropout)

    monkeypatch.setattr(gpu_check, "varlen_attention", with_a_generator_of_its_own)
    with pytest.raises(ValueError, match="the same state of the generator gives other masks"):
        check_dropout(CPU, torch.float32)


def test_a_run_is_held_to_the_cpus_and_to_itself(tmp_path, monkeypatch):
    assert check_method("cpu", "vanilla", tmp_path).startswith("loss 0.")
    assert "are the same after two stops" in check_resume("cpu", "pats", tmp_path)
    losses = iter([0.7, 0.76])
    monkeypatch.setattr(gpu_check, "trained", lambda *_: ({}, next(losses)))
    with pytest.raises(ValueError, match=r"the loss is 0\.7600, on the CPU 0\.7000"):
        check_method("cpu", "vanilla", tmp_path)
    weights = iter([{"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.ones(2)}])
    monkeypatch.setattr(gpu_check, "trained", lambda *_: (next(weights), 0.0))
    with pytest.raises(ValueError, match="1 of 2 tensors differ after two stops, b among them"):
        check_resume("cpu", "pats", tmp_path)


def test_a_check_that_raises_is_wrong_and_the_others_are_made(capsys):
    def broken():
        raise RuntimeError("no kernel image\n is available")

    found = report({"first": broken, "second": lambda: "all is well"})
    assert [seen["right"] for seen in found.values()] == [False, True]
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["WRONG", "first", "RuntimeError:", "no", "kernel", "image", "is", "available"]
    assert second.split() == ["right", "second", "all", "is", "well"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "benchmarks.gpu_check needs a CUDA device, and torch sees none here"
