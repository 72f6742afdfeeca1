"""Mixout: the layer against the reference, what is replaced, whole runs."""

import numpy as np
import pytest
import torch
from torch import nn

from module.context import DropoutRates
from module.methods import build_method, parse_method
from module.methods.mixout import Mixout, MixoutSettings
from module.methods.parts.mixout_linear import MixoutLinear
from module.random_streams import RandomStream
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.models import make_context, tiny_bert
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.reference import mixout as reference

CPU = torch.device("cpu")


def layer(p=0.7, granularity="column", official=False, seed=0):
    torch.manual_seed(seed)
    dense = nn.Linear(6, 5).double()
    anchor = dense.weight.detach() + 0.1 * torch.randn(5, 6, dtype=torch.float64)
    return MixoutLinear(dense, anchor, p, granularity, official, RandomStream(seed, CPU)), dense, anchor


def mask_of(p, granularity, stream):
    return (stream.kept(torch.empty(1 if granularity == "column" else 5, 6), 1 - p) != 0).double().numpy()


@pytest.mark.parametrize("granularity", ["column", "element"])
@pytest.mark.parametrize("official", [False, True])
def test_equals_the_reference_forward_and_backward(granularity, official):
    p = 0.75  # which 1/65536 steps hold exactly
    mixing, dense, anchor = layer(p, granularity, official)
    stream, masks = RandomStream(0, CPU), []
    w, w0, bias = dense.weight.detach().numpy(), anchor.numpy(), dense.bias.detach().numpy()
    for _ in range(20):
        x = torch.randn(3, 6, dtype=torch.float64)
        mixing.zero_grad()
        y = mixing(x)
        (y**2).sum().backward()
        m = mask_of(p, granularity, stream)
        masks.append(m)
        mixed = reference.mixed(w, w0, m, p)
        expected = x.numpy() @ mixed.T + bias
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
        of_mixed = (2 * expected).T @ x.numpy()
        gradient = reference.gradient(of_mixed, m, p, official)
        np.testing.assert_allclose(mixing.weight.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(mixing.bias.grad.numpy(), (2 * expected).sum(0), rtol=1e-10)
    assert masks[0].shape == ((1, 6) if granularity == "column" else (5, 6))
    assert 0.1 < np.mean(masks) < 0.4


def test_the_gradient_is_that_of_what_is_computed():
    mixing, _, anchor = layer(0.5)
    assert mixing.weight.requires_grad
    state = mixing.stream.state()

    def loss(weight):
        mixing.stream.restore(state)
        with torch.no_grad():
            mixing.weight.copy_(weight)
        return (mixing(torch.ones(2, 6, dtype=torch.float64)) ** 3).sum()

    start = mixing.weight.detach().clone()
    loss(start).backward()
    gradient, numeric = mixing.weight.grad.clone(), torch.zeros_like(start)
    for i in range(5):
        for j in range(6):
            step = torch.zeros_like(start)
            step[i, j] = 1e-6
            numeric[i, j] = float((loss(start + step) - loss(start - step)).detach()) / 2e-6
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-6)
    assert anchor.grad is None


