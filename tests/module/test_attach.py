"""PATS around other optimizers."""

import copy

import numpy as np
import pytest
import torch

from module.bert_optim import Adamax, NonFiniteGradient, PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import (
    PERTURBED,
    SHAPES,
    assert_close,
    assert_nested_equal,
    assert_same_bits,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)
from tests.module.test_pats import SWITCHES
from tests.reference import pats as reference

LOUD = {"threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7}


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_on_adamax_it_is_patsadamax_bit_for_bit(switches, rule):
    a, b = make_parameters(), make_parameters()
    together = PATSAdamax(a.items(), 1e-3, rule=rule, noise_seed=2**40 + 1, **switches)
    train(a, together, 25)
    plain = Adamax(b.values(), 1e-3, rule=rule)
    pats = PATS(b.items(), noise_seed=2**40 + 1, **switches).attach(plain)
    train(b, plain, 25)
    assert_same_bits(a, b)
    alone = pats.state_dict()["state"]
    assert len(alone) == sum("sensitivity" in state for state in together.state.values())
    for path, state in alone.items():
        for key in ("step", "sensitivity", "sensitivity_mean"):
            assert torch.equal(state[key], together.state[a[f"bert.encoder.{path}"]][key])


def adamw_direction(theta, g, state, **_):
    """torch.optim.AdamW at its defaults, as theta - eta d."""
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return m / (np.sqrt(v) + 1e-8) + 0.01 * theta


def sgd_direction(theta, g, state, **_):
    state["t"] += 1
    return g


@pytest.mark.parametrize(
    ("make", "update"), [(torch.optim.AdamW, adamw_direction), (torch.optim.SGD, sgd_direction)], ids=["adamw", "sgd"]
)
def test_on_other_optimizers_equals_the_reference(make, update):
    parameters = make_parameters()
    optimizer = make(parameters.values(), 1e-3)
    pats = PATS(parameters.items(), noise_scale=0.05, **LOUD).attach(optimizer)
    thetas = float64({name: parameters[name] for name in PERTURBED})
    states = {path: reference.new_state(theta) for path, theta in thetas.items()}
    rule = {"lam": 0.05, "threshold_mode": "none", "p": 0.9, "seed": 7}
    for step in range(1, 22):
        train(parameters, optimizer, 1, first=step)
        g = float64({name: make_gradients(step)[name] for name in PERTURBED})
        thetas = reference.pats_step(thetas, g, states, learning_rate(step), update=update, **rule)
    saved = pats.state_dict()["state"]
    for name in PERTURBED:
        path = name.removeprefix("bert.encoder.")
        assert_close(parameters[name], thetas[path], path, scale=0.04)
        before = make_parameters()[name].detach().double().numpy()
        assert_close(parameters[name].detach().double().numpy() - before, thetas[path] - before, path, tolerance=1e-3)
        assert_close(saved[path]["sensitivity"], states[path]["s_bar"], path)


@pytest.mark.parametrize("make", [torch.optim.Adamax, torch.optim.AdamW, torch.optim.SGD])
def test_without_noise_the_optimizer_is_unchanged_bit_for_bit(make):
    a, b = make_parameters(), make_parameters()
    train(a, make(a.values(), 1e-3), 5)
    optimizer = make(b.values(), 1e-3)
    PATS(b.items(), noise_scale=0.0).attach(optimizer)
    train(b, optimizer, 5)
    assert_same_bits(a, b)


def test_groups_keep_their_own_learning_rates():
    def run(first, second):
        parameters = make_parameters()
        named = list(parameters.items())
        optimizer = torch.optim.SGD(
            [{"params": [p for _, p in named[:3]], "lr": first}, {"params": [p for _, p in named[3:]], "lr": second}]
        )
        PATS(named, **LOUD).attach(optimizer)
        set_gradients(parameters, make_gradients(1))
        optimizer.step()
        return parameters

    both, low, high = run(1e-4, 1e-2), run(1e-4, 1e-4), run(1e-2, 1e-2)
    for i, name in enumerate(SHAPES):
        assert torch.equal(both[name], (low if i < 3 else high)[name])


@pytest.mark.parametrize("as_keyword", [False, True])
def test_a_closure_is_called_once_and_its_gradients_are_seen(as_keyword):
    a, b = make_parameters(), make_parameters()
    train(a, PATSAdamax(a.items(), 1e-3, **LOUD), 1)
    optimizer = Adamax(b.values(), 1e-3)
    PATS(b.items(), **LOUD).attach(optimizer)
    optimizer.param_groups[0]["lr"] = learning_rate(1)
    calls = []

    def closure():
        calls.append(1)
        set_gradients(b, make_gradients(1))
        return torch.tensor(2.0)

    loss = optimizer.step(closure=closure) if as_keyword else optimizer.step(closure)
    assert loss == 2.0
    assert len(calls) == 1
    assert_same_bits(a, b)


def test_state_dict_round_trip_continues_exactly():
    a = make_parameters()
    optimizer = torch.optim.AdamW(a.values(), 1e-3)
    pats = PATS(a.items(), **LOUD).attach(optimizer)
    train(a, optimizer, 5)
    saved = copy.deepcopy((pats.state_dict(), optimizer.state_dict(), {n: p.detach().clone() for n, p in a.items()}))
    train(a, optimizer, 5, first=6)

    b = make_parameters(seed=1)
    other = torch.optim.AdamW(b.values(), 1e-3)
    named = [(name.replace("bert.", "module.encoder.model."), p) for name, p in b.items()]  # another wrapper
    again = PATS(named).attach(other)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for name, value in saved[2].items():
        b[name].data.copy_(value)
    train(b, other, 5, first=6)
    assert_same_bits(a, b)


def test_state_of_another_model_is_refused():
    pats = PATS(make_parameters().items())
    good = {"rule": {}, "noise_seed": 0}
    state = {"step": torch.zeros(()), "sensitivity": torch.zeros(2), "sensitivity_mean": torch.zeros(())}
    with pytest.raises(ValueError, match=r"layer\.9\.x.*not perturbed here"):
        pats.load_state_dict({**good, "state": {"layer.9.x": {}}})
    with pytest.raises(ValueError, match=r"shape \(2,\), the parameter \(1024,\)"):
        pats.load_state_dict({**good, "state": {"layer.1.output.dense.bias": state}})


def test_detach_stops_it_and_attach_twice_is_refused():
    parameters = make_parameters()
    optimizer = torch.optim.SGD(parameters.values(), 1e-3)
    pats = PATS(parameters.items(), **LOUD).attach(optimizer)
    with pytest.raises(ValueError, match=r"attached already: call detach\(\)"):
        pats.attach(optimizer)
    pats.detach()
    train(parameters, optimizer, 2)
    plain = make_parameters()
    train(plain, torch.optim.SGD(plain.values(), 1e-3), 2)
    assert_same_bits(plain, parameters)
    pats.attach(optimizer)


def test_what_perturbs_by_itself_or_lacks_parameters_is_refused():
    parameters = make_parameters()
    with pytest.raises(ValueError, match="PATSAdamax perturbs by itself"):
        PATS(parameters.items()).attach(PATSAdamax(parameters.items(), 1e-3))
    some = [p for name, p in parameters.items() if "query" not in name]
    with pytest.raises(ValueError, match=r"query\.weight' is to be perturbed, but is not a parameter of the optimizer"):
        PATS(parameters.items()).attach(SAGEAdamax([(f"encoder.layer.0.x{i}", p) for i, p in enumerate(some)], 1e-3))
    for name, parameter in parameters.items():
        parameter.requires_grad_("query" not in name)
    PATS(parameters.items()).attach(torch.optim.SGD(some, 1e-3))


def test_parameters_that_took_the_place_of_the_watched_ones_are_refused():
    """fully_shard after attach() does this: without a word the optimizer would train without PATS from then on."""
    parameters = make_parameters()
    optimizer = torch.optim.SGD(parameters.values(), 1e-3)
    PATS(parameters.items()).attach(optimizer)
    others = make_parameters()
    optimizer.param_groups[0]["params"] = list(others.values())
    with pytest.raises(ValueError, match=r"is to be perturbed, but is not a parameter of the optimizer"):
        train(others, optimizer, 1)


def test_non_finite_gradients_stop_the_step_before_the_optimizer_sees_them():
    parameters = make_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), 1e-3)
    pats = PATS(parameters.items(), **LOUD).attach(optimizer)
    train(parameters, optimizer, 2)
    before = copy.deepcopy((optimizer.state_dict(), pats.state_dict(), {n: p.detach() for n, p in parameters.items()}))
    set_gradients(parameters, make_gradients(3))
    parameters[PERTURBED[2]].grad.view(-1)[5] = float("inf")
    with pytest.raises(NonFiniteGradient) as error:
        optimizer.step()
    assert error.value.parameter == PERTURBED[2]
    assert_nested_equal(optimizer.state_dict(), before[0])
    assert_nested_equal(pats.state_dict()["state"], before[1]["state"])
    assert_same_bits(parameters, before[2])


def test_bfloat16_parameters_have_a_float32_sensitivity():
    parameters = make_parameters(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(parameters.values(), 1e-3)
    pats = PATS(parameters.items(), **LOUD).attach(optimizer)
    train(parameters, optimizer, 3)
    for state in pats.state_dict()["state"].values():
        assert state["sensitivity"].dtype == torch.float32
        assert 0 < state["sensitivity"].max() < 1e-3
