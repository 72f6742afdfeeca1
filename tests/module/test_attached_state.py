"""PATS's own state beside that of any optimizer: saved, restored, taken over; and what it chooses."""

import copy
import warnings

import pytest
import torch

from module.bert_optim import PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import (
    SHAPES,
    assert_close,
    assert_nested_equal,
    assert_same_bits,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)

LOUD = {"threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7, "noise_scale": 0.05}


def copy_of(parameters):
    return {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}


def made(seed=0, **rule):
    parameters = make_parameters(seed)
    optimizer = torch.optim.AdamW(parameters.values(), 1e-3)
    return parameters, optimizer, PATS(parameters.items(), **{**LOUD, **rule}).attach(optimizer)


def trained(steps=3):
    parameters, optimizer, pats = made()
    train(parameters, optimizer, steps)
    return parameters, optimizer, pats


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"rule": {}, "state": {}}, "No state of PATS: it lacks noise_seed"),
        ([], "No state of PATS: a list: pass what state_dict"),
        (1, "No state of PATS: a int: pass what state_dict"),
        ({"rule": None, "noise_seed": 0, "state": {}}, "No state of PATS: its rule or its state is none"),
        ({"rule": {}, "noise_seed": -1, "state": {}}, "Invalid noise_seed: -1"),
        ({"rule": {}, "noise_seed": 0, "state": {"layer.1.output.dense.bias": [1]}}, "is a list: step, sensitivity"),
    ],
)
def test_what_is_no_state_of_pats_is_refused(saved, message):
    _, _, pats = trained()
    before = copy.deepcopy(pats.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        pats.load_state_dict(saved)
    assert_nested_equal(pats.state_dict(), before)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sensitivity": torch.zeros(3)}, r"^sensitivity of .* has shape \(3,\), the parameter \(33, 31\)"),
        ({"sensitivity": torch.zeros(())}, r"^sensitivity of .* has shape \(\), the parameter"),
        ({"sensitivity": None}, "^sensitivity of .* is missing"),
        ({"sensitivity_mean": torch.zeros(2)}, r"^sensitivity_mean of .* has shape \(2,\), one number is needed"),
        ({"step": [1]}, r"^step of .* is \[1\], no tensor"),
        ({"sensitivity": torch.zeros(33, 31).to_sparse()}, "a strided tensor is needed"),
    ],
    ids=str,
)
@pytest.mark.parametrize("through_optimizer", [True, False])
def test_what_does_not_fit_changes_neither(entry, message, through_optimizer):
    parameters, optimizer, pats = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["pats"]["state"]["layer.0.attention.self.query.weight"].update(entry)
    train(parameters, optimizer, 1, first=4)
    before = copy.deepcopy((optimizer.state_dict(), pats.state_dict()))
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state_dict(saved) if through_optimizer else pats.load_state_dict(saved["pats"])
    assert_nested_equal((optimizer.state_dict(), pats.state_dict()), before)


