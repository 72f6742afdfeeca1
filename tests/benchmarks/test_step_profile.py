"""The kinds of work in a step's profile."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.methods import build
from benchmarks.step_profile import KINDS, kind_of, shares
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.encoder.batch import pack


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("step > aten::linear > aten::addmm", "matrix_products"),
        ("step > aten::linear", "host"),
        ("step > aten::linear > aten::t > aten::as_strided", "host"),
        ("step", "host"),
        ("step > autograd::engine::evaluate_function: AddmmBackward0 > AddmmBackward0", "host"),
        ("step > autograd::engine::evaluate_function: AddmmBackward0 > aten::sum", "other"),
        ("step > _Unpack > aten::index_select", "attention_rest"),
        ("step > autograd::engine::evaluate_function: SliceBackward0 > aten::add_", "attention_rest"),
        ("step > aten::embedding > aten::index_select", "embedding"),
        ("step > aten::index_select", "other"),
        ("step > aten::matmul > aten::reshape > aten::clone > aten::copy_", "casts_and_copies"),
        ("step > aten::native_layer_norm", "norms"),
        ("step > aten::gelu_backward", "activation"),
        ("step > aten::mul", "dropout"),
        ("step > dropout", "dropout"),
        ("step > clipping > aten::_foreach_mul_ > aten::mul_", "clipping"),
        ("step > Optimizer.step#Adamax.step", "optimizer"),
        ("step > Optimizer.step#AdamW.step > aten::mul", "optimizer"),
        ("step > Optimizer.zero_grad#Adamax.zero_grad", "host"),
    ],
)
def test_the_kind_of_an_event(path: str, kind: str) -> None:
    event = None
    for name in path.split(" > "):
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert kind_of(event) == kind


def test_shares_of_a_real_step(tiny_run: Callable[..., RunConfig]) -> None:
    config = tiny_run(method="pats")
    data = open_datasets(config)
    batch = [pack(data.train, np.arange(16), 4)]
    step, _ = build(config, data, [batch])
    found = shares(partial(step, batch))
    assert list(found) == list(KINDS)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found.pop("clipping") == 0.0  # on the CPU it is a part of the optimizer's step
    assert [kind for kind, share in found.items() if not share > 0.0] == []
