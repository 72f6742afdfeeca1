"""PATS's noise spread otherwise, against the float64 reference, and what it must reduce to."""

import pytest
import torch

from module.bert_optim import Adamax
from module.methods.matched_noise import MatchedNoiseSettings
from module.methods.parts.noise_spread import SpreadNoise, misplaced
from module.pats import PATS
from module.pats_rule import PATSRule
from tests.module.models import (
    PERTURBED,
    SCALE,
    assert_close,
    assert_same_bits,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    train,
)
from tests.module.test_pats import SWITCHES, SYMBOLS
from tests.reference import pats as reference

SEED = 99


def offset_of(path, size):
    """By how many entries ``misplaced`` moves a tensor of this size along."""
    return int(misplaced(torch.arange(size), SEED, path).argmin())


def correlation(a, b):
    """Of the logarithms; 0 where one is nearly constant."""
    return float(torch.corrcoef(torch.stack([a.flatten().log(), b.flatten().log()]))[0, 1])


@pytest.mark.parametrize("spread", ["uniform", "shuffled"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_equals_the_reference(switches, spread):
    parameters, filled = make_parameters(), PATSRule(**switches)
    symbols = {symbol: getattr(filled, name) for name, symbol in SYMBOLS.items()}
    paths = {
        name: name.removeprefix("bert.encoder.")
        for name in PERTURBED
        if filled.perturb_biases or not name.endswith("bias")
    }
    thetas = float64({name: parameters[name] for name in paths})
    states = {path: reference.new_state(theta) for path, theta in thetas.items()}
    moved = {path: offset_of(path, theta.size) for path, theta in thetas.items()}
    optimizer = Adamax(parameters.values(), 1e-3, weight_decay=0.01)
    pats = SpreadNoise(parameters.items(), noise_seed=SEED, spread=spread, **switches).attach(optimizer)
    for step in range(1, 26):
        train(parameters, optimizer, 1, first=step)
        thetas = reference.pats_step(
            thetas, float64({name: make_gradients(step)[name] for name in paths}), states, learning_rate(step),
            seed=SEED, spread="uniform" if spread == "uniform" else moved, **symbols,
        )  # fmt: skip
    for name, path in paths.items():
        assert_close(parameters[name], thetas[path], path, scale=SCALE)
        assert_close(pats.state_dict()["state"][path]["sensitivity"], states[path]["s_bar"], path)


@pytest.mark.parametrize("spread", ["uniform", "shuffled"])
def test_without_strength_it_is_plain_adamax_bit_for_bit(spread):
    a, b = make_parameters(), make_parameters()
    plain, controlled = Adamax(a.values(), 1e-3), Adamax(b.values(), 1e-3)
    SpreadNoise(b.items(), noise_scale=0.0, spread=spread).attach(controlled)
    train(a, plain, 5)
    train(b, controlled, 5)
    assert_same_bits(a, b)


@pytest.mark.parametrize("spread", ["uniform", "shuffled"])
def test_a_tensor_gets_as_much_noise_as_from_pats_on_other_entries(spread):
    """Many draws at learning rate 1 of one matrix with very unequal sensitivities."""
    name, size = next((n, t.numel()) for n, t in make_parameters().items() if n in PERTURBED and t.ndim == 2)
    start = make_parameters()[name].detach().clone()
    gradient = torch.logspace(-3, 0, size).reshape(start.shape)

    def variances(spread):
        total = torch.zeros_like(start)
        for seed in range(400):
            parameter = torch.nn.Parameter(torch.ones_like(start))
            optimizer = torch.optim.SGD([parameter], 1.0)
            rule = {"noise_seed": seed, "noise_probability": 1.0, "threshold_mode": "none"}
            if spread == "sensitivity":
                PATS([(name, parameter)], **rule).attach(optimizer)
            else:
                SpreadNoise([(name, parameter)], spread=spread, **rule).attach(optimizer)
            parameter.grad = gradient.clone()
            optimizer.step()
            total += (parameter.detach() - (1.0 - gradient)).square()
        return total / 400

    pats, other = variances("sensitivity"), variances(spread)
    assert float(other.sum() / pats.sum()) == pytest.approx(1.0, abs=0.15)
    assert abs(correlation(pats, other)) < 0.5
    assert correlation(pats, gradient.square()) < -0.9, "PATS's own noise goes where the sensitivity is small"
    if spread == "uniform":
        assert float(other.max() / other.min()) < 3.0, "one size for all"


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="Invalid spread: 'even': one of uniform, shuffled is needed"):
        MatchedNoiseSettings(spread="even")
    with pytest.raises(ValueError, match="Invalid noise_scale: -1"):
        MatchedNoiseSettings(noise_scale=-1.0)
    with pytest.raises(ValueError, match="Invalid spread: 'even': one of uniform, shuffled is needed"):
        SpreadNoise(make_parameters().items(), spread="even")
