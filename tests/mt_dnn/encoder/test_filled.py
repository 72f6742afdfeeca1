"""Filled batches: a few sizes, and nobody sees the example that fills."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt_dnn.encoder import varlen
from mt_dnn.encoder.batch import fill, filled_size, pack
from mt_dnn.encoder.families import BERT_LIKE, PACKED_FAMILIES
from mt_dnn.encoder.hooks import hooked
from tests.mt_dnn.encoder.small_encoders import make_cache, make_encoder

LENGTHS = [5, 1, 9, 4]


def batches(lengths, groups=4):
    batch = pack(make_cache(lengths), np.arange(len(lengths)), groups)
    return batch, fill(batch, groups)


def first_tokens_and_gradients(encoder, batch):
    encoder.zero_grad()
    first = encoder.pooled(batch)
    (first * torch.linspace(-1, 1, first.numel()).view(first.shape)).sum().backward()
    return first, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@given(st.integers(1, 40_000))
def test_sizes_are_few_and_near(n):
    size = filled_size(n)
    assert n < size <= max(n + n // 8 + 1, n + 64)
    assert size % 64 == 0
    assert filled_size(size - 1) == size


def test_all_sizes_of_short_batches():
    assert [filled_size(n) for n in (1, 63, 64, 127, 500, 1023, 1024, 2047, 2048)] == [
        64, 64, 128, 128, 512, 1024, 1152, 2048, 2304,
    ]  # fmt: skip


def test_the_added_example_stands_last():
    batch, filled = batches(LENGTHS)
    n = sum(LENGTHS)
    assert filled.filled
    assert (filled.size, filled.n_tokens, filled.max_seqlen, filled.span) == (4, 64, 9, 64)
    for name in ("input_ids", "position_ids", "token_type_ids"):
        assert torch.equal(getattr(filled, name)[:n], getattr(batch, name))
    assert filled.input_ids[n:].tolist() == [int(batch.input_ids[0])] * (64 - n)
    assert filled.position_ids[n:].tolist() == [0] + [1] * (63 - n)
    assert filled.cu_seqlens.tolist() == [*batch.cu_seqlens.tolist(), 64]
    assert filled.first_tokens.tolist() == [*batch.first_tokens.tolist(), n]
    assert torch.equal(filled.labels, batch.labels)
    assert filled.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("whole", [False, True], ids=["first tokens alone", "whole last layer"])
@pytest.mark.parametrize("family", BERT_LIKE)
def test_values_and_gradients_are_those_of_the_batch_alone(family, whole):
    encoder = make_encoder(family, packed=True)
    if whole:
        encoder.model.register_forward_hook(lambda *_: None)
        assert hooked(encoder.model)
    batch, filled = batches(LENGTHS)
    expected, gradients = first_tokens_and_gradients(encoder, batch)
    found, others = first_tokens_and_gradients(encoder, filled)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_methods_see_the_examples_alone():
    batch, filled = batches(LENGTHS)
    n = sum(LENGTHS)
    assert filled.lengths.tolist() == LENGTHS
    values = torch.arange(64.0)
    assert torch.equal(filled.sum_of_examples(values), batch.sum_of_examples(values[:n]))
    spread = filled.to_tokens(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.equal(spread[:n], batch.to_tokens(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert not spread[n:].any()


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_which_encoders_batches_are_filled_for(monkeypatch, family):
    encoder = make_encoder(family, packed=True)
    assert not encoder.attends_without_padding(torch.device("cpu"))
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
    assert encoder.attends_without_padding(torch.device("cpu")) is (family in BERT_LIKE)
    assert not make_encoder(family, packed=False).attends_without_padding(torch.device("cpu"))