def test_a_state_that_the_optimizer_refuses_is_not_taken_by_pats():
    parameters, optimizer, pats = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["params"].append(10)
    train(parameters, optimizer, 1, first=4)
    before = copy.deepcopy(pats.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(saved)
    assert_nested_equal(pats.state_dict(), before)


def test_an_old_checkpoint_loads():
    """Until now the key ``pats`` was all there was."""
    parameters, optimizer, _ = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key in ("pats_step", "pats_sensitivity", "pats_sensitivity_mean"):
            state.pop(key, None)
    others = copy_of(parameters)
    other = torch.optim.AdamW(others.values(), 1e-3)
    PATS(others.items()).attach(other)
    other.load_state_dict(saved)
    train(parameters, optimizer, 2, first=4)
    train(others, other, 2, first=4)
    assert_same_bits(parameters, others)


def test_the_checkpoints_rule_says_which_tensors():
    parameters, optimizer, _ = made(perturb_biases=False)
    train(parameters, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    others = copy_of(parameters)
    other = torch.optim.AdamW(others.values(), 1e-3)
    pats = PATS(others.items()).attach(other)
    other.load_state_dict(saved)
    train(parameters, optimizer, 2, first=3)
    train(others, other, 2, first=3)
    assert_same_bits(parameters, others)
    assert all(path.endswith("weight") for path in pats.state_dict()["state"])


def test_the_optimizer_keeps_no_entry_of_pats():
    _, optimizer, _ = trained()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_what_was_loaded_before_attach_is_kept_and_said():
    parameters, optimizer, _ = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    others = copy_of(parameters)
    other = torch.optim.AdamW(others.values(), 1e-3)
    other.load_state_dict(saved)
    with pytest.warns(UserWarning, match=r"before PATS was attached: its sensitivities are kept.*: attach PATS first"):
        pats = PATS(others.items(), **LOUD).attach(other)
    assert all("pats_step" not in state for state in other.state.values())
    for path, state in pats.state_dict()["state"].items():
        assert torch.equal(state["sensitivity"], saved["pats"]["state"][path]["sensitivity"])
        assert state["step"] == 3
        assert_close(state["sensitivity_mean"], saved["pats"]["state"][path]["sensitivity_mean"])
    train(parameters, optimizer, 2, first=4)
    train(others, other, 2, first=4)
    for name in SHAPES:
        assert_close(others[name], parameters[name].detach(), name)


def test_steps_before_attach_are_said():
    parameters = make_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), 1e-3)
    train(parameters, optimizer, 1)
    with pytest.warns(UserWarning, match="before PATS was attached: its sensitivities start anew"):
        PATS(parameters.items()).attach(optimizer)


def test_what_pats_itself_has_loaded_before_attach_is_kept_without_a_word():
    parameters, optimizer, pats = trained()
    again = PATS(parameters.items())
    again.load_state_dict(pats.state_dict())
    pats.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.attach(optimizer)
    assert_nested_equal(again.state_dict(), pats.state_dict())


def freeze(parameters, layers=True):
    for name, parameter in parameters.items():
        parameter.requires_grad_(".layer." not in name if layers else True)


def test_nothing_to_choose_is_said_in_one_line():
    parameters = make_parameters()
    freeze(parameters)
    message = (
        "has nothing to perturb: every weight and bias of the encoder layers is frozen or excluded: unfreeze a layer"
    )
    with pytest.warns(UserWarning, match=f"^PATS {message}, or leave PATS out$"):
        PATS(parameters.items()).attach(torch.optim.SGD(parameters.values(), 1e-3))
    with pytest.warns(UserWarning, match=f"^PATSAdamax {message}"):
        PATSAdamax(parameters.items(), 1e-3)
    with pytest.warns(UserWarning, match="^SAGEAdamax has nothing to scale"):
        SAGEAdamax(parameters.items(), 1e-3)
    freeze(parameters, layers=False)
    with pytest.warns(UserWarning, match="^PATSAdamax has nothing to perturb"):
        PATSAdamax([{"params": list(parameters.items()), "perturb": False}], 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PATSAdamax(parameters.items(), 1e-3)
        PATS(parameters.items()).attach(torch.optim.SGD(parameters.values(), 1e-3))


def test_a_layer_unfrozen_later_is_perturbed_once_it_is_the_optimizers():
    parameters = make_parameters()
    query = [p for name, p in parameters.items() if "query" in name]
    rest = {name: p for name, p in parameters.items() if "query" not in name}
    for parameter in query:
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(rest.values(), 1e-3)
    pats = PATS(parameters.items(), **LOUD).attach(optimizer)
    train(rest, optimizer, 1)
    for parameter in query:
        parameter.requires_grad_(True)
    set_gradients(parameters, make_gradients(2))
    torch.optim.SGD(query, 1e-3).step()
    before = copy.deepcopy((pats.state_dict(), list(parameters.values())))
    with pytest.raises(ValueError, match=r"query\.weight' is to be perturbed, but is not a parameter of the optimizer"):
        optimizer.step()
    assert_nested_equal((pats.state_dict(), list(parameters.values())), before)
    optimizer.add_param_group({"params": query, "lr": 1e-2})
    optimizer.step()
    steps = {path: int(state["step"]) for path, state in pats.state_dict()["state"].items()}
    assert {step for path, step in steps.items() if "query" in path} == {1}
    assert {step for path, step in steps.items() if "query" not in path} == {2}
