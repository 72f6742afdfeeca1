"""What the optimizers take out of a checkpoint: torch's contract, others' states, and nothing by halves."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from tests.module.models import (
    PERTURBED,
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
OURS = {
    "adamax": lambda named, **k: Adamax(named, 1e-3, **k),
    "pats": lambda named, **k: PATSAdamax(named, 1e-3, **{**LOUD, **k}),
    "sage": lambda named, **k: SAGEAdamax(named, 1e-3, **k),
}
everywhere = pytest.mark.parametrize("make", OURS.values(), ids=OURS)
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
RATE = {"schedule": lambda step: 1e-3}


def copy_of(parameters):
    return {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}


def torch_adamax(steps=5, dtype=torch.float32):
    parameters = make_parameters(dtype=dtype)
    optimizer = torch.optim.Adamax(parameters.values(), 1e-3)
    train(parameters, optimizer, steps, **RATE)
    return parameters, optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda named: Adamax(named, 1e-2, rule="torch"),
        lambda named: PATSAdamax(named, 1e-2, rule="torch", noise_scale=0.0),
    ],
    ids=["adamax", "pats without noise"],
)
def test_torchs_adamax_goes_on_in_ours_and_back(make):
    theirs, optimizer = torch_adamax()
    ours = copy_of(theirs)
    again = make(list(ours.items()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["rule"] == "torch"
    assert again.param_groups[0]["lr"] == 1e-3  # the checkpoint's
    train(theirs, optimizer, 5, first=6, **RATE)
    train(ours, again, 5, first=6, **RATE)
    for name in SHAPES:
        assert_close(ours[name], theirs[name].detach(), name, 1e-6)
        assert again.state[ours[name]]["step"] == 10
    back = torch.optim.Adamax(ours.values(), 1e-3)
    back.load_state_dict(again.state_dict())
    train(theirs, optimizer, 2, first=11, **RATE)
    train(ours, back, 2, first=11, **RATE)
    for name in SHAPES:
        assert_close(ours[name], theirs[name].detach(), name, 1e-6)


def test_steps_that_are_plain_numbers_are_read():
    parameters, optimizer = torch_adamax()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    ours = Adamax(parameters.values(), 1e-3, rule="torch")
    ours.load_state_dict(saved)
    assert all(torch.equal(state["step"], torch.tensor(5.0)) for state in ours.state.values())


@pytest.mark.parametrize("target", ["pats", "sage"])
def test_plain_adamaxs_state_starts_sensitivities_at_zero_and_goes_back(target):
    a = make_parameters()
    plain = Adamax(a.items(), 1e-3)
    train(a, plain, 3)
    b = copy_of(a)
    tracking = OURS[target](list(b.items()))
    own = copy.deepcopy({key: value for key, value in tracking.param_groups[0].items() if key != "params"})
    tracking.load_state_dict(plain.state_dict())
    assert {key: tracking.param_groups[0][key] for key in own} == {**own, "lr": plain.param_groups[0]["lr"]}
    gradients = make_gradients(4)
    expected = {name: 0.25 * (b[name].detach() * gradients[name]).abs() for name in PERTURBED}  # 0 at the start
    set_gradients(b, gradients)
    tracking.step()
    for name in SHAPES:
        state = tracking.state[b[name]]
        assert state["step"] == 4
        assert ("sensitivity" in state) == (name in PERTURBED)
        if name in PERTURBED:
            assert_close(state["sensitivity"], expected[name], name)
            assert_close(state["sensitivity_mean"], expected[name].double().mean(), name)
    c = copy_of(b)
    back = Adamax(c.items(), 1e-3)
    back.load_state_dict(tracking.state_dict())
    alone = copy_of(b)
    other = Adamax(alone.items(), 1e-3)
    other.load_state_dict(tracking.state_dict())
    for state in other.state.values():
        state.pop("sensitivity", None)
        state.pop("sensitivity_mean", None)
    train(c, back, 2, first=5)
    train(alone, other, 2, first=5)
    assert_same_bits(c, alone)


def test_what_a_group_says_itself_stays_where_the_checkpoint_says_nothing():
    parameters = make_parameters()
    plain = Adamax(parameters.items(), 1e-3)
    group = {"params": list(parameters.items()), "perturb": False, "noise_scale": 0.25, "initial_lr": 0.5}
    ours = PATSAdamax([group], 1e-3)
    ours.load_state_dict(plain.state_dict())
    assert ours.param_groups[0]["perturb"] is False
    assert ours.param_groups[0]["noise_scale"] == 0.25
    assert ours.param_groups[0]["initial_lr"] == 0.5


@everywhere
@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("AdamW", 2, "Group 0 of the checkpoint has amsgrad: it is of another optimizer than Adamax"),
        ("Adam", 0, "Group 0 of the checkpoint has amsgrad: it is of another optimizer than Adamax"),
        ("SGD", 2, "Group 0 of the checkpoint lacks betas, eps: it is of another optimizer than Adamax"),
        ("SGD", 0, "Group 0 of the checkpoint lacks betas, eps: it is of another optimizer than Adamax"),
        ("RMSprop", 1, "Group 0 of the checkpoint lacks betas"),
        ("NAdam", 1, r"state of '.*' is step, mu_product, exp_avg, exp_avg_sq: Adamax's is step, exp_avg, exp_inf"),
    ],
)
def test_another_optimizers_state_is_refused_in_one_line(make, name, steps, message):
    parameters = make_parameters()
    theirs = getattr(torch.optim, name)(parameters.values(), 1e-3)
    train(parameters, theirs, steps)
    check_refused(make, theirs.state_dict(), message)


def check_refused(make, saved, message, kind=ValueError):
    """Before the first step and after some, nothing is changed."""
    for steps in (0, 2):
        parameters = make_parameters()
        optimizer = make(list(parameters.items()))
        train(parameters, optimizer, steps)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(kind, match=message) as error:
            optimizer.load_state_dict(copy.deepcopy(saved))
        assert "\n" not in str(error.value)
        assert_nested_equal(optimizer.state_dict(), before)
        train(parameters, optimizer, 1, first=3)


def saved_by(make, steps=2):
    parameters = make_parameters()
    optimizer = make(list(parameters.items()))
    train(parameters, optimizer, steps)
    return copy.deepcopy(optimizer.state_dict())


EDITS = {
    "another shape": (lambda s: s["state"][1].update(exp_inf=torch.ones(3)), r"exp_inf of .*query\.weight' has shape"),
    "one number for all": (lambda s: s["state"][1].update(exp_inf=torch.ones(())), r"has shape \(\), the parameter"),
    "several steps": (lambda s: s["state"][1].update(step=torch.ones(2)), r"has shape \(2,\), one number is needed"),
    "none": (lambda s: s["state"][1].update(exp_avg=None), r"exp_avg of .*query\.weight' is missing"),
    "a list": (lambda s: s["state"][1].update(exp_avg=[1.0]), r"exp_avg of .*query\.weight' is \[1\.0\], no tensor"),
    "sparse": (lambda s: s["state"][1].update(exp_avg=torch.ones(33, 31).to_sparse()), "a strided tensor is needed"),
    "meta": (lambda s: s["state"][1].update(exp_avg=torch.ones(33, 31, device="meta")), "is on meta"),
    "a missing key": (lambda s: s["state"][1].pop("exp_inf"), r"Adamax's is step, exp_avg, exp_inf"),
    "no dict": (lambda s: s["state"].update({1: [3]}), r"state of '.*query\.weight' is list: Adamax's is"),
    "one parameter more": (
        lambda s: s["param_groups"][0]["params"].append(10),
        r"groups of \[11\] parameters, .*\[10\]",
    ),
    "one group more": (lambda s: s["param_groups"].append(s["param_groups"][0]), r"groups of \[10, 10\] parameters"),
    "no group": (lambda s: s.pop("param_groups"), "No state of an optimizer: it lacks param_groups"),
    "another order": (
        lambda s: s["param_groups"][0]["param_names"].reverse(),
        r"has 'classifier\.weight' where the optimizer has '.*query\.weight': pass the same parameters",
    ),
    "out of range": (lambda s: s["param_groups"][0].update(eps=-1.0), "Invalid epsilon value: -1"),
    "betas of one": (lambda s: s["param_groups"][0].update(betas=(0.9,)), r"Invalid betas: \(0\.9,\): two numbers"),
    "a rate in words": (lambda s: s["param_groups"][0].update(lr="fast"), "Invalid learning rate: 'fast': a number in"),
    "rates": (lambda s: s["param_groups"][0].update(lr=torch.ones(2)), r"Invalid learning rate: tensor\(\[1"),
    "groups that are none": (lambda s: s.update(param_groups=[1]), "state or param_groups are none"),
    "a group without parameters": (lambda s: s["param_groups"][0].pop("params"), "state or param_groups are none"),
    "nameless names": (lambda s: s["param_groups"][0].update(param_names=None), "state or param_groups are none"),
    "no state": (lambda s: s.update(state=None), "state or param_groups are none"),
    "maximize": (lambda s: s["param_groups"][0].update(maximize=True), "Invalid maximize: True: False is needed"),
}


@everywhere
@pytest.mark.parametrize("what", EDITS)
def test_what_does_not_fit_is_refused_as_a_whole(make, what):
    saved = saved_by(make)
    change, message = EDITS[what]
    change(saved)
    check_refused(make, saved, message, (ValueError, TypeError))


@pytest.mark.parametrize("make", [OURS["pats"], OURS["sage"]])
def test_half_a_sensitivity_is_refused(make):
    saved = saved_by(make)
    del saved["state"][1]["sensitivity_mean"]
    check_refused(make, saved, r"^sensitivity_mean of '.*query\.weight' is missing", TypeError)


def test_another_prefix_is_the_same_order():
    saved = saved_by(OURS["pats"])
    parameters = make_parameters()
    optimizer = PATSAdamax([(f"module.net.{name}", p) for name, p in parameters.items()], 1e-3)
    optimizer.load_state_dict(saved)
    train(parameters, optimizer, 1)


values = st.one_of(
    st.builds(
        lambda shape, dtype, layout: torch.ones(shape, dtype=dtype, device=layout),
        st.sampled_from([(), (1,), (2,), (33,), (33, 31), (31, 33), (34, 31), (1, 33, 31)]),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64]),
        st.sampled_from(["cpu", "meta"]),
    ),
    st.none(), st.booleans(), st.floats(), st.text(max_size=2), st.lists(st.integers(), max_size=2),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Casting complex values")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(OURS)),
    key=st.sampled_from(["step", "exp_avg", "exp_inf", "sensitivity", "sensitivity_mean", "other"]),
    value=values,
)
def test_whatever_a_checkpoint_holds_it_loads_whole_or_not_at_all(name, key, value):
    saved, parameters = saved_by(OURS[name]), make_parameters()
    optimizer = OURS[name](list(parameters.items()))
    saved["state"][1][key] = value
    try:
        optimizer.load_state_dict(saved)
    except (TypeError, ValueError):
        assert not optimizer.state
    train(parameters, optimizer, 1, first=3)
    state = optimizer.state[parameters[QUERY]]
    assert all(state[key].shape == (33, 31) and state[key].dtype == torch.float32 for key in ("exp_avg", "exp_inf"))


@everywhere
def test_hooks_before_and_after_loading_are_heard(make):
    saved, parameters = saved_by(make, steps=3), make_parameters()
    optimizer, after = make(list(parameters.items())), []

    def double(_, state_dict):
        state = {i: {**entries, "exp_avg": entries["exp_avg"] * 2} for i, entries in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def in_place(_, state_dict):
        state_dict["param_groups"] = [{**group, "eps": 0.5} for group in state_dict["param_groups"]]

    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.register_load_state_dict_pre_hook(in_place)
    optimizer.register_load_state_dict_post_hook(lambda o: after.append(o.state[parameters[QUERY]]["exp_avg"].clone()))
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    assert_nested_equal(saved, kept)
    assert torch.equal(after[0], 2 * saved["state"][1]["exp_avg"])
    assert torch.equal(optimizer.state[parameters[QUERY]]["exp_avg"], after[0])
    assert optimizer.param_groups[0]["eps"] == 0.5
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2


@everywhere
@pytest.mark.filterwarnings("ignore:.*updates and noise below")
def test_the_state_of_16_bit_parameters_keeps_its_precision(make):
    parameters = make_parameters(dtype=torch.bfloat16)
    optimizer = make(list(parameters.items()))
    train(parameters, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert_nested_equal(optimizer.state_dict(), saved)
    assert optimizer.state[parameters[QUERY]]["exp_avg"].bfloat16().float().ne(saved["state"][1]["exp_avg"]).any()


@everywhere
def test_groups_are_added_after_loading(make):
    parameters = make_parameters()
    named = list(parameters.items())
    optimizer = make(named[:-2])
    train(dict(named[:-2]), optimizer, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.add_param_group({"params": named[-2:]})
    train(parameters, optimizer, 2, first=3)
    assert [int(optimizer.state[p]["step"]) for p in parameters.values()] == [4] * (len(named) - 2) + [2, 2]


def test_a_parameter_replaced_in_a_group_is_the_one_that_counts():
    parameters = make_parameters()
    optimizer = OURS["pats"](list(parameters.items()))
    train(parameters, optimizer, 1)
    place = list(SHAPES).index(QUERY)
    parameters[QUERY] = optimizer.param_groups[0]["params"][place] = torch.nn.Parameter(torch.ones(5, 4))
    train(parameters, optimizer, 1, first=2)
    assert optimizer.state[parameters[QUERY]]["sensitivity"].shape == (5, 4)


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (OURS["adamax"], ["rule"]),
        (OURS["pats"], ["rule", "noise_seed", "reading", "max_ratio"]),
        (OURS["sage"], ["rule", "sensitivity_eps"]),
    ],
)
def test_old_pickles_get_what_they_lack(make, keys):
    parameters = make_parameters()
    optimizer = make(list(parameters.items()))
    train(parameters, optimizer, 1)
    for key in keys:
        del optimizer.param_groups[0][key], optimizer.defaults[key]
    again = pickle.loads(pickle.dumps(optimizer))
    group = again.param_groups[0]
    defaults = {"rule": "mtdnn", "noise_seed": 0, "reading": "gated", "max_ratio": None, "sensitivity_eps": 1e-12}
    assert {key: group[key] for key in keys} == {key: defaults[key] for key in keys}
    train(dict(zip(parameters, group["params"], strict=True)), again, 1, first=2)


def test_groups_that_change_their_mind_are_heard_at_the_next_step():
    a, b = make_parameters(), make_parameters()
    noisy, plain = OURS["pats"](list(a.items())), OURS["adamax"](list(b.items()))
    noisy.param_groups[0]["perturb"] = False
    train(a, noisy, 3)
    train(b, plain, 3)
    assert_same_bits(a, b)
    assert noisy.observations() == []
    noisy.param_groups[0]["perturb"] = True
    train(a, noisy, 1, first=4)
    train(b, plain, 1, first=4)
    assert not any(torch.equal(a[name], b[name]) for name in SHAPES if a[name].numel() > 100)
    del noisy.param_groups[0]["perturb"]
    noisy.param_groups[0]["perturb_biases"] = False
    train(a, noisy, 1, first=5)
    assert len(noisy.observations()) == sum(name.endswith("weight") for name in PERTURBED)


def test_sages_groups_are_heard_too():
    a, b = make_parameters(), make_parameters()
    scaled, plain = OURS["sage"](list(a.items())), OURS["adamax"](list(b.items()))
    scaled.param_groups[0]["scale"] = False
    train(a, scaled, 3)
    train(b, plain, 3)
    assert_same_bits(a, b)
