"""Attention under causal masks, windows, caps and relative biases: the textbook's, example by example, in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from module.dropout import DropoutStream
from mt_dnn.encoder.attention import packed_attention
from mt_dnn.encoder.batch import pack, pad
from mt_dnn.encoder.score_pattern import ScorePattern
from mt_dnn.encoder.slot_layout import length_groups
from tests.mt_dnn.encoder.small_encoders import PAD, make_cache, make_encoder

HEADS, D = 4, 8
PATTERNS = {
    "causal": {"causal": True},
    "window": {"sliding_window": 3},
    "causal window": {"causal": True, "sliding_window": 3},
    "softcap": {"softcap": 0.7},
    "relative": {"relative": True},
    "all": {"causal": True, "sliding_window": 3, "softcap": 0.7, "relative": True},
}


def textbook(q, k, v, relative, factors, *, causal=False, sliding_window=None, softcap=None):
    """One example: q, k and v (H, t, d), relative (H, T, T) or None, dropout's factors (H, t, t) -> (H, t, d)."""
    t = q.shape[1]
    out = torch.zeros_like(q)
    for head in range(HEADS):
        for i in range(t):
            seen = [j for j in range(t) if (j <= i or not causal) and abs(i - j) < (sliding_window or t)]
            scores = torch.stack([q[head, i] @ k[head, j] / D**0.5 for j in seen])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if relative is not None:
                scores = scores + torch.stack([relative[head, i, j] for j in seen])
            weights = torch.softmax(scores, 0) * torch.stack([factors[head, i, j] for j in seen])
            out[head, i] = sum(weight * v[head, j] for weight, j in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", PATTERNS)
def test_attention_is_the_textbooks_with_its_gradients(name, groups, dropout):
    lengths = [9, 2, 5]
    batch = pack(make_cache(lengths), np.arange(3), groups)
    given = dict(PATTERNS[name])
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    module = SimpleNamespace(is_causal=given.pop("causal", False))
    q = draw(HEADS, sum(lengths), D)
    k, v = draw(2, HEADS // 2, sum(lengths), D)  # each for two heads
    relative = draw(HEADS, 9, 9) if given.pop("relative", False) else None
    leaves = [x for x in (q, k, v, relative) if x is not None]
    singles = [x.float()[None].requires_grad_() for x in leaves]
    for leaf in leaves:
        leaf.requires_grad_()
    stream, replay = DropoutStream(6), DropoutStream(6)
    named = {**given, **({} if relative is None else {"relative": singles[3]})}
    got, _ = packed_attention(module, *singles[:3], None, dropout, packed=batch, dropout_stream=stream, **named)
    parts, starts = {}, np.cumsum([0, *lengths])
    for rows in length_groups(np.array(lengths), groups):
        longest = max(lengths[i] for i in rows)
        like = torch.ones(len(rows), HEADS, longest, longest)
        factors = replay.factors(like, dropout).double() if dropout else like.double()
        for place, i in enumerate(rows):
            part = slice(starts[i], starts[i + 1])
            twice = (x[:, part].repeat_interleave(2, 0) for x in (k, v))
            parts[i] = textbook(q[:, part], *twice, relative, factors[place], causal=module.is_causal, **given)
    expected = torch.cat([parts[i] for i in range(3)], dim=1).transpose(0, 1)  # (n_tokens, H, d)
    torch.testing.assert_close(got[0].double(), expected, rtol=1e-5, atol=1e-6)
    weights = draw(*expected.shape)
    (expected * weights).sum().backward()
    (got[0] * weights.float()).sum().backward()
    for single, leaf in zip(singles, leaves, strict=True):
        torch.testing.assert_close(single.grad[0].double(), leaf.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        evaluated, _ = packed_attention(module, *singles[:3], None, 0.0, packed=batch, **named)
    if not dropout:
        torch.testing.assert_close(evaluated, got, rtol=1e-5, atol=1e-6)


def test_a_window_that_holds_the_longest_example_is_none():
    assert ScorePattern(window=5).is_plain(5)
    assert ScorePattern(window=5).bias(5, torch.zeros(())) is None
    assert not ScorePattern(window=5).is_plain(6)
    assert not ScorePattern(causal=True).is_plain(1)


@pytest.mark.parametrize("family", ["modernbert", "mistral"])
def test_padding_out_of_every_real_tokens_window_spoils_nothing(family):
    """In one rectangle the short example's padding sees no real key."""
    cache, rows = make_cache([30, 2]), np.arange(2)
    packed, padded = make_encoder(family, True), make_encoder(family, False)
    out, batch = packed(pack(cache, rows, 1)), pad(cache, rows, PAD)
    expected = padded(batch)[batch.attention_mask.bool()]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.square().sum().backward(), expected.square().sum().backward()
    for one, other in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "roformer", "llama"])
def test_a_compiled_encoder_gives_the_same(family):
    batch = pack(make_cache([9, 3, 14]), np.arange(3))
    plain, compiled = make_encoder(family, True), make_encoder(family, True)
    compiled.model.compile(dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(batch), plain(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "roformer", "llama"])
def test_an_encoder_for_packed_batches_takes_padded_ones(family):
    cache, rows = make_cache([9, 3, 9]), np.arange(3)
    packed, padded, batch = make_encoder(family, True), make_encoder(family, False), pad(cache, rows, PAD)
    torch.testing.assert_close(packed.pooled(batch), padded.pooled(batch), rtol=1e-5, atol=1e-5)
    whole = pad(cache, rows[::2], PAD)  # without any padding, where transformers makes no mask
    torch.testing.assert_close(packed(whole), padded(whole), rtol=1e-5, atol=1e-5)
