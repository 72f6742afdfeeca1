"""Dropout, residual and layer norm in one pass: its float64 reference, and every case in which it must not be used."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from module.dropout import NO_DROPOUT, DropoutStream, replace_dropout
from mt_dnn.encoder import attention, residual_norm
from mt_dnn.encoder.cpu_attention import by_one_pass
from tests.mt_dnn.encoder.small_encoders import both, make_encoder
from tests.reference.dropout import kept
from tests.reference.layer_norm import layer_norm, layer_norm_gradients

SEED = 0x0123_4567_89AB_CDEF
FUSED = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def make_norm(d, eps=1e-5):
    norm, generator = nn.LayerNorm(d, eps=eps), torch.Generator().manual_seed(d)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(d, generator=generator))
        norm.bias.copy_(torch.randn(d, generator=generator))
    return norm


def draw_rows(n, d):
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, d, generator=generator) for _ in range(3)]


def run(x, y, norm, draw, g):
    x, y = (t.clone().requires_grad_() for t in (x, y))
    norm.zero_grad()
    out = residual_norm.residual_norm(x, y, norm, draw)
    out.backward(g)
    return [out.detach(), x.grad, y.grad, norm.weight.grad, norm.bias.grad]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 80), st.one_of(st.integers(2, 70), st.sampled_from([768, 2047, 2048, 2049, 4100])),
    st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 1 << 40), st.sampled_from([1e-12, 1e-5]),
)  # fmt: skip
def test_values_and_gradients_equal_the_reference(n, d, p, position, eps):
    x, y, g = draw_rows(n, d)
    norm, stream = make_norm(d, eps), DropoutStream(SEED)
    stream.position = position
    draw = stream.draw(n * d, p)
    assert stream.position == position + (-(-n * d // 2048) if p else 0)
    r = kept(SEED, position, n * d, p).reshape(n, d) * (65536 / round((1 - p) * 65536)) if p else np.ones((n, d))
    numbers = [t.detach().double().numpy() for t in (x, y, norm.weight, norm.bias, g)]
    x64, y64, gain, b, g64 = numbers
    _, out, sigma = layer_norm(x64, y64, r, gain, b, eps)
    wanted = [out, *layer_norm_gradients(x64, y64, r, gain, b, eps, g64)]
    steepest = np.abs(g64 * gain).max() / sigma.min()  # the terms of a gradient, which for d = 2 is nearly nothing
    for got, value in zip(run(x, y, norm, draw, g), wanted, strict=True):
        # Two entries nearly alike: their difference, and with it the deviation, is known to less.
        scale = 1e-5 * max(np.abs(value).max(), 1.0, 0.1 * steepest) * max(1.0, 0.1 / sigma.min()) ** 2
        np.testing.assert_allclose(got.numpy(), value, rtol=1e-5, atol=scale)
    dropped = torch.from_numpy(r == 0)
    assert (run(x, y, norm, draw, g)[1][dropped] == 0).all()


def test_without_dropout_it_is_torchs_and_writes_no_mask(monkeypatch):
    x, y, g = draw_rows(50, 24)
    norm, masks, bytes_ = make_norm(24), [], residual_norm._bytes
    monkeypatch.setattr(residual_norm, "_bytes", lambda mask: (masks.append(mask), bytes_(mask))[1])
    got = run(x, y, norm, NO_DROPOUT, g)
    assert masks == [None, None]
    x.requires_grad_(), y.requires_grad_(), norm.zero_grad()
    out = norm(x + y)
    out.backward(g)
    for value, wanted in zip(got, (out, x.grad, y.grad, norm.weight.grad, norm.bias.grad), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)


def test_bits_do_not_depend_on_threads():
    x, y, g = draw_rows(333, 100)
    norm, draw, before = make_norm(100), DropoutStream(3).draw(33300, 0.1), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([t.clone() for t in run(x, y, norm, draw, g)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["x", "y", "g", "weight", "bias"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_what_is_no_number_stays(bad, part, p):
    x, y, g = draw_rows(40, 20)
    norm = make_norm(20)
    rows = {"x": x, "y": y, "g": g, "weight": norm.weight.data[None], "bias": norm.bias.data[None]}[part]
    rows[len(rows) // 2, 3] = bad
    stream = DropoutStream(5)
    got = run(x, y, norm, stream.draw(800, p), g)
    stream.position = 0
    norm.zero_grad()
    x.requires_grad_(), y.requires_grad_()
    out = norm(stream(x, p) + y)
    out.backward(g)
    for value, wanted in zip(got, (out, x.grad, y.grad, norm.weight.grad, norm.bias.grad), strict=True):
        assert torch.equal(value.isfinite(), wanted.isfinite())


@pytest.mark.parametrize("frozen", ["x", "y", "norm", "x and norm"])
def test_frozen_parts(frozen):
    x, y, g = draw_rows(40, 20)
    norm, draw = make_norm(20), DropoutStream(1).draw(800, 0.1)
    wanted = [t.clone() for t in run(x, y, norm, draw, g)]
    norm.zero_grad()
    norm.requires_grad_("norm" not in frozen)
    x.requires_grad_("x" not in frozen), y.requires_grad_(frozen != "y")
    residual_norm.residual_norm(x, y, norm, draw).backward(g)
    for t, gradient in zip((x, y, norm.weight, norm.bias), wanted[1:], strict=True):
        assert torch.equal(t.grad, gradient) if t.requires_grad else t.grad is None


def test_second_backward_and_gradients_of_gradients_are_refused():
    x, y, _ = draw_rows(4, 6)
    x.requires_grad_()
    norm = make_norm(6)
    out = residual_norm.residual_norm(x, y, norm, NO_DROPOUT).square().sum()
    out.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward()
    out = residual_norm.residual_norm(x, y, norm, NO_DROPOUT).square().sum()
    (gradient,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiated twice"):
        (gradient.square().sum() + x.square().sum()).backward()


# The encoders' layers.


def train_mode(family="bert", p=0.2, attention_p=0.0, seed=7):
    encoder = make_encoder(family, True)
    stream = DropoutStream(seed)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Dropout):
            inside = name.endswith(("self.dropout", "attention.dropout", "attention_dropout"))
            module.p = attention_p if inside else p
    replace_dropout(encoder, stream)
    encoder.dropout_stream = stream
    return encoder.train(), stream


BATCH, PADDED = both([9, 3, 14, 1, 6])
TWO_LENGTHS = [2] * 40 + [37] * 10  # so different that there are two rectangles


def results(encoder, stream, batch=BATCH, first=False):
    stream.position = 0
    encoder.zero_grad()
    out = encoder.pooled(batch) if first else encoder(batch)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * g).sum().backward()
    return [out.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)], stream.position


def plainly(monkeypatch, *arguments, **named):
    """The same without any kernel of one pass; the masks of layers' outputs are the same."""
    with monkeypatch.context() as patch:
        for module in (residual_norm, attention):
            patch.setattr(module, "by_one_pass", lambda *tensors: False)
        return results(*arguments, **named)