@pytest.mark.parametrize("granularity", ["column", "element"])
def test_the_mean_of_the_mixed_weight_is_the_weight(granularity):
    mixing, dense, anchor = layer(0.7, granularity)
    identity = torch.eye(6, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([mixing(identity).T - mixing.bias[:, None] for _ in range(4000)])
    spread = (dense.weight - anchor).abs().max() * (0.7 / 0.3) ** 0.5
    assert (draws.mean(0) - dense.weight).abs().max() < 5 * spread / 4000**0.5
    assert draws.std(0).max() > 0.8 * spread


def test_evaluation_and_p_0_are_the_plain_layer():
    x = torch.randn(4, 6, dtype=torch.float64)
    mixing, dense, _ = layer(0.9)
    assert not torch.equal(mixing(x), dense(x))
    assert torch.equal(mixing.eval()(x), dense(x))
    mixing, dense, _ = layer(0.0)
    assert torch.equal(mixing(x), dense(x))
    assert mixing.stream.state()["masks"] == 0


def build(settings=None, model=None):
    model = model or tiny_bert()
    network = nn.Module()
    network.bert, network.classifier = model, nn.Linear(32, 2)
    context = make_context(network.named_parameters(), network)
    method = Mixout(settings)
    method.setup(context)
    return network, context


def replaced(network):
    return {name for name, module in network.named_modules() if isinstance(module, MixoutLinear)}


def test_it_takes_the_place_of_the_encoder_s_linear_layers():
    plain = tiny_bert()
    linear = {f"bert.{name}" for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    before = plain.state_dict()
    owned = dict(plain.named_parameters())
    network, _ = build(model=plain)
    assert replaced(network) == linear
    assert "bert.pooler.dense" in linear, "the encoder's own pooler came with the pretrained weights"
    after = {n.removeprefix("bert."): p for n, p in network.state_dict().items() if n.startswith("bert.")}
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(p is owned[n.removeprefix("bert.")] for n, p in network.named_parameters() if n.startswith("bert."))
    network.load_state_dict(network.state_dict())
    assert replaced(build(MixoutSettings(include_head=True))[0]) == linear | {"classifier"}


def test_layers_keep_their_mode_and_the_anchor_follows_the_device():
    network, _ = build()
    layers = [module for module in network.modules() if isinstance(module, MixoutLinear)]
    assert not any(module.training for module in layers), "the tiny encoder was in evaluation mode"
    assert all(module.to("meta").anchor.device.type == "meta" for module in layers)


@pytest.mark.parametrize("anchor", ["pretrained", "init"])
def test_the_anchor_is_the_weight_as_loaded_or_as_set_up(anchor):
    model = tiny_bert()
    network = nn.Module()
    network.bert = model
    context = make_context(network.named_parameters(), network)
    method = build_method("mixout+noisytune", {"mixout": MixoutSettings(anchor=anchor)})
    assert method.anchors == {anchor}
    loaded = model.encoder.layer[0].output.dense.weight.detach().clone()
    for kind in method.anchors & {"pretrained"}:
        context.anchor(kind)
    method.setup(context)
    dense = model.encoder.layer[0].output.dense
    assert not torch.equal(dense.weight, loaded)
    assert torch.equal(dense.anchor, loaded if anchor == "pretrained" else dense.weight)


def test_an_encoder_without_linear_layers_is_refused():
    network = nn.Module()
    network.register_parameter("encoder", None)
    weights = {"encoder.layer.0.dense.weight": nn.Parameter(torch.ones(2, 2))}
    context = make_context(weights.items(), network)
    with pytest.raises(ValueError, match=r"mixout finds no nn\.Linear in the encoder"):
        Mixout().setup(context)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.0}, r"Invalid probability: 1.0: a number in \[0, 1\) is needed"),
        ({"probability": -0.1}, "Invalid probability: -0.1"),
        ({"granularity": "row"}, "Invalid granularity: 'row': one of column, element is needed"),
        ({"anchor": "noisy"}, "Invalid anchor: 'noisy': one of pretrained, init is needed"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MixoutSettings(**settings)


def test_dropout_is_off_and_the_control_says_so():
    assert Mixout().configure(DropoutRates(0.1, 0.2, 0.3)) == DropoutRates(0.0, 0.0, 0.0)
    assert parse_method(Mixout.control) == ("no_dropout",)


def test_p_0_is_its_control_bit_for_bit(tiny_run):
    plain = plain_weights(tiny_run, method=Mixout.control)
    quiet = final_weights(tiny_run(save="last", method="mixout", mixout={"probability": 0.0}))
    assert list(plain) == list(quiet)
    assert all(torch.equal(plain[name], quiet[name]) for name in plain)
    mixed = final_weights(tiny_run(save="last", method="mixout", mixout={"probability": 0.5}))
    assert not all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_masks_change_neither_head_nor_data_order(tiny_run):
    """With a learning rate of nearly nothing W stays W0, and mixing changes nothing."""
    import json

    losses = {}
    for method in (Mixout.control, "mixout"):
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1)
        run(config)
        lines = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()]
        losses[method] = [line["loss"] for line in lines if "loss" in line]
    assert losses["mixout"] == pytest.approx(losses[Mixout.control], rel=1e-5)


def test_packed_and_padded_batches_have_the_same_masks(tiny_run):
    same = {"save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4, "method": "mixout"}
    packed = final_weights(tiny_run(attention="packed", **same))
    padded = final_weights(tiny_run(attention="padded", **same))
    for name in packed:
        torch.testing.assert_close(packed[name], padded[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["mixout", "noisytune+mixout", "mixout+pats"])
def test_it_runs_under_bf16_and_beside_others(tiny_run, method):
    settings = {"granularity": "element", "official_grad_scale": True, "include_head": True}
    result = run(tiny_run(method=method, precision="bf16", epochs=1, mixout=settings))
    assert result.status in (Status.OK, Status.DEGENERATE)
