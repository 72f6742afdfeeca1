"""The products that a step of a two-layer BERT is found to make are those of the architecture."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.matrix_products import Operand, Product, record, replay
from benchmarks.methods import build
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import PackedBatch, pack

D, FEED_FORWARD, HEADS, CLASSES = 32, 64, 2, 2  # of tests/tiny.py; two layers
LAYERS = 2
B = 16


def linear(rows: int, inputs: int, outputs: int) -> list[tuple[int, ...]]:
    """(M, N, K) of a linear layer: forward, gradient of its input, gradient of its weight."""
    return [(rows, outputs, inputs), (rows, inputs, outputs), (outputs, inputs, rows)]


def attention(pairs: int, queries: int, keys: int) -> list[tuple[int, ...]]:
    """Those of examples x heads; scores and their output, then gradients of probabilities, values, queries and keys."""
    d = D // HEADS
    forward = [(queries, keys, d), (queries, d, keys)]
    backward = [(queries, keys, d), (keys, d, queries), (queries, d, keys), (keys, d, queries)]
    return [(pairs, *size) for size in forward + backward]


def layer(batch: PackedBatch, first_tokens: bool = False) -> list[tuple[int, ...]]:
    """Products of one of the encoder's layers, for all tokens or, keys and values apart, for the first ones alone."""
    n = len(batch.input_ids)
    rows = B if first_tokens else n
    sizes = 2 * linear(n, D, D) + 2 * linear(rows, D, D) + linear(rows, D, FEED_FORWARD) + linear(rows, FEED_FORWARD, D)
    for group in () if first_tokens else batch.slots.groups:  # attention of the first ones is a pass of its own
        sizes += attention(group.size * HEADS, group.length, group.length)
    return sizes


def a_batch(config: RunConfig) -> PackedBatch:
    return pack(open_datasets(config).train, np.arange(B), 4)


@pytest.mark.parametrize("method", ["vanilla", "pats"])
def test_a_step_makes_the_products_of_the_architecture(tiny_run: Callable[..., RunConfig], method: str) -> None:
    config = tiny_run(method=method)
    batch = a_batch(config)
    assert len(batch.slots.groups) > 1 or batch.slots.groups[0].key_bias is not None  # of several lengths
    step, _ = build(config, open_datasets(config), [[batch]])
    expected = (LAYERS - 1) * layer(batch) + layer(batch, first_tokens=True) + linear(B, D, D) + linear(B, D, CLASSES)
    for _ in range(2):  # the first step and a later one
        assert Counter(product.size for product in record(partial(step, [batch]))) == Counter(expected)


def test_products_keep_strides_and_places(tiny_run: Callable[..., RunConfig]) -> None:
    config = tiny_run()
    batch = a_batch(config)
    step, _ = build(config, open_datasets(config), [[batch]])
    products = record(partial(step, [batch]))
    n = len(batch.input_ids)
    # The first linear layer of a feed-forward part reads its weight transposed.
    forward = [p for p in products if p.size == (n, FEED_FORWARD, D) and p.right.stride == (1, D)]
    weights = {p.right.address for p in forward}
    assert len(weights) == len(forward) > 0
    # The gradient of its input reads the same weight as it is.
    backward = [p for p in products if p.size == (n, D, FEED_FORWARD) and p.right.address in weights]
    assert [p.right.stride for p in backward] == [(D, 1)] * len(weights)


def test_recording_changes_no_numbers() -> None:
    layer, x = nn.Linear(3, 5), torch.randn(4, 3, requires_grad=True)
    outs: list[torch.Tensor] = []
    products = record(lambda: outs.append(layer(x)))
    assert torch.equal(outs[0], layer(x))
    assert [(p.size, p.flop) for p in products] == [((4, 5, 3), 120)]


def test_products_inside_of_another_operation_are_refused() -> None:
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match=r"attention.* makes its matrix products inside of itself"):
        record(lambda: nn.functional.scaled_dot_product_attention(q, q, q))


def test_a_replay_makes_the_recorded_products_again() -> None:
    a, b, batch = torch.randn(6, 4), torch.randn(3, 4), torch.randn(2, 5, 7)

    def step() -> None:
        torch.addmm(torch.zeros(3), a, b.t())
        torch.mm(a.t()[:2], a.bfloat16().float())
        torch.bmm(batch, batch.transpose(1, 2))
        torch.baddbmm(torch.zeros(()), batch, batch.transpose(1, 2))
        torch.mm(torch.ones(1).expand(2, 3), b)
        torch.mm(a.bfloat16(), b.bfloat16().t())

    products = record(step)
    again = record(replay(products))

    def form(one: Operand) -> tuple[object, ...]:
        return one.shape, one.stride, one.dtype

    def forms(found: list[Product]) -> list[list[tuple[object, ...]]]:
        return [[form(one) for one in (product.left, product.right, product.out)] for product in found]

    assert len(again) == 6
    assert forms(again) == forms(products)
    assert again[2].left.address == again[3].left.address  # one matrix in the step, one here
