"""Packed and padded forward passes are the same numbers, for every family that may run packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_utils.errors import SettingError
from module.dropout import DropoutStream
from mt_dnn.encoder.attention import packed_attention
from mt_dnn.encoder.batch import pack, pad
from mt_dnn.encoder.families import PACKED_FAMILIES
from mt_dnn.encoder.slot_layout import length_groups
from tests.mt_dnn.encoder.small_encoders import EXTRA, PAD, both, make_cache, make_encoder


def real_tokens(hidden, padded):
    return hidden[padded.attention_mask.bool()]


@pytest.mark.parametrize("family", PACKED_FAMILIES)
@pytest.mark.parametrize("lengths", [[5, 9, 1, 3], [7], [1], [4, 4, 4], [30, 2], [37, 3, 20, 4, 35, 2, 19, 5]])
def test_hidden_states_and_gradients_equal_padded(family, lengths):
    packed_batch, padded_batch = both(lengths)
    packed, padded = make_encoder(family, True), make_encoder(family, False)
    out_packed = packed(packed_batch)
    out_padded = padded(padded_batch)
    torch.testing.assert_close(out_packed, real_tokens(out_padded, padded_batch), rtol=1e-5, atol=1e-5)
    first_packed = packed.pool(out_packed, packed_batch)
    torch.testing.assert_close(first_packed, padded.pool(out_padded, padded_batch), rtol=1e-5, atol=1e-5)
    (out_packed.pow(2).sum()).backward()
    (real_tokens(out_padded, padded_batch).pow(2).sum()).backward()
    gradients = dict(padded.named_parameters())
    for name, parameter in packed.named_parameters():
        if gradients[name].grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_on_a_gpu_packed_equals_padded(family, groups):
    cache, cuda = make_cache([37, 3, 20, 4, 35, 2, 19, 5]), torch.device("cuda")
    packed_batch, padded_batch = pack(cache, range(8), groups).to(cuda), pad(cache, range(8), PAD).to(cuda)
    packed, padded = make_encoder(family, True).to(cuda), make_encoder(family, False).to(cuda)
    out, expected = packed(packed_batch), real_tokens(padded(padded_batch), padded_batch)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out.pow(2).sum().backward(), expected.pow(2).sum().backward()
    gradients = dict(padded.named_parameters())
    for name, parameter in packed.named_parameters():
        if gradients[name].grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-2, msg=name)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_hidden_states_equal_the_model_of_transformers_alone(family):
    """Our positions and token types are those that the plain model makes for itself."""
    packed_batch, padded_batch = both([6, 11, 3])
    packed, plain = make_encoder(family, True), make_encoder(family, False).model
    inputs = {"input_ids": padded_batch.input_ids, "attention_mask": padded_batch.attention_mask}
    if EXTRA[family].get("type_vocab_size") == 2:
        inputs["token_type_ids"] = padded_batch.token_type_ids
    expected = real_tokens(plain(**inputs).last_hidden_state, padded_batch)
    torch.testing.assert_close(packed(packed_batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_row_sparse_gradients_of_every_family(family):
    batch, _ = both([6, 11, 3])
    dense, sparse = make_encoder(family, True), make_encoder(family, True)
    names = [name for name, _ in sparse.named_parameters()]
    sparse.use_row_sparse_gradients()
    assert [name for name, _ in sparse.named_parameters()] == names
    for encoder in (dense, sparse):
        encoder(batch).pow(2).sum().backward()
    expected, got = (encoder.model.get_input_embeddings().weight.grad for encoder in (dense, sparse))
    assert got.is_sparse == (not family.startswith("gemma"))  # whose table scales what it gives
    assert torch.equal(got.to_dense(), expected)


def test_token_types_and_positions_reach_the_model():
    batch, _ = both([8, 8])
    encoder = make_encoder("bert", True)
    out = encoder(batch)
    assert batch.token_type_ids.sum() > 0
    from dataclasses import replace

    assert not torch.allclose(out, encoder(replace(batch, token_type_ids=torch.zeros_like(batch.token_type_ids))))
    assert not torch.allclose(out, encoder(replace(batch, position_ids=batch.position_ids + 1)))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 5))
def test_an_example_does_not_see_its_neighbours(lengths, seed):
    encoder = make_encoder("bert", True)
    together, _ = both(lengths, seed)
    with torch.no_grad():
        hidden = encoder(together)
        for i, (start, end) in enumerate(zip(together.cu_seqlens[:-1], together.cu_seqlens[1:], strict=True)):
            alone = pack(make_cache(lengths, seed), [i])
            torch.testing.assert_close(hidden[start:end], encoder(alone), rtol=1e-5, atol=1e-5)


def test_word_embeddings_can_be_given_instead_of_ids():
    encoder = make_encoder("bert", True)
    batch, _ = both([5, 3])
    embeddings = encoder.embed(batch)
    torch.testing.assert_close(encoder(batch, inputs_embeds=embeddings), encoder(batch), rtol=0, atol=0)
    noisy = embeddings.detach().clone().requires_grad_()
    encoder(batch, inputs_embeds=noisy).sum().backward()
    assert noisy.grad.abs().sum() > 0


def test_an_example_beyond_the_position_table_is_named():
    encoder = make_encoder("bert", True)
    batch, _ = both([41])
    with pytest.raises(SettingError, match=r"max_seq_len: an example has 41 tokens, this encoder takes 40"):
        encoder(batch)


def test_dropout_works_inside_packed_attention():
    encoder = make_encoder("bert", True)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    batch, _ = both([9, 4])
    encoder.train()
    torch.manual_seed(0)
    first = encoder(batch)
    torch.manual_seed(0)
    assert torch.equal(first, encoder(batch))
    assert not torch.equal(first, encoder(batch))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[4, 4, 4], [9, 2, 5]])
def test_trained_attention_equals_the_textbook(lengths, dropout):
    """softmax(q k' / sqrt(d)) times dropout's factors, times v, in float64, example by example of each rectangle."""
    batch, _ = both(lengths)
    heads, d, n = 3, 8, sum(lengths)
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 1, heads, n, d).requires_grad_()
    stream, replay = DropoutStream(6), DropoutStream(6)
    got, _ = packed_attention(torch.nn.Module(), q, k, v, None, dropout, packed=batch, dropout_stream=stream)
    expected = torch.zeros(n, heads, d, dtype=torch.float64)
    starts = np.cumsum([0, *lengths])
    for rows in length_groups(np.array(lengths), 4):
        longest = max(lengths[i] for i in rows)
        like = torch.zeros(len(rows), heads, longest, longest)
        factors = replay.factors(like, dropout).double() if dropout else like.double() + 1
        for place, i in enumerate(rows):
            part, t = slice(starts[i], starts[i + 1]), lengths[i]
            scores = q[0, :, part].double() @ k[0, :, part].double().mT / d**0.5  # (H, t, t)
            weights = scores.softmax(-1) * factors[place, :, :t, :t]
            expected[part] = (weights @ v[0, :, part].double()).transpose(0, 1)
    torch.testing.assert_close(got[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_backward_is_deterministic():
    batch, _ = both([9, 4, 13])
    gradients = []
    for _ in range(2):
        encoder = make_encoder("bert", True)
        encoder(batch).pow(2).sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("lengths", [[5, 9, 1, 3], [37, 3, 20, 4, 35, 2, 19, 5]])
def test_bf16_training_stays_near_fp32(lengths):
    batch, _ = both(lengths)
    gradients = {}
    for enabled in (True, False):
        encoder = make_encoder("bert", True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = encoder(batch)
        hidden.float().pow(2).mean().backward()
        gradients[enabled] = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert 0 < error < 0.05
