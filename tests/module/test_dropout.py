"""Dropout's stream: bit for bit its definition, whatever the threads; resumable; the right mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from module.dropout import DropoutStream, StreamDropout, replace_dropout
from tests.reference.dropout import kept

P = 0.1


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 5000), st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_reference(dtype, seed, position, n, p):
    stream = DropoutStream(seed)
    stream.position = position
    factors = stream.factors(torch.zeros(n, dtype=dtype), p)
    assert factors.dtype == dtype
    expected = torch.from_numpy(kept(seed, position, n, p))
    assert torch.equal(factors != 0, expected)
    scale = torch.tensor(65536 / round((1 - p) * 65536), dtype=dtype)
    assert torch.equal(factors, torch.where(expected, scale, torch.zeros((), dtype=dtype)))
    assert stream.position == position + -(-n // 2048)


def test_inside_a_transform_it_is_what_it_is_outside():
    """There a new tensor is a wrapper, whose memory holds no numbers."""
    x = torch.ones(300)
    assert torch.equal(torch.func.functionalize(lambda x: DropoutStream(3)(x, P))(x), DropoutStream(3)(x, P))
    outside = torch.compile(StreamDropout(P, DropoutStream(3)).train(), backend="eager")
    assert torch.equal(outside(x), DropoutStream(3)(x, P))


@pytest.mark.parametrize("threads", [2, 5])
def test_does_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    like = torch.zeros(3, 300_001)
    try:
        torch.set_num_threads(1)
        one = DropoutStream(3).factors(like, P)
        torch.set_num_threads(threads)
        assert torch.equal(DropoutStream(3).factors(like, P), one)
    finally:
        torch.set_num_threads(before)


def test_the_position_is_the_whole_state():
    stream, x = DropoutStream(9), torch.ones(7, 1000)
    first = stream(x, P)
    here = stream.position
    second = stream(x, P)
    assert not torch.equal(first, second)
    resumed = DropoutStream(9)
    resumed.position = here
    assert torch.equal(resumed(x, P), second)
    assert not torch.equal(DropoutStream(10)(x, P), first)


def test_rate_scale_and_independence_of_neighbours():
    n = 1 << 22
    factors = DropoutStream(1).factors(torch.zeros(n), P)
    dropped = (factors == 0).double()
    sigma = (P * (1 - P) / n) ** 0.5
    assert abs(dropped.mean() - P) < 5 * sigma
    assert abs(factors.double().mean() - 1) < 5 * sigma / (1 - P)
    centred = dropped - dropped.mean()
    for lag in (1, 2, 255, 256, 257, 512, 2048):  # neighbours in memory, in a call of the generator, in a block
        correlation = (centred[lag:] * centred[:-lag]).mean() / (P * (1 - P))
        assert abs(correlation) < 5 / n**0.5, lag


def test_gradient_is_the_same_mask():
    x = torch.randn(50, 40, requires_grad=True)
    y = DropoutStream(2)(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad, DropoutStream(2).factors(x, 0.3))


def test_replaced_modules_keep_probability_and_mode_and_leave_torchs_generator_alone():
    network = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), nn.Sequential(nn.Dropout(0.0))).eval()
    replace_dropout(network, stream := DropoutStream(4))
    assert isinstance(network[1], StreamDropout)
    assert network[1].p == 0.4
    x = torch.ones(30, 8)
    assert torch.equal(network[1](x), x)  # still evaluating
    assert stream.position == 0
    network.train()
    before = torch.get_rng_state()
    assert torch.equal(network[1](x), DropoutStream(4)(x, 0.4))
    assert torch.equal(network[2](x), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [1.0, 1e-6, 1.5])
def test_probabilities_out_of_range_are_refused(p):
    with pytest.raises(ValueError, match=rf"Invalid dropout probability: {p}: 0, or a number in"):
        DropoutStream(0)(torch.zeros(3), p)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float64: float32, bfloat16 or float16 is needed"):
        DropoutStream(0)(torch.zeros(3, dtype=torch.float64), P)
