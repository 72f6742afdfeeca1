"""Tensors of the user's own choice: in both kinds of PATS, in SAGE, by groups, and in networks without layers."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from module import PATS, Adamax, PATSAdamax, SAGEAdamax, noisytune
from module.choice import Choice
from tests.module.models import PERTURBED, SHAPES, assert_same_bits, make_parameters, tiny_bert, train

LOUD = {"noise_scale": 0.05, "threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7}
HEAD = ["classifier.weight", "classifier.bias"]
CHOICES = {
    "a function": (lambda name, parameter: parameter.ndim > 1 and "query" not in name,
                   [name for name, shape in SHAPES.items() if len(shape) > 1 and "query" not in name]),
    "a glob": ("bert.encoder.layer.0.*.bias", [n for n in SHAPES if ".layer.0." in n and n.endswith("bias")]),
    "globs": (["*.query.*", "classifier*"], [name for name in SHAPES if "query" in name or name in HEAD]),
    "none of its own": (None, PERTURBED),
}  # fmt: skip
choices = pytest.mark.parametrize(("chosen", "expected"), CHOICES.values(), ids=CHOICES)


def by_function(name, parameter):
    return "query" in name


def named(parameters):
    return parameters.items()


def moved(parameters, others):
    return [name for name in parameters if not torch.equal(parameters[name], others[name])]


def plain(steps=2):
    parameters = make_parameters()
    train(parameters, Adamax(named(parameters), 1e-3), steps)
    return parameters


@choices
def test_pats_perturbs_what_is_chosen_alike_in_both_forms(chosen, expected):
    a, b, c = make_parameters(), make_parameters(), make_parameters()
    train(a, PATSAdamax(named(a), 1e-3, perturb=chosen, **LOUD), 2)
    for parameters, constructor, attach in ((b, chosen, None), (c, None, chosen)):
        optimizer = Adamax(named(parameters), 1e-3)
        PATS(named(parameters), perturb=constructor, **LOUD).attach(optimizer, perturb=attach)
        train(parameters, optimizer, 2)
    assert moved(a, plain()) == [name for name in SHAPES if name in expected]
    assert_same_bits(a, b)
    assert_same_bits(a, c)


@choices
def test_sage_scales_what_is_chosen(chosen, expected):
    parameters = make_parameters()
    train(parameters, SAGEAdamax(named(parameters), 1e-3, scale=chosen), 2)
    assert moved(parameters, plain()) == [name for name in SHAPES if name in expected]


def test_a_choice_holds_for_groups_that_come_later_and_their_own_flags_overrule_it():
    parameters = make_parameters()
    first, later = list(parameters.items())[:6], list(parameters.items())[6:]
    optimizer = PATSAdamax(first, 1e-3, perturb=["*.query.*"], **LOUD)
    optimizer.add_param_group({"params": later[:2]})
    optimizer.add_param_group({"params": later[2:], "perturb": True})
    train(parameters, optimizer, 2)
    assert moved(parameters, plain()) == [n for n in SHAPES if "query" in n or n in HEAD]


@pytest.mark.parametrize("attached", [False, True])
def test_a_groups_flag_that_is_changed_holds_from_the_next_step_on(attached):
    parameters, former = make_parameters(), plain(0)
    optimizer = (Adamax if attached else PATSAdamax)(named(parameters), 1e-3, **({} if attached else LOUD))
    if attached:
        PATS(named(parameters), **LOUD).attach(optimizer)
    quiet = Adamax(named(former), 1e-3)
    group = optimizer.param_groups[0]
    for step, (flag, expected) in enumerate([(False, []), (True, list(SHAPES)), (False, [])], 1):
        for name, parameter in parameters.items():
            former[name].data.copy_(parameter)
        group["perturb"] = flag
        train(parameters, optimizer, 1, first=step)
        train(former, quiet, 1, first=step)
        assert moved(parameters, former) == expected
    del group["perturb"]
    for name, parameter in parameters.items():
        former[name].data.copy_(parameter)
    train(parameters, optimizer, 1, first=4)
    train(former, quiet, 1, first=4)
    assert moved(parameters, former) == PERTURBED


def test_a_group_of_the_attached_optimizer_may_leave_tensors_out():
    parameters = make_parameters()
    values = list(parameters.values())
    optimizer = torch.optim.AdamW([{"params": values[:3], "perturb": False}, {"params": values[3:]}], 1e-3)
    pats = PATS(named(parameters), **LOUD).attach(optimizer)
    train(parameters, optimizer, 2)
    assert {path.split(".")[1] for path in pats.state_dict()["state"]} == {"0", "1"}
    assert not any("query.weight" in path or "query.bias" in path for path in list(pats.state_dict()["state"])[:1])
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[1]["perturb"] = False
    optimizer.load_state_dict(saved)  # the state of what is not perturbed now comes back all the same
    assert "perturb" not in optimizer.param_groups[1]


@pytest.mark.parametrize("flag", ["*.query.*", lambda name, parameter: True, 2])
def test_a_groups_flag_is_true_or_false(flag):
    parameters = make_parameters()
    with pytest.raises(ValueError, match=r"Invalid perturb of a parameter group: .*True or False is needed"):
        PATSAdamax([{"params": list(parameters.items()), "perturb": flag}], 1e-3)
    optimizer = torch.optim.SGD([{"params": list(parameters.values()), "perturb": flag}], 1e-3)
    with pytest.raises(ValueError, match="Invalid perturb of a parameter group"):
        PATS(named(parameters)).attach(optimizer)


def test_a_failed_attach_leaves_nothing_behind():
    parameters = make_parameters()
    pats = PATS(named(parameters), **LOUD)
    optimizer = Adamax(named(parameters), 1e-3)
    some = torch.optim.SGD(list(parameters.values())[:2], 1e-3)
    with pytest.raises(ValueError, match="is not a parameter of the optimizer"):
        pats.attach(some, perturb="classifier*")
    train(parameters, pats.attach(optimizer)._optimizer, 2)
    assert moved(parameters, plain()) == PERTURBED


MAKERS = {
    "PATSAdamax": lambda named, chosen: PATSAdamax(named, 1e-3, perturb=chosen),
    "PATS": lambda named, chosen: PATS(named, perturb=chosen),
    "attach": lambda named, chosen: PATS(named).attach(Adamax([p for _, p in named], 1e-3), perturb=chosen),
    "SAGEAdamax": lambda named, chosen: SAGEAdamax(named, 1e-3, scale=chosen),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@makers
def test_a_glob_that_matches_nothing_names_the_nearest(make):
    parameters = list(make_parameters().items())
    nearest = (
        r"(perturb|scale): '.*layers.*' matches no name: nearest: bert\.encoder\.layer\.\*\.attention\.self\.query"
    )
    with pytest.raises(ValueError, match=nearest) as error:
        make(parameters, ["classifier.*", "bert.encoder.layers.*.attention.self.query.weight"])
    assert "\n" not in str(error.value)


@makers
@pytest.mark.parametrize("chosen", [True, 3, [], ["a", 1]])
def test_what_chooses_nothing_says_what_does(make, chosen):
    with pytest.raises(TypeError, match=r"Invalid (perturb|scale): .*function \(name, parameter\) -> bool, a glob on"):
        make(list(make_parameters().items()), chosen)


def test_globs_are_compared_without_wrappers_too():
    choice = Choice("perturb", ["encoder.layer.0.*"])
    choice.check(["module._orig_mod.encoder.layer.0.dense.base_layer.weight"])
    assert choice("module.encoder.layer.0.dense.weight", None)
    assert not choice("module.encoder.layer.1.dense.weight", None)


def test_copies_and_pickles_keep_the_choice():
    for chosen in (by_function, "*.query.*"):
        parameters = make_parameters()
        optimizer = PATSAdamax(named(parameters), 1e-3, perturb=chosen, **LOUD)
        for copied in (copy.deepcopy((parameters, optimizer)), pickle.loads(pickle.dumps((parameters, optimizer)))):
            train(*copied, 2)
            assert moved(copied[0], plain()) == [name for name in SHAPES if "query" in name]
    attached = Adamax(named(parameters), 1e-3)
    PATS(named(parameters), perturb=lambda name, parameter: "query" in name, **LOUD).attach(attached)
    copied = pickle.loads(pickle.dumps((parameters, attached)))
    train(*copied, 2)
    assert moved(copied[0], plain()) == [name for name in SHAPES if "query" in name]


def mlp(*widths):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


@makers
def test_where_nothing_repeats_a_choice_is_asked_for(make):
    with pytest.raises(ValueError, match=r"No layers among the parameters: .*perturb= of PATS and PATSAdamax"):
        make(list(mlp(4, 5, 2).named_parameters()), None)


def test_an_mlp_is_perturbed_where_it_is_chosen():
    for attached in (False, True):
        model, quiet = mlp(4, 5, 2), mlp(4, 5, 2)
        if attached:
            optimizer = Adamax(model.parameters(), 1e-2)
            PATS(model, perturb="*.weight", **LOUD).attach(optimizer)
        else:
            optimizer = PATSAdamax(model, 1e-2, perturb="*.weight", **LOUD)
        for one, trained in ((model, optimizer), (quiet, Adamax(quiet, 1e-2))):
            one(torch.ones(3, 4)).square().sum().backward()
            trained.step()
        there = dict(quiet.named_parameters())
        assert moved(dict(model.named_parameters()), there) == ["0.weight", "1.weight"]


def test_a_model_may_be_passed_whole():
    for make in (lambda m: PATSAdamax(m, 1e-3), lambda m: SAGEAdamax(m, 1e-3), lambda m: Adamax(m, 1e-3)):
        model = tiny_bert()
        optimizer = make(model)
        assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    assert len(PATS(model)._perturbed) == len(PATS(model.named_parameters())._perturbed) == 24


@pytest.mark.parametrize("make", [PATS, noisytune, lambda p: PATSAdamax(p, 1e-3), lambda p: SAGEAdamax(p, 1e-3)])
def test_parameters_without_names_are_refused_with_what_to_pass(make):
    with pytest.raises(ValueError, match=r"names: pass (the model, or )?model\.named_parameters\(\)"):
        make(tiny_bert().parameters())


@pytest.mark.parametrize("make", [PATS, lambda p, **k: PATSAdamax(p, 1e-3, **k)], ids=["PATS", "PATSAdamax"])
def test_a_mistyped_switch_names_the_nearest(make):
    with pytest.raises(
        TypeError, match=r"^PATS(Adamax)? has no switch 'noise_scal': did you mean noise_scale\? There are"
    ):
        make(make_parameters().items(), noise_scal=1e-3)
    with pytest.raises(TypeError, match="has no switch 'x': there are reading, noise_scale"):
        make(make_parameters().items(), x=1e-3)


def test_noisytune_takes_any_model():
    model, before = mlp(4, 5, 2), mlp(4, 5, 2)
    noisytune(model, noise_scale=0.3)
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    noisytune(before.named_parameters(), noise_scale=0.3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_attach_wants_an_optimizer():
    pats = PATS(tiny_bert())
    with pytest.raises(TypeError, match=r"attach\(\) needs a torch optimizer, not a str"):
        pats.attach("adamw")


def test_a_choice_of_frozen_tensors_alone_is_said():
    parameters = make_parameters()
    parameters["classifier.weight"].requires_grad_(False)
    with pytest.warns(UserWarning, match="PATSAdamax has nothing to perturb"):
        PATSAdamax(named(parameters), 1e-3, perturb="classifier.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PATSAdamax(named(parameters), 1e-3, perturb="classifier*")


def test_pickles_of_earlier_versions_are_read():
    parameters = make_parameters()
    optimizer = Adamax(named(parameters), 1e-3)
    pats = PATS(named(parameters), **LOUD).attach(optimizer)
    state = {key: value for key, value in pats.__getstate__().items() if key not in ("_own", "_stacks")}
    again = PATS.__new__(PATS)
    again.__setstate__(state)
    assert again.summary().splitlines()[-1] == "PATS perturbs 5 tensors (5153 entries) in 2 layers"
