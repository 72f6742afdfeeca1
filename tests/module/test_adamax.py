"""Adamax against its float64 reference and torch's own."""

import pytest
import torch

from module.bert_optim import Adamax
from tests.module.models import (
    SCALE,
    SHAPES,
    assert_close,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)
from tests.reference import adamax as reference


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize(("decay", "betas"), [(0.0, (0.9, 0.999)), (0.01, (0.8, 0.9)), (0.3, (0.5, 0.5))])
def test_equals_the_reference_on_parameters_and_state(rule, decay, betas):
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 1e-3, betas, weight_decay=decay, rule=rule)
    thetas = float64(parameters)
    states = {path: reference.new_state(theta) for path, theta in thetas.items()}
    for step in range(1, 31):
        train(parameters, optimizer, 1, first=step)
        eps = {"mtdnn": 1e-6, "torch": 1e-8}[rule]
        for path, g in float64(make_gradients(step)).items():
            thetas[path] = reference.adamax_step(
                thetas[path], g, states[path], learning_rate(step), *betas, eps, decay, rule
            )
    for parameter, (path, theta) in zip(parameters.values(), thetas.items(), strict=True):
        state = optimizer.state[parameter]
        assert_close(parameter, theta, path, scale=SCALE)
        assert_close(state["exp_avg"], states[path]["m"], path)
        assert_close(state["exp_inf"], states[path]["u"], path)
        assert state["step"] == 30


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_torch_rule_equals_torch(decay, eps):
    ours, theirs = make_parameters(), make_parameters()
    a = Adamax(ours.values(), 1e-3, eps=eps, weight_decay=decay, rule="torch")
    b = torch.optim.Adamax(theirs.values(), 1e-3, eps=eps, weight_decay=decay)
    train(ours, a, 30)
    train(theirs, b, 30)
    for name in SHAPES:
        assert_close(ours[name], theirs[name].detach().double(), name)
        for key in ("exp_avg", "exp_inf"):
            assert_close(a.state[ours[name]][key], b.state[theirs[name]][key].double(), key)


def test_rule_mtdnn_has_no_bias_correction_and_eps_twice():
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    parameter.grad = torch.tensor([4.0])
    Adamax([parameter], lr=0.5, betas=(0.9, 0.999), eps=1.0, weight_decay=0.1).step()
    assert parameter.item() == pytest.approx(2.0 - 0.5 * (0.1 * 4.0 / (5.0 + 1.0) + 0.1 * 2.0), rel=1e-6)


def test_learning_rate_zero_moves_only_the_state():
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 0.0)
    train(parameters, optimizer, 1, schedule=lambda step: 0.0)
    for name, before in make_parameters().items():
        assert torch.equal(parameters[name], before)
        assert optimizer.state[parameters[name]]["exp_avg"].any()


def test_defaults_are_those_of_the_rule():
    parameter = torch.nn.Parameter(torch.zeros(1))
    mtdnn, like_torch = (Adamax([parameter], 1e-3, rule=rule).defaults for rule in ("mtdnn", "torch"))
    assert (mtdnn["eps"], mtdnn["weight_decay"]) == (1e-6, 0.01)
    assert (like_torch["eps"], like_torch["weight_decay"]) == (1e-8, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": 1e-3, "betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"lr": 1e-3, "betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"lr": 1e-3, "eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"lr": 1e-3, "weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"lr": 1e-3, "rule": "adam"}, "Invalid rule: 'adam': one of mtdnn, torch"),
    ],
)
def test_values_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adamax([torch.nn.Parameter(torch.zeros(1))], **arguments)


def test_a_group_that_is_refused_is_not_kept():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = Adamax([a], 1e-3)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optimizer.add_param_group({"params": [b], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [b], "lr": 0.1})
    a.grad = b.grad = torch.ones(1)
    optimizer.step()
    assert abs(b.item()) > 10 * abs(a.item()) > 0


def test_closure_is_evaluated_with_gradients_and_its_loss_returned():
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = Adamax([parameter], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() < 3.0


def test_a_scheduler_of_torch_drives_it():
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    set_gradients(parameters, make_gradients(1))
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_nothing_to_do_is_no_error():
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 1e-3)
    assert optimizer.step() is None
    assert not optimizer.state


def test_unknown_arguments_and_rules_of_groups_are_errors():
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match="momentum"):
        Adamax([parameter], 1e-3, momentum=0.9)
    with pytest.raises(ValueError, match="Invalid rule: 'adam'"):
        Adamax([{"params": [parameter], "rule": "adam"}], 1e-3)
