"""SAGEAdamax against its float64 reference, and the bounds of its factor."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from module.bert_optim import Adamax, SAGEAdamax
from tests.module.models import (
    PERTURBED,
    SCALE,
    SHAPES,
    assert_close,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    train,
)
from tests.reference import adamax
from tests.reference import sage as reference


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize("beta", [0.0, 0.75, 0.85])
def test_equals_the_reference_on_parameters_and_state(rule, beta):
    parameters = make_parameters()
    optimizer = SAGEAdamax(parameters.items(), 1e-3, rule=rule, weight_decay=0.01, sensitivity_beta=beta)
    eps = {"mtdnn": 1e-6, "torch": 1e-8}[rule]
    thetas = float64(parameters)
    chosen = {name.removeprefix("bert.encoder.") for name in PERTURBED}
    states = {path: (reference if path in chosen else adamax).new_state(theta) for path, theta in thetas.items()}
    for step in range(1, 26):
        train(parameters, optimizer, 1, first=step)
        for path, g in float64(make_gradients(step)).items():
            eta, state = learning_rate(step), states[path]
            if path in chosen:
                thetas[path] = reference.sage_step(thetas[path], g, state, eta, beta, eps=eps, rule=rule)
            else:
                thetas[path] = adamax.adamax_step(thetas[path], g, state, eta, eps=eps, rule=rule)
    for parameter, (path, theta) in zip(parameters.values(), thetas.items(), strict=True):
        state = optimizer.state[parameter]
        assert_close(parameter, theta, path, scale=SCALE)
        assert_close(state["exp_avg"], states[path]["m"], path)
        assert_close(state["exp_inf"], states[path]["u"], path)
        assert ("sensitivity" in state) == (path in chosen)
        if path in chosen:
            assert_close(state["sensitivity"], states[path]["s_bar"], path)


def factors(history, beta):
    """Ratio of SAGE's last step to plain Adamax's, for one entry with these gradients and the parameter held at 1."""
    name = "encoder.layer.0.output.dense.weight"
    steps, options = [], {"weight_decay": 0.0, "eps": 1e-6}
    for make in (
        lambda p: SAGEAdamax([(name, p)], 1.0, sensitivity_beta=beta, **options),
        lambda p: Adamax([p], 1.0, **options),
    ):
        parameter = torch.nn.Parameter(torch.ones(1))
        optimizer = make(parameter)
        for g in history:
            with torch.no_grad():
                parameter.fill_(1.0)
            parameter.grad = torch.tensor([g])
            optimizer.step()
        steps.append(1.0 - parameter.item())
    return steps[0] / steps[1]


@pytest.mark.parametrize("beta", [0.5, 0.75, 0.85])
def test_factor_of_the_first_step_is_beta_over_one_minus_beta(beta):
    assert factors([0.3], beta) == pytest.approx(beta / (1 - beta), rel=1e-5)


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8), st.sampled_from([0.5, 0.6, 0.75, 0.9]))
@settings(max_examples=30, deadline=None)
def test_factor_is_bounded(history, beta):
    assert -1e-3 <= factors(history, beta) <= max(1.0, beta / (1 - beta)) + 1e-3


def test_factor_is_beta_times_the_change_over_the_average():
    # I - I_bar = beta (I - I_bar_before)
    first, second, beta = 0.2, 0.5, 0.75
    before = (1 - beta) * first
    after = beta * before + (1 - beta) * second
    assert factors([first, second], beta) == pytest.approx(beta * abs(second - before) / after, rel=1e-4)


def test_a_steady_sensitivity_stops_the_entry():
    assert factors([0.3] * 60, 0.5) == pytest.approx(0.0, abs=1e-5)


def test_zero_gradient_gives_factor_zero_and_no_nan():
    parameters = make_parameters()
    optimizer = SAGEAdamax(parameters.items(), 1e-3, weight_decay=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, before in make_parameters().items():
        if name in PERTURBED:
            assert torch.equal(parameters[name], before), "decay is scaled too"
        else:
            assert torch.isfinite(parameters[name]).all()


def test_groups_may_choose():
    a, b = make_parameters(), make_parameters()
    train(a, Adamax(a.items(), 1e-3), 3)
    train(b, SAGEAdamax([{"params": list(b.items()), "scale": False}], 1e-3), 3)
    assert all(torch.equal(a[name], b[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensitivity_beta": 1.0}, "Invalid sensitivity_beta: 1.0"),
        ({"sensitivity_eps": 0.0}, "Invalid sensitivity_eps"),
    ],
)
def test_values_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SAGEAdamax(make_parameters().items(), 1e-3, **arguments)
    with pytest.raises(ValueError, match=r"SAGEAdamax .*needs names"):
        SAGEAdamax(make_parameters().values(), 1e-3)
    assert np.isfinite(factors([0.1], 0.75))
