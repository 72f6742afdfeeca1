"""Where attention goes without padding, batches have no slots; a stand-in says that the CPU is such a device."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mt_dnn.encoder import batch as batches
from mt_dnn.encoder import varlen
from mt_dnn.encoder.attention import first_token_attention, packed_attention
from mt_dnn.encoder.batch import fill, pack
from mt_dnn.encoder.families import BERT_LIKE, PACKED_FAMILIES
from mt_dnn.run import run
from tests.mt_dnn.encoder.small_encoders import make_cache, make_encoder

LENGTHS = [5, 1, 9, 4]
CPU, ROWS = torch.device("cpu"), np.arange(len(LENGTHS))


def example_by_example(q, k, v, dropout, scale, spans):
    """Of :func:`mt_dnn.encoder.varlen._efficient`."""
    starts = [[slice(a, b) for a, b in pairwise(s.tolist())] for s in spans[:2]]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    parts = [
        scaled_dot_product_attention(q[:, :, a], k[:, :, b], v[:, :, b], scale=scale)
        for a, b in zip(*starts, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.fixture
def without_padding(monkeypatch):
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
    monkeypatch.setattr(varlen, "_efficient", example_by_example)


@pytest.fixture
def no_layout(monkeypatch):
    def fail(*_):
        raise AssertionError("slots were built")

    monkeypatch.setattr(batches, "slot_layout", fail)


def outcome(encoder, batch, whole):
    encoder.zero_grad()
    out = encoder.pool(encoder(batch), batch) if whole else encoder.pooled(batch)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out, *(p.grad for p in encoder.parameters() if p.grad is not None)]


@pytest.mark.parametrize("filled", [False, True])
def test_no_slots_are_built_or_sent(without_padding, no_layout, monkeypatch, filled):
    sent, send = [], batches._sent
    monkeypatch.setattr(batches, "_sent", lambda tensors, device: sent.extend(tensors) or send(tensors, device))
    encoder, meta = make_encoder("bert", True), torch.device("meta")
    batch = encoder.batch(make_cache(LENGTHS), ROWS, meta, filled=filled)
    assert batch.slots is None
    assert batch.filled is filled
    assert len(sent) == 7  # ids, positions, types, labels, indices, first tokens, cu_seqlens
    assert batch.input_ids.device == meta


@pytest.mark.parametrize("filled", [False, True])
def test_all_else_of_the_batch_is_the_same(without_padding, filled):
    cache = make_cache(LENGTHS)
    batch = make_encoder("bert", True).batch(cache, ROWS, CPU, filled=filled)
    expected = fill(pack(cache, ROWS), 4) if filled else pack(cache, ROWS)
    for name in {field.name for field in fields(batch)} - {"slots"}:
        found, same = getattr(batch, name), getattr(expected, name)
        assert torch.equal(found, same) if isinstance(same, torch.Tensor) else found == same


@pytest.mark.parametrize("whole", [False, True], ids=["first tokens alone", "whole last layer"])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("family", BERT_LIKE)
def test_values_and_gradients_are_those_with_slots(without_padding, monkeypatch, family, filled, whole):
    encoder, cache = make_encoder(family, True), make_cache(LENGTHS)
    batch = encoder.batch(cache, ROWS, CPU, filled=filled)
    assert batch.slots is None
    found = outcome(encoder, batch, whole)
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: False)
    expected = outcome(encoder, pack(cache, ROWS), whole)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_which_encoders_batches_have_slots(monkeypatch, family):
    encoder, cache = make_encoder(family, True), make_cache(LENGTHS)
    assert encoder.batch(cache, ROWS, CPU).slots is not None
    monkeypatch.setattr(varlen, "_is_cuda", lambda _: True)
    assert (encoder.batch(cache, ROWS, CPU).slots is None) is (family in BERT_LIKE)


def test_heads_that_no_kernel_takes_and_compiled_encoders_have_slots(without_padding):
    cache = make_cache(LENGTHS)
    narrow = make_encoder("bert", True, hidden_size=12)
    compiled = make_encoder("bert", True)
    compiled.model.compile(dynamic=True, backend="eager")
    for encoder in (narrow, compiled):
        for filled in (False, True):
            batch = encoder.batch(cache, ROWS, CPU, filled=filled)
            assert len(batch.slots.token_slots) == batch.n_tokens
    torch.testing.assert_close(
        compiled.pooled(compiled.batch(cache, ROWS, CPU)), make_encoder("bert", True).pooled(pack(cache, ROWS))
    )


def test_attention_that_needs_slots_says_so():
    batch, x = pack(make_cache(LENGTHS), ROWS, None), torch.zeros(1, 2, sum(LENGTHS), 8)
    with pytest.raises(ValueError, match=r"the batch has no slots, .*max_groups$"):
        packed_attention(None, x, x, x, None, packed=batch)
    with pytest.raises(ValueError, match=r"the batch has no slots, .*max_groups$"):
        first_token_attention(x[:, :, ROWS], x, x, 0.0, None, batch)


def test_a_whole_run_goes_without_slots(tiny_run, tmp_path, without_padding, no_layout, monkeypatch):
    changes = {"epochs": 1, "method": "no_dropout", "cuda_graphs": False}
    found = run(tiny_run(**changes, output_dir=tmp_path / "without"))
    monkeypatch.undo()
    expected = run(tiny_run(**changes, output_dir=tmp_path / "with"))
    assert found.steps == expected.steps > 0
    assert found.best.score == pytest.approx(expected.best.score, abs=1e-3)
