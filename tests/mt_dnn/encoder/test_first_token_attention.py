"""Attention of the first tokens in one pass on the CPU: float64 written out, example by example."""

from itertools import pairwise

import pytest
import torch

from module.dropout import DropoutStream
from mt_dnn.encoder import attention
from mt_dnn.encoder.attention import first_token_attention
from tests.mt_dnn.encoder.small_encoders import both

LENGTHS = [[5, 9, 1, 3], [7], [1, 1], [4, 4, 4], [37, 3, 20, 4, 35, 2, 19, 5]]
HEADS, SIZE, SCALE = 3, 8, 0.4


def inputs(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = (batch.size, batch.n_tokens, batch.n_tokens)
    made = [torch.randn(1, n, HEADS, SIZE, generator=generator) for n in shapes]
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in made]


def outcome(batch, p):
    tensors, stream = inputs(batch), DropoutStream(7)
    out = first_token_attention(*tensors, p, SCALE, batch, stream)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)], stream.position


def written_out(batch, p):
    """Each example alone, in float64, with its part of the masks of the rectangles."""
    query, key, value = inputs(batch, torch.float64)
    stream, masks = DropoutStream(7), []
    for group in batch.slots.groups:
        shape = torch.empty(group.size, HEADS, group.length)
        masks += [*(stream.factors(shape, p) if p else torch.ones_like(shape))]
    outs, ends = [], batch.cu_seqlens.tolist()
    for example, (start, end) in enumerate(pairwise(ends)):
        k, v = key[0, :, start:end], value[0, :, start:end]
        scores = SCALE * torch.einsum("hd,htd->ht", query[0, :, example], k)
        mask = masks[batch.slots.rows[example]][:, : end - start].double()
        outs.append(torch.einsum("ht,htd->hd", torch.softmax(scores, 1) * mask, v))
    out = torch.stack(outs)[None]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    return [out, *torch.autograd.grad((out * weights).sum(), [query, key, value])]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_it_is_the_float64_reference(lengths, p):
    batch = both(lengths)[0]
    found, _ = outcome(batch, p)
    for one, wanted in zip(found, written_out(batch, p), strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_operation_by_operation_it_is_the_same_and_takes_the_same_masks(p, monkeypatch):
    batch = both(LENGTHS[-1])[0]
    found, position = outcome(batch, p)
    monkeypatch.setattr(attention, "by_one_pass", lambda *tensors: False)
    wanted, other = outcome(batch, p)
    assert position == other
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_threads_change_no_bit():
    batch, before = both(LENGTHS[-1])[0], torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(outcome(batch, 0.3)[0])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_without_gradients_it_is_the_same(monkeypatch):
    batch = both(LENGTHS[0])[0]
    monkeypatch.setattr(attention, "_attend", None)
    with torch.no_grad():
        alone = first_token_attention(*inputs(batch), 0.0, SCALE, batch)
    assert torch.equal(alone, outcome(batch, 0.0)[0][0])


def test_what_is_not_a_number_stays_in_its_example():
    batch = both(LENGTHS[0])[0]
    tensors = inputs(batch)
    with torch.no_grad():
        tensors[1][0, :, 0] = torch.nan
        out = first_token_attention(*tensors, 0.0, SCALE, batch)
    assert out[0, 0].isnan().all()
    assert out[0, 1:].isfinite().all()
