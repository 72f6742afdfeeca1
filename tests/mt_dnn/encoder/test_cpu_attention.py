"""Attention of packed batches in one pass: its float64 reference, its masks, and what is not a number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from module.dropout import NO_DROPOUT, DropoutStream
from mt_dnn.encoder import cpu_attention
from mt_dnn.encoder.cpu_attention import attend
from mt_dnn.encoder.slot_layout import slot_layout
from tests.reference.attention import attention, attention_gradients
from tests.reference.dropout import kept

SEED = 0xDEAD_BEEF_0123_4567


def layout_of(lengths, max_groups=4):
    return slot_layout(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), max_groups)


def draw_tensors(n, width, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator) * scale for _ in range(4)]


def run(q, k, v, layout, draw, heads, scale, g=None):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = attend(q, k, v, layout, draw, heads, scale)
    if g is not None:
        out.backward(g)
    return [x.detach() for x in (out, *(x.grad for x in (q, k, v) if g is not None))]


def expected(q, k, v, g, lengths, layout, heads, scale, seed=0, position=0, p=0.0):
    """Output and gradients in float64, example by example; masks lie flat over all scores of all rectangles."""
    q, k, v, g = (x.double().numpy() for x in (q, k, v, g))
    d = q.shape[1] // heads
    starts = np.concatenate([[0], np.cumsum(lengths)])
    results = [np.zeros_like(q) for _ in range(4)]
    entries = sum(group.size * heads * group.length**2 for group in layout.groups)
    kept_ = np.ones(entries) if p == 0.0 else kept(seed, position, entries, p) * (65536 / round((1 - p) * 65536))
    rows, at = np.argsort(layout.rows.numpy()), 0
    for group in layout.groups:
        for _ in range(group.size):
            example, rows = rows[0], rows[1:]
            inside = slice(starts[example], starts[example + 1])
            n = lengths[example]
            for h in range(heads):
                r = kept_[at : at + group.length**2].reshape(group.length, group.length)[:n, :n]
                at += group.length**2
                head = np.s_[inside, h * d : (h + 1) * d]
                parts = [x[head] for x in (q, k, v)]
                results[0][head] = attention(*parts, scale, r)[1]
                for result, gradient in zip(results[1:], attention_gradients(*parts, scale, r, g[head]), strict=True):
                    result[head] = gradient
    assert at == entries
    return results


def assert_near(got, wanted, tolerance=2e-5):
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=tolerance, atol=tolerance * max(np.abs(y).max(), 1e-6))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 20), st.integers(1, 130)), min_size=1, max_size=12),
    st.integers(1, 4), st.integers(4, 32), st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 5), st.integers(0, 1 << 40),
)  # fmt: skip
def test_values_and_gradients_equal_the_reference(lengths, heads, d, p, max_groups, position):
    check(lengths, heads, d, p, max_groups, position)


@pytest.mark.parametrize("lengths", [[1], [130, 1], [17] * 40, list(range(1, 41)), [16, 15, 17, 128, 127, 129]])
def test_edge_lengths_equal_the_reference(lengths):
    check(lengths, 3, 7, 0.2, 4, 5)


def check(lengths, heads, d, p, max_groups, position):
    layout = layout_of(lengths, max_groups)
    q, k, v, g = draw_tensors(sum(lengths), heads * d)
    stream = DropoutStream(SEED)
    stream.position = position
    entries = sum(heads * group.size * group.length**2 for group in layout.groups)
    assert layout.n_scores * heads == entries
    draw = stream.draw(entries, p)
    assert stream.position == position + (-(-entries // 2048) if p else 0)
    scale = d**-0.5
    got = run(q, k, v, layout, draw, heads, scale, g)
    assert_near(got, expected(q, k, v, g, lengths, layout, heads, scale, SEED, position, p))


def test_bits_do_not_depend_on_threads():
    lengths = [5, 37, 120, 1, 64, 64, 33] * 3
    layout, before = layout_of(lengths), torch.get_num_threads()
    q, k, v, g = draw_tensors(sum(lengths), 24)
    draw = DropoutStream(1).draw(layout.n_scores * 3, 0.1)
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(q, k, v, layout, draw, 3, 0.3, g))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def spied(monkeypatch):
    seen, forward = [], cpu_attention.softmax_forward

    def noted(*arguments):
        forward(*arguments)
        seen.append(arguments)

    monkeypatch.setattr(cpu_attention, "softmax_forward", noted)
    return seen


def test_without_dropout_one_buffer_is_torchs_softmax(monkeypatch):
    seen, n = spied(monkeypatch), 37
    q, k, v, _ = draw_tensors(n, 8)
    out = attend(q, k, v, layout_of([n]), NO_DROPOUT, 1, 0.5)
    torch.testing.assert_close(out, torch.softmax(0.5 * q @ k.T, -1) @ v, rtol=1e-6, atol=1e-6)
    assert seen[0][-2] == seen[0][-1]  # probabilities and dropped ones lie in one place


@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_large_scores_do_not_overflow_and_rows_sum_to_one(length):
    q = torch.tensor([1e4, -1e4, 1e4])[torch.arange(length) % 3][:, None]
    k = torch.linspace(1, 2, length)[:, None]
    ones = torch.ones(length, 1)
    out = attend(q, k, ones, layout_of([length]), NO_DROPOUT, 1, 1.0)
    torch.testing.assert_close(out, ones, rtol=1e-6, atol=0)
    for constant in (-1e4, 1e4, -1e25, -2e30, -3e38, 3e38):
        out = attend(ones, torch.full_like(ones, constant), k, layout_of([length]), NO_DROPOUT, 1, 1.0)
        torch.testing.assert_close(out, k.mean(0).expand_as(out), rtol=1e-6, atol=1e-6, msg=str(constant))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("length", [1, 5, 16, 21])
@pytest.mark.parametrize("where", ["q", "k", "every k", "v"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_what_is_no_number_reaches_the_output_as_in_torch(bad, length, where, p):
    lengths = [length, 3, length + 2]
    layout = layout_of(lengths, 1)
    q, k, v, _ = draw_tensors(sum(lengths), 2)
    q, k = q.abs(), k.abs()
    tensor = {"q": q, "k": k, "every k": k, "v": v}[where]
    tensor[: length if where == "every k" else 1, 0] = bad
    draw = DropoutStream(2).draw(layout.n_scores * 2, p)
    out = attend(q, k, v, layout, draw, 2, 1.0)
    here = slice(0, length)
    plain = torch.softmax(q[here, :1] @ k[here, :1].T, -1) @ v[here, :1]
    look = torch.isfinite if where == "v" else torch.isnan  # a dropped infinity is NaN
    assert torch.equal(look(out[here, 0]), look(plain[:, 0]))
    assert out[length:].isfinite().all()  # the other examples
    assert out[:, 1].isfinite().all()  # the other head


def test_padding_has_exactly_no_gradient(monkeypatch):
    """Of the scores: their gradients behind a rectangle's shorter examples are 0, not small."""
    found, states, place, backward = [], [], cpu_attention.place, cpu_attention.softmax_backward
    monkeypatch.setattr(cpu_attention, "place", lambda tensor, shape: (found.append(tensor), place(tensor, shape))[1])
    lengths, heads = [3, 9, 17], 2
    layout = layout_of(lengths, 1)
    q, k, v, g = draw_tensors(sum(lengths), 8)

    def noted(*arguments):
        backward(*arguments)
        states.append([x.clone() for x in found[-3:]])

    monkeypatch.setattr(cpu_attention, "softmax_backward", noted)
    run(q, k, v, layout, DropoutStream(1).draw(layout.n_scores * heads, 0.1), heads, 1.0, g)
    assert len(states) == 1
    for tensor in states[0]:  # probabilities, dropped ones, gradients
        squares = tensor.view(3, heads, 17, 17)
        for row, length in enumerate(sorted(lengths)):
            assert (squares[row, :, length:] == 0).all()
            assert (squares[row, :, :, length:] == 0).all()
            assert (squares[row, :, :length, :length] != 0).any()


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (2,)])
def test_frozen_inputs(frozen):
    layout = layout_of([4, 9])
    *tensors, g = draw_tensors(13, 6)
    wanted = run(*tensors, layout, NO_DROPOUT, 2, 0.7, g)[1:]
    inputs = [x.clone().requires_grad_(i not in frozen) for i, x in enumerate(tensors)]
    attend(*inputs, layout, NO_DROPOUT, 2, 0.7).backward(g)
    for i, (x, gradient) in enumerate(zip(inputs, wanted, strict=True)):
        assert x.grad is None if i in frozen else torch.equal(x.grad, gradient)