def fused_calls(monkeypatch):
    calls, function = [], residual_norm.residual_norm
    monkeypatch.setattr(residual_norm, "residual_norm", lambda *a: (calls.append(a), function(*a))[1])
    return calls


def assert_alike(got, wanted):
    (got, position), (wanted, expected) = got, wanted
    assert position == expected > 0
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * max(float(other.abs().max()), 0.5))


@pytest.mark.parametrize("family", [*residual_norm.FAMILIES, "distilbert", "albert"])
@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("first", [False, True], ids=["all", "first"])
def test_training_with_dropout_equals_the_unfused_computation(family, batch, first, monkeypatch):
    encoder, stream = train_mode(family)
    if batch is PADDED:
        encoder = type(encoder)(encoder.model, False).train()
        encoder.dropout_stream = stream
    wanted = plainly(monkeypatch, encoder, stream, batch, first)
    calls = fused_calls(monkeypatch)
    assert_alike(results(encoder, stream, batch, first), wanted)
    assert len(calls) == (4 if family in FUSED else 0)  # two of each layer


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
@pytest.mark.parametrize("first", [False, True], ids=["all", "first"])
def test_attention_operation_by_operation_has_the_same_masks(family, first, monkeypatch):
    encoder, stream = train_mode(family, attention_p=0.3)
    batch, _ = both(TWO_LENGTHS)
    assert len(batch.slots.groups) == 2
    assert_alike(results(encoder, stream, batch, first), plainly(monkeypatch, encoder, stream, batch, first))


@pytest.mark.parametrize("kind", ["dense", "dropout", "LayerNorm", "output"])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_see_what_they_always_saw(kind, hook, monkeypatch):
    encoder, stream = train_mode()
    wanted = plainly(monkeypatch, encoder, stream)
    output = encoder.layers[0].output
    module, seen = output if kind == "output" else getattr(output, kind), []
    getattr(module, hook)(lambda *arguments: seen.append(len(arguments)) and None)
    assert_alike(results(encoder, stream), wanted)
    assert len(seen) == 1


def test_global_hooks_see_every_module(monkeypatch):
    encoder, stream = train_mode()
    wanted, seen = plainly(monkeypatch, encoder, stream), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        assert_alike(results(encoder, stream), wanted)
    finally:
        handle.remove()
    output = encoder.layers[0].output
    assert {output.dense, output.dropout, output.LayerNorm} <= set(seen)


