"""Calls of torch's kernels for CUDA, with stand-ins that compute the same on the CPU."""

import sys
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mt_dnn.encoder import varlen
from mt_dnn.encoder.attention import packed_attention
from mt_dnn.encoder.batch import pack
from tests.mt_dnn.encoder.test_batch import memory_cache

LENGTHS, HEADS, D = [5, 1, 9, 4], 2, 8
STARTS = np.cumsum([0, *LENGTHS]).tolist()


def batch():
    return pack(memory_cache(LENGTHS), np.arange(len(LENGTHS)))


def qkv(dtype=torch.float32, d=D):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(3, 1, HEADS, sum(LENGTHS), d, generator=generator).to(dtype)
    return [x.requires_grad_() for x in drawn.unbind()]


def expected(q, k, v, scale):
    """Each example by itself, (1, n_tokens, H, d)."""
    return attended(q, k, v, STARTS, STARTS, scale)


def attended(q, k, v, starts_q, starts_k, scale):
    spans = [[slice(a, b) for a, b in pairwise(starts)] for starts in (starts_q, starts_k)]
    parts = [
        scaled_dot_product_attention(q[:, :, a], k[:, :, b], v[:, :, b], scale=scale)
        for a, b in zip(*spans, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def by_examples(q, k, v, starts_q, starts_k, longest_q, longest_k, scale=None):
    """torch's ``varlen_attn``: (n_tokens, H, d) each."""
    assert starts_k.tolist() == STARTS
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert (longest_q, longest_k) == (int(starts_q.diff().max()), max(LENGTHS))
    assert starts_q[-1] == len(q)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attended(q, k, v, starts_q.tolist(), STARTS, scale)[0]


def without_scale(q, k, v, starts_q, starts_k, longest_q, longest_k):
    return by_examples(q, k, v, starts_q, starts_k, longest_q, longest_k)


@pytest.fixture
def gpu(monkeypatch):
    """Make the CPU a GPU of a compute capability, on a torch with this ``varlen_attn``; returns calls of the other."""
    calls = []

    def efficient(q, k, v, bias, starts_q, starts_k, longest_q, longest_k, dropout, mask, differentiable, *, scale):
        calls.append((q.dtype, dropout, mask, differentiable))
        assert bias is None
        assert all(x.stride(-1) == 1 for x in (q, k, v))
        out = by_examples(q[0], k[0], v[0], starts_q, starts_k, longest_q, longest_k, scale)
        return out[None], None, None, None, longest_q, longest_k

    def make(capability=(8, 0), kernel=by_examples):
        module = ModuleType("torch.nn.attention.varlen")
        if kernel is not None:
            module.varlen_attn = kernel
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
        monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", efficient)
        varlen._flash_kernel.cache_clear()
        return calls

    yield make
    varlen._flash_kernel.cache_clear()


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("kernel", [by_examples, without_scale], ids=lambda kernel: kernel.__name__)
def test_half_precision_without_dropout_takes_flash_attention_with_or_without_a_scale(gpu, kernel, scale):
    calls = gpu(kernel=kernel)
    q, k, v = qkv(torch.bfloat16)
    out, _ = packed_attention(None, q, k, v, None, 0.0, scale, packed=batch())
    torch.testing.assert_close(out, expected(q, k, v, scale), rtol=0.02, atol=0.02)
    if scale is None:
        assert torch.equal(out, expected(q, k, v, None))
    assert not calls


@pytest.mark.parametrize(
    ("dtype", "dropout", "capability", "kernel"),
    [
        (torch.float32, 0.0, (9, 0), by_examples),
        (torch.float32, 0.1, (9, 0), by_examples),
        (torch.bfloat16, 0.1, (9, 0), by_examples),
        (torch.float16, 0.0, (7, 0), by_examples),
        (torch.float16, 0.1, (7, 0), by_examples),
        (torch.bfloat16, 0.0, (8, 0), None),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("scale", [None, 0.2])
def test_all_else_takes_the_memory_efficient_kernel(gpu, dtype, dropout, capability, kernel, scale):
    calls = gpu(capability, kernel)
    q, k, v = qkv(dtype)
    out, _ = packed_attention(None, q, k, v, None, dropout, scale, packed=batch())
    assert torch.equal(out, expected(q, k, v, scale))
    out.float().sum().backward()
    assert all(x.grad is not None for x in (q, k, v))
    with torch.no_grad():
        packed_attention(None, q, k, v, None, dropout, scale, packed=batch())
    assert calls == [(dtype, dropout, 0, True), (dtype, dropout, 0, False)]


@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.float32, 0.1)])
def test_first_tokens_alone_attend_to_their_examples(gpu, dtype, dropout):
    calls = gpu()
    q, k, v = qkv(dtype)
    first = q[:, :, STARTS[:-1]]
    out = varlen.varlen_attention(first, k, v, dropout, None, batch())
    torch.testing.assert_close(out, expected(q, k, v, None)[:, STARTS[:-1]], rtol=0.02, atol=0.02)
    assert len(calls) == (dropout > 0)


def test_heads_that_no_kernel_takes_and_compiled_models_keep_their_rectangles(gpu, monkeypatch):
    calls = gpu()
    q, k, v = qkv(d=6)
    out, _ = packed_attention(None, q, k, v, None, packed=batch())
    torch.testing.assert_close(out, expected(q, k, v, None))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    q, k, v = qkv()
    assert varlen.varlen_attention(q, k, v, 0.1, None, batch()) is None
    assert not calls


def test_the_call_fits_the_operator_of_this_torch(monkeypatch):
    """Meta tensors go through its schema and its derivative; shapes are all that they have."""
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
    q, k, v = (x.detach().to("meta").requires_grad_() for x in qkv())
    out = varlen.varlen_attention(q, k, v, 0.1, None, batch().to(torch.device("meta")))
    assert out.shape == (1, sum(LENGTHS), HEADS, D)
    assert out.grad_fn.name() == "EfficientAttentionBackward0"
