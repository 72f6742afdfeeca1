"""Products taken into the operations behind them: the numbers of torch's own layers, and where they stay apart."""

import copy
import pickle

import pytest
import torch
from torch import nn

from module.dropout import DropoutStream, replace_dropout
from mt_dnn.encoder import residual_norm, self_attention
from tests.mt_dnn.encoder.small_encoders import both, make_encoder

FAMILIES = residual_norm.FAMILIES
BATCH = both([37, 3, 20, 4, 35, 2, 19, 5])[0]


@pytest.fixture
def taken(monkeypatch):
    """How often attention and norms took products in."""
    calls = {"attention": 0, "norm": 0}

    def counted(module, name, key):
        function = getattr(module, name)

        def call(*arguments):
            found = function(*arguments)
            calls[key] += bool(found)
            return found

        monkeypatch.setattr(module, name, call)

    counted(self_attention, "_takes_products", "attention")
    counted(residual_norm, "_takes_product", "norm")
    return calls


def made(family="bert", p=0.0):
    encoder = make_encoder(family, True).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    replace_dropout(encoder, DropoutStream(3))
    encoder.dropout_stream = DropoutStream(4)
    return encoder


def outcome(encoder):
    out = encoder(BATCH)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return {"": out.detach(), **{name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}}


def assert_alike(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = 1.0 if name.endswith("key.bias") else float(tensor.abs().max())  # that gradient is 0 but for rounding
        difference = float((found[name].double() - tensor.double()).abs().max())
        assert difference <= tolerance * max(scale, 1e-3), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_values_and_gradients_are_the_layers_own(family, p, taken, monkeypatch):
    found = outcome(made(family, p))
    assert taken == {"attention": 1, "norm": 4}
    monkeypatch.setattr(self_attention, "_takes_products", lambda *_: False)
    monkeypatch.setattr(residual_norm, "_takes_product", lambda *_: False)
    assert_alike(found, outcome(made(family, p)), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_float64(family, taken):
    found, before = outcome(made(family)), dict(taken)
    assert_alike(found, outcome(made(family).double()), 5e-5)
    assert taken == before


class Wider(nn.Linear):
    """Not torch's own."""


@pytest.mark.parametrize("name", ["attention.self.key", "attention.output.dense"])
def test_a_layer_that_somebody_looks_into_or_replaced_is_called(name, taken):
    key = "attention" if name.endswith("key") else "norm"
    outcome(made())
    usual = taken[key]
    for change in ("hook", "class", "forward", "no bias"):
        encoder, seen = made(), []
        layer = encoder.model.encoder.layer[0].get_submodule(name)
        if change == "hook":
            layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        elif change == "class":
            layer.__class__ = Wider
        elif change == "forward":
            layer.forward = lambda x, layer=layer, seen=seen: (seen.append(1), nn.Linear.forward(layer, x))[1]
        else:
            layer.bias = None
        taken[key] = 0
        outcome(encoder)
        assert taken[key] == usual - 1, change
        assert len(seen) == (change in ("hook", "forward")), change


def test_neither_in_evaluation_nor_under_autocast(taken):
    encoder = made()
    with torch.no_grad():
        encoder(BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        outcome(encoder)
    assert taken == {"attention": 0, "norm": 0}


def test_frozen_weights_get_no_gradients_and_change_none(taken):
    encoder = made()
    wanted = outcome(encoder)
    frozen = made()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    taken.update(attention=0, norm=0)
    found = outcome(frozen)
    assert taken["attention"] == 1
    assert_alike(found, {name: wanted[name] for name in found}, 1e-6)
    assert all(name.endswith("bias") for name in found if name)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_compute_with_their_own_weights(copied, taken):
    first = made()
    second = copied(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert_alike(outcome(second), outcome(made()), 1e-7)
    assert taken["attention"] == 2
