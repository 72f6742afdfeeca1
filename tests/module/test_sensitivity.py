"""What is logged about the noise, and the histogram of Figure 2."""

import math

import numpy as np
import pytest
import torch

from module.bert_optim import Adamax, PATSAdamax
from module.pats import PATS
from module.pats_rule import PATSRule
from module.sensitivity import Observation, noise_statistics, sensitivity_histogram, sensitivity_moments
from tests.module.models import PERTURBED, make_gradients, make_parameters, set_gradients, train

BIG = {f"encoder.layer.{i}.output.dense.weight": (400, 300) for i in range(3)}


def one_step(shapes, **switches):
    a, b = make_parameters(shapes=shapes), make_parameters(shapes=shapes)
    for step in (1, 2):
        for parameters in (a, b):
            set_gradients(parameters, make_gradients(step, shapes))
        if step == 1:
            plain, noisy = Adamax(a.items(), 1e-3), PATSAdamax(b.items(), 1e-3, **switches)
        before = {n: p.detach().clone() for n, p in a.items()}
        plain.step()
        if step == 2:
            for name in b:
                b[name].data.copy_(before[name])
        noisy.step()
    return before, a, b, noisy


@pytest.mark.parametrize(
    "switches",
    [
        {"threshold_mode": "none", "noise_probability": 1.0, "max_ratio": 20.0},
        {"sensitivity_threshold": 2e-6, "max_ratio": 20.0},
        {"mean_scope": "model", "threshold_mode": "ratio", "sensitivity_threshold": 0.5, "max_ratio": 20.0},
        {"noise_times_lr": False, "noise_scale": 1e-5, "max_ratio": 5.0},
    ],
)
def test_statistics_agree_with_the_noise_that_was_drawn(switches):
    before, plain, noisy, optimizer = one_step(BIG, **switches)
    noise = torch.cat([(plain[n] - noisy[n]).detach().double().ravel() for n in BIG])
    update = torch.cat([(plain[n] - before[n]).detach().double().ravel() for n in BIG])
    statistics = noise_statistics(optimizer.observations(), samples=10**9)
    assert statistics["noise_norm"] == pytest.approx(noise.norm().item(), rel=0.05)
    expected = (noise.norm() / update.norm()).item()
    assert statistics["noise_over_update"] == pytest.approx(expected, rel=0.05)
    p = switches.get("noise_probability", 0.5)
    drawn = 1 - (noise == 0).double().mean().item() / 1.0
    assert (1 - statistics["spared"]) * p == pytest.approx(drawn, abs=0.02)
    sampled = noise_statistics(optimizer.observations(), samples=20_000)
    for key, value in statistics.items():
        assert sampled[key] == pytest.approx(value, rel=0.15, abs=0.02), key


def test_quantiles_of_the_ratio():
    s = torch.linspace(1.0, 2.0, 10_001)
    rule = PATSRule(threshold_mode="none")
    statistics = noise_statistics([Observation(rule, 0.1, 1.5, s)], samples=10**9)
    assert statistics["ratio_q50"] == pytest.approx(1.0)
    assert statistics["ratio_q10"] == pytest.approx(1.5 / 1.9, rel=1e-3)
    expected = 0.1 * 5e-3 * math.sqrt(0.5 * float((1.5 / s.double()).square().sum()))
    assert statistics["noise_norm"] == pytest.approx(expected, rel=1e-3)
    assert "noise_over_update" not in statistics


def test_no_step_yet_means_no_statistics():
    assert noise_statistics([]) == {}
    assert PATSAdamax(make_parameters().items(), 1e-3).observations() == []


def test_histogram_counts_every_entry_once():
    tensors = [torch.tensor([[0.0, 5e-8, 1e-6], [9.99e-6, 1.01e-5, 1.0]]), torch.full((3,), 1e-7)]
    counts, edges = sensitivity_histogram(tensors, bins=20)
    assert counts.sum() == 9
    assert (counts[0], counts[-1]) == (1, 2)
    assert edges[[0, -1]] == pytest.approx([5e-8, 1e-5])
    assert np.diff(np.log(edges)) == pytest.approx(np.log(200) / 20)
    place = np.searchsorted(edges, 1e-7, side="right")
    assert counts[place] == 3
    with pytest.raises(ValueError, match="0 < low < high"):
        sensitivity_histogram(tensors, low=1.0, high=0.5)


def test_moments():
    mean, deviation = sensitivity_moments([torch.tensor([1.0, 2.0]), torch.tensor([[6.0]])])
    assert (mean, deviation) == (3.0, pytest.approx(np.std([1, 2, 6])))
    assert all(math.isnan(value) for value in sensitivity_moments([]))


def test_zero_scale_shows_the_sensitivity_of_plain_adamax():
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3, noise_scale=0.0)
    train(parameters, optimizer, 3)
    counts, _ = sensitivity_histogram(optimizer.state[parameters[n]]["sensitivity"] for n in PERTURBED)
    assert counts.sum() == sum(parameters[n].numel() for n in PERTURBED)


@pytest.mark.parametrize("attached", [False, True])
def test_statistics_are_brought_from_the_device_in_two_pieces(monkeypatch, attached):
    """Whatever the number of tensors: their means, and the sampled entries."""
    parameters = make_parameters()
    if attached:
        optimizer = Adamax(parameters.items(), 1e-3)
        source = PATS(parameters.items()).attach(optimizer)
    else:
        source = optimizer = PATSAdamax(parameters.items(), 1e-3)
    train(parameters, optimizer, 2)
    expected = noise_statistics(source.observations())
    brought = []
    for name in ("cpu", "tolist", "item", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, f=original, n=name: (brought.append(n), f(t))[1])
    assert noise_statistics(source.observations()) == expected
    assert sorted(brought) == ["cpu", "tolist"]
