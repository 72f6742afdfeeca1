"""The tables of a step are kept while everything is as it was, and whatever changes between steps is noticed."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from module.kernels.guard import Fingerprint
from module.kernels.member import Member
from tests.module.models import (
    SHAPES,
    assert_nested_equal,
    make_gradients,
    make_parameters,
    set_gradients,
    to_device,
)
from tests.module.test_guard import MAKERS, QUERY, WIDE, state_of, stepped

everywhere = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def checked(monkeypatch):
    """Names of the tensors that were checked one by one."""
    names, prepare = [], Member.prepare

    def noted(self, *arguments):
        names.append(self.name)
        prepare(self, *arguments)

    monkeypatch.setattr(Member, "prepare", noted)
    return names


def engine_of(optimizer):
    return optimizer.pats._engine if hasattr(optimizer, "pats") else optimizer._engine


def step(parameters, optimizer, number, gradients=None):
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 / number
    set_gradients(parameters, make_gradients(number) if gradients is None else gradients)
    optimizer.step()


@everywhere
def test_nothing_is_checked_again_while_nothing_but_gradients_and_rates_changes(make, checked):
    parameters, optimizer = stepped(make)
    assert checked
    checked.clear()
    for number in range(3, 6):
        step(parameters, optimizer, number)
    assert not checked


def _replaced_gradients(parameters, optimizer):
    for parameter in parameters.values():
        parameter.grad = torch.empty(5 + parameter.numel())[5:].view(parameter.shape).copy_(parameter.grad)


def _regrouped(parameters, optimizer):
    group = optimizer.param_groups[0]
    rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    moved = {"params": [group["params"].pop()], **rest, "lr": 0.5}
    if "param_names" in group:
        moved["params"] = [(group["param_names"].pop(), moved["params"][0])]
    optimizer.add_param_group(moved)


CHANGES = {
    "nothing": lambda p, o: None,
    "a parameter's data": lambda p, o: setattr(p[QUERY], "data", p[QUERY].data.clone() * 2),
    "a parameter's layout": lambda p, o: setattr(p[WIDE], "data", p[WIDE].data.t().contiguous().t()),
    "a parameter's storage": torch.no_grad()(lambda p, o: p[QUERY].set_(p[QUERY].clone() * 3)),
    "a gradient that is none": lambda p, o: setattr(p[QUERY], "grad", None),
    "a gradient's layout": lambda p, o: setattr(p[WIDE], "grad", p[WIDE].grad.t().contiguous().t()),
    "gradients in the midst of storages": _replaced_gradients,
    "a gradient whose whole one is kept": lambda p, o: setattr(p[QUERY], "unmasked_grad", p[QUERY].grad * 2),
    "an entry of a state": lambda p, o: state_of(o, p).update(step=state_of(o, p)["step"] + 4),
    "an entry in place": lambda p, o: [v.mul_(2) for v in state_of(o, p).values()],
    "an entry's data": lambda p, o: setattr(state_of(o, p)["step"], "data", torch.tensor(9.0)),
    "a state that is loaded": lambda p, o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "a group": lambda p, o: o.param_groups[0].update(weight_decay=0.5),
    "another group": _regrouped,
    "states that are gone": lambda p, o: o.state.clear(),
}


@everywhere
@pytest.mark.parametrize("what", CHANGES)
def test_the_steps_are_those_of_tables_made_anew(make, what):
    ends = []
    for anew in (False, True):
        parameters, optimizer = stepped(make)
        optimizer.step()
        set_gradients(parameters, make_gradients(4))
        CHANGES[what](parameters, optimizer)
        for number in (4, 5, 6):
            if anew:
                engine_of(optimizer)._kept = None
            if number > 4:
                set_gradients(parameters, make_gradients(number))
                vars(parameters[QUERY]).pop("unmasked_grad", None)
            optimizer.step()
        ends.append(({name: p.detach() for name, p in parameters.items()}, optimizer.state_dict()))
    assert_nested_equal(*[list(end) for end in ends])


# Each kind of tensor once, in few blocks: Triton's interpreter takes its time for every one.
FEW = {name: SHAPES[name] for name in (QUERY, "bert.encoder.layer.0.attention.self.query.bias",
       "bert.encoder.layer.0.output.LayerNorm.weight", "classifier.weight", "classifier.bias")}  # fmt: skip


@everywhere
def test_a_gpu_is_sent_what_tables_made_anew_hold(make, device, checked):
    ends = []
    for anew in (False, True):
        parameters = {name: to_device(p, device) for name, p in make_parameters(shapes=FEW).items()}
        optimizer = make(parameters.items())
        for number in range(1, 5):
            if anew:
                engine_of(optimizer)._kept = None
            checked.clear()
            gradients = {name: gradient.to(device) for name, gradient in make_gradients(number, FEW).items()}
            step(parameters, optimizer, number, gradients)
        assert bool(checked) == anew
        ends.append([p.detach() for p in parameters.values()])
    assert all(map(torch.equal, *ends))


@everywhere
def test_gradients_are_not_kept_alive(make):
    import weakref

    parameters, optimizer = stepped(make)
    step(parameters, optimizer, 3)
    gradients = [weakref.ref(parameter.grad) for parameter in parameters.values()]
    optimizer.zero_grad(set_to_none=True)
    assert not any(gradient() is not None for gradient in gradients)


def _freed(tensor):
    """Asks whether the memory of a tensor has been given back."""
    weak = tensor.untyped_storage()._weak_ref()
    return lambda: torch.UntypedStorage._expired(weak)


@everywhere
def test_memory_of_what_was_replaced_is_given_back(make):
    parameters, optimizer = stepped(make)
    step(parameters, optimizer, 3)
    state = state_of(optimizer, parameters)
    freed = [_freed(tensor) for tensor in (parameters[QUERY].data, *state.values())]
    parameters[QUERY].data = parameters[QUERY].data.clone()
    state.update({key: value.clone() for key, value in state.items()})
    assert all(is_freed() for is_freed in freed)


@everywhere
def test_memory_of_a_state_is_given_back_where_another_is_loaded(make):
    parameters, optimizer = stepped(make)
    step(parameters, optimizer, 3)
    freed = [_freed(tensor) for tensor in state_of(optimizer, parameters).values()]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(is_freed() for is_freed in freed)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@everywhere
def test_a_parameter_that_has_become_a_nested_tensor_does_not_end_the_process(make):
    parameters, optimizer = stepped(make)
    optimizer.step()
    torch.utils.swap_tensors(parameters[QUERY], Parameter(torch.nested.nested_tensor([torch.ones(33, 31)])))
    before = parameters[WIDE].detach().clone()
    optimizer.step()  # it has no gradient
    assert not torch.equal(before, parameters[WIDE])


def test_settings_that_were_half_taken_are_not_kept():
    ends = []
    for interrupted in (False, True):
        parameters, optimizer = stepped(MAKERS["adamax"])
        group = optimizer.param_groups[0]
        optimizer.step()
        if interrupted:
            group.update(eps=0.5, weight_decay=1e300)
            with np.errstate(over="raise"), pytest.raises(FloatingPointError):
                optimizer.step()
            group.update(eps=1e-6, weight_decay=0.01)
        optimizer.step()
        ends.append([parameter.detach() for parameter in parameters.values()])
    assert all(map(torch.equal, *ends))


@everywhere
def test_a_storage_that_was_cut_and_came_back_elsewhere_is_refused(make):
    parameters, optimizer = stepped(make)
    optimizer.step()
    set_gradients(parameters, make_gradients(4))
    storage = parameters[QUERY].untyped_storage()
    storage.resize_(0)
    storage.resize_(4 * 33 * 31 - 4)
    with pytest.raises(ValueError, match="its storage holds 4088 bytes of 4092"):
        optimizer.step()


def test_a_duplicate_of_a_parameter_is_not_taken_for_it():
    parameters, optimizer = stepped(MAKERS["adamax"])
    optimizer.step()
    other = Parameter(parameters[QUERY].detach().clone())
    other.grad = torch.ones(33, 31)
    before = parameters[QUERY].detach().clone()
    group = optimizer.param_groups[0]
    group["params"] = [other if p is parameters[QUERY] else p for p in group["params"]]
    optimizer.step()
    assert torch.equal(parameters[QUERY], before)
    assert not torch.equal(other, before)
    assert optimizer.state[other]["step"] == 1


LIKE = torch.arange(12.0).view(3, 4)
UNLIKE = {
    "shape": lambda: torch.zeros(4, 3),
    "one dimension more": lambda: torch.zeros(1, 3, 4),
    "strides": lambda: torch.zeros(4, 3).t(),
    "dtype": lambda: torch.zeros(3, 4, dtype=torch.int32),
    "device": lambda: torch.zeros(3, 4, device="meta"),
    "class": lambda: Parameter(torch.zeros(3, 4), requires_grad=False),
    "layout": lambda: torch.zeros(3, 4).to_sparse(),
    "lazy": lambda: torch.zeros(3, 4)._neg_view(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3, 4)]),
    "place in the storage": lambda: torch.zeros(13)[1:].view(3, 4),
    "size of the storage": lambda: torch.zeros(13)[:12].view(3, 4),
    "no tensor": lambda: None,
}


@pytest.mark.parametrize("what", UNLIKE)
def test_a_fingerprint_tells_what_is_unlike(what):
    fingerprint = Fingerprint([LIKE.clone()], fixed=False)
    assert fingerprint.matches([torch.zeros(3, 4)])
    assert not fingerprint.matches([UNLIKE[what]()])


def test_a_fingerprint_of_fixed_memory_tells_other_memory_apart():
    tensor = LIKE.clone()
    fingerprint = Fingerprint([tensor], fixed=True)
    assert fingerprint.matches([tensor])
    assert not fingerprint.matches([tensor.clone()])
    tensor.data = LIKE.clone()
    assert not fingerprint.matches([tensor])