def test_second_backward_and_gradients_of_gradients_are_refused():
    """They would be silently wrong: what backward computes is not recorded."""
    layout = layout_of([4, 9])
    *tensors, _ = draw_tensors(13, 6)
    q, k, v = (x.requires_grad_() for x in tensors)
    out = attend(q, k, v, layout, NO_DROPOUT, 2, 0.7).sum()
    out.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward()
    out = attend(q, k, v, layout, NO_DROPOUT, 2, 0.7).square().sum()
    (gradient,) = torch.autograd.grad(out, q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiated twice"):
        (gradient.square().sum() + q.square().sum()).backward()


def test_other_memory_layouts_of_the_outputs_gradient():
    layout = layout_of([4, 9])
    *tensors, g = draw_tensors(13, 6)
    wanted = run(*tensors, layout, NO_DROPOUT, 2, 0.7, g)
    got = run(*tensors, layout, NO_DROPOUT, 2, 0.7, g.T.contiguous().T)
    assert all(map(torch.equal, got, wanted))
    ones = run(*tensors, layout, NO_DROPOUT, 2, 0.7, torch.ones(()).expand(13, 6))
    assert all(map(torch.equal, ones, run(*tensors, layout, NO_DROPOUT, 2, 0.7, torch.ones(13, 6))))