class Shifted(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("make", [Shifted, nn.RMSNorm, lambda d: nn.LayerNorm(d, bias=False), lambda d: nn.Identity()])
def test_another_norm_is_called(make, monkeypatch):
    encoder, stream = train_mode()
    for layer in encoder.layers:
        layer.output.LayerNorm = make(16)
    wanted = plainly(monkeypatch, encoder, stream)
    calls = fused_calls(monkeypatch)
    assert_alike(results(encoder, stream), wanted)
    assert len(calls) == 2


def test_a_norm_whose_forward_was_replaced_is_called(monkeypatch):
    encoder, stream = train_mode()
    norm, seen = encoder.layers[0].output.LayerNorm, []
    norm.forward = lambda x: (seen.append(1), nn.LayerNorm.forward(norm, x))[1]
    results(encoder, stream)
    assert seen == [1]


def test_a_norm_of_another_size_is_refused_as_by_torch():
    encoder, _ = train_mode()
    encoder.layers[0].output.LayerNorm = nn.LayerNorm(8)  # there are 16
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match=r"shape"):
        encoder(BATCH)


def test_norm_weights_with_gaps_in_memory(monkeypatch):
    encoder, stream = train_mode()
    norm = encoder.layers[0].output.LayerNorm
    norm.weight = nn.Parameter(torch.randn(32)[::2])
    assert_alike(results(encoder, stream), plainly(monkeypatch, encoder, stream))


def test_evaluation_draws_nothing_and_equals_the_plain_one(monkeypatch):
    encoder, stream = train_mode(attention_p=0.3)
    encoder.eval()
    (got, position), (wanted, _) = results(encoder, stream), plainly(monkeypatch, encoder, stream)
    assert position == 0
    assert_alike((got, 1), (wanted, 1))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(encoder(BATCH), wanted[0], rtol=1e-5, atol=1e-5)


def test_training_without_gradients_draws_the_same_masks():
    encoder, stream = train_mode()
    (got, *_), position = results(encoder, stream)
    stream.position = 0
    with torch.no_grad():
        torch.testing.assert_close(encoder(BATCH), got, rtol=1e-5, atol=1e-5)
    assert stream.position == position


def test_autocast_and_float64_are_the_plain_computation(monkeypatch):
    encoder, stream = train_mode()
    calls = fused_calls(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(results(encoder, stream), plainly(monkeypatch, encoder, stream))
    assert not calls
    encoder = make_encoder("bert", True)
    encoder.double()
    stream.position = 1
    got, wanted = results(encoder, stream)[0], plainly(monkeypatch, encoder, stream)[0]
    assert got[0].dtype == torch.float64
    assert all(map(torch.equal, got, wanted))
    assert not calls


def test_traced_it_is_the_plain_computation_with_the_same_masks():
    """Attention's too."""
    encoder, stream = train_mode(attention_p=0.3)
    encoder.model.encoder.layer = encoder.model.encoder.layer[:1]  # tracing takes seconds
    batch, _ = both(TWO_LENGTHS)
    assert len(batch.slots.groups) == 2
    wanted = results(encoder, stream, batch)
    encoder.model.compile(backend="eager")
    assert_alike(results(encoder, stream, batch), wanted)


def test_inside_a_transform():
    """There a tensor is a wrapper without memory of its own."""
    encoder, stream = train_mode()
    batch, _ = both([6, 6, 6])
    (wanted, *_), position = results(encoder, stream, batch)
    stream.position = 0
    weights = {name: p.detach().clone() for name, p in encoder.named_parameters()}

    def forward(weights):
        return torch.func.functional_call(encoder, weights, (batch,))

    with torch.no_grad():
        got = torch.func.functionalize(forward)(weights)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert stream.position == position


def test_which_tensors_the_kernels_take():
    x = torch.ones(3, 4)
    assert by_one_pass(x, nn.Parameter(x.clone()), x.requires_grad_() * 2)
    for other in (x.double(), x.bfloat16(), x.to("meta"), x.to_sparse(), torch._neg_view(x.detach())):
        assert not by_one_pass(x, other)
    with torch.inference_mode():
        assert not by_one_pass(torch.ones(3))


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    buffer.seek(0)
    return pickle.load(buffer)


@pytest.mark.parametrize("again", [copied, pickled])
def test_a_copy_uses_its_own_weights(again, monkeypatch):
    encoder, stream = train_mode()
    before, _ = results(encoder, stream)
    other = again(encoder)
    own = other.dropout_stream
    for _, p in other.named_parameters():
        p.data *= 1.25
    own.position, calls = 0, fused_calls(monkeypatch)
    got, _ = results(other, own)
    wanted, _ = plainly(monkeypatch, other, own)
    assert_alike((got, 1), (wanted, 1))
    assert {id(call[2]) for call in calls} <= {id(module) for module in other.modules()}
    assert calls
    assert not torch.allclose(got[0], before[0])
    assert all(map(torch.equal, results(encoder, stream)[0], before))
