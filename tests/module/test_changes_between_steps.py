"""Whatever is done between two steps, they are those of tables made anew, or are refused in the same words."""

import copy
import pickle
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from module.copied_hooks import owners
from module.kernels import host_step
from module.kernels.state import COLUMNS
from module.pats import PATS
from tests.module.models import SHAPES, make_gradients, make_parameters
from tests.module.test_guard import MAKERS, QUERY, WIDE

TABLE = "bert.embeddings.word_embeddings.weight"  # (40, 16), without a sensitivity
NAMES = (QUERY, WIDE, TABLE, "classifier.bias", "bert.encoder.layer.1.output.dense.weight")


class World:
    """Parameters with their optimizer, made the same way each time."""

    def __init__(self, make):
        self.parameters = make_parameters()
        self.optimizer = make(self.parameters.items())
        self.number = 0
        self.renew_gradients()

    @property
    def pats(self):
        return next(owners(self.optimizer, PATS), None)

    @property
    def engine(self):
        return self.pats._engine if self.pats else self.optimizer._engine

    @property
    def states(self):
        """By the names of the parameters."""
        if self.pats:
            return {f"bert.encoder.{path}": state for path, state in self.pats._state.items()}
        state = self.optimizer.state
        return {name: state[p] for name, p in self.parameters.items() if p in state}

    def renew_gradients(self):
        self.number += 1
        for name, gradient in make_gradients(self.number).items():
            parameter = self.parameters[name]
            if parameter.shape == gradient.shape:
                parameter.grad = gradient.to(parameter.dtype)
            vars(parameter).pop("unmasked_grad", None)

    def mend(self):
        """Leave nothing of what was refused."""
        self.optimizer.state.clear()
        if self.pats:
            self.pats._state.clear()
        for name, parameter in make_parameters().items():
            self.parameters[name].grad = None
            self.parameters[name].data = parameter.data
        self.renew_gradients()

    def numbers(self):
        """All that a step may change."""
        entries = [state[key] for _, state in sorted(self.states.items()) for key in sorted(state)]
        tensors = [*self.parameters.values(), *entries]
        return [_bytes(t) if isinstance(t, torch.Tensor) else t for t in tensors]


def _bytes(tensor):
    held = tensor.untyped_storage().nbytes() >= tensor.nbytes
    if not held:
        return "cut"
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return plain.flatten().view(torch.uint8).numpy().tobytes()


def _data(change):
    def operation(world, name):
        parameter = world.parameters[name]
        parameter.data = change(parameter.data)

    return operation


def _gradient(change):
    def operation(world, name):
        parameter = world.parameters[name]
        if parameter.grad is not None:
            parameter.grad = change(parameter.grad)

    return operation


def _entry(change):
    def operation(world, name):
        for key, value in world.states.get(name, {}).items():
            world.states[name][key] = change(value)

    return operation


def _strided(tensor):
    return tensor.t().contiguous().t() if tensor.ndim == 2 else tensor.repeat_interleave(2)[::2]


def _from_numpy(tensor):
    return torch.from_numpy(tensor.float().numpy().copy())


def _in_the_midst(tensor):
    return torch.cat([torch.ones(3, dtype=tensor.dtype), tensor.flatten()])[3:].view(tensor.shape)


def _freed_and_back(tensor):
    size, values = tensor.untyped_storage().nbytes(), tensor.clone()
    tensor.untyped_storage().resize_(0)
    junk = [torch.full_like(values, 7.0) for _ in range(3)]  # may come to lie where it was
    tensor.untyped_storage().resize_(size)
    del junk
    return tensor.copy_(values)


def _cut(tensor):
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(tensor.nbytes - 1)
    return tensor


def _cut_data(world, name):
    if world.parameters[QUERY].grad is not None:  # a step without it would not look
        _cut(world.parameters[QUERY].data)


def _cut_gradient(world, name):
    if world.parameters[QUERY].grad is not None:
        world.parameters[QUERY].grad = _cut(torch.ones(33, 31, dtype=world.parameters[QUERY].dtype))


@torch.no_grad()
def _set(world, name):
    world.parameters[name].set_(world.parameters[name] * 2)


def _swap(world, name):
    parameter = world.parameters[name]
    torch.utils.swap_tensors(parameter, Parameter(parameter.detach() * 2))


def _bucket(world, name):
    """Gradients as views of one flat buffer, as DDP's."""
    grads = {n: p.grad for n, p in world.parameters.items() if p.grad is not None and p.grad.layout == torch.strided}
    flat = torch.cat([torch.zeros(len(name)), *(g.float().flatten() for g in grads.values())])
    start = len(name)
    for other, gradient in grads.items():
        if world.parameters[other].dtype == torch.float32:
            world.parameters[other].grad = flat[start : start + gradient.numel()].view(gradient.shape)
        start += gradient.numel()


def _shared_gradient(world, name):
    norm = "bert.encoder.layer.0.output.LayerNorm."
    world.parameters[norm + "bias"].grad = world.parameters[norm + "weight"].grad


def _row_sparse(world, name):
    parameter = world.parameters[TABLE]
    values = torch.full((2, 16), 1e-3)
    if parameter.dtype == torch.float32 and parameter.shape == (40, 16):
        parameter.grad = torch.sparse_coo_tensor(torch.tensor([[3, 9]]), values, (40, 16), is_coalesced=True)


def _unmasked(world, name):
    if world.parameters[name].grad is not None:
        world.parameters[name].unmasked_grad = world.parameters[name].grad * 2


def _requires_no_grad(world, name):
    parameter = world.parameters[name]
    parameter.requires_grad_(not parameter.requires_grad)


def _pop_state(world, name):
    if world.pats:
        world.pats._state.pop(name.removeprefix("bert.encoder."), None)
    else:
        world.optimizer.state.pop(world.parameters[name], None)


def _replace_state(world, name):
    if not world.pats and world.parameters[name] in world.optimizer.state:
        world.optimizer.state[world.parameters[name]] = dict(world.states[name])


def _pop_entry(world, name):
    if name in world.states:
        world.states[name].pop("sensitivity_mean", None)


def _unsound_entry(world, name):
    if "step" in world.states.get(name, {}):
        world.states[name]["step"].fill_(-1.0)


def _load(world, name):
    world.optimizer.load_state_dict(copy.deepcopy(world.optimizer.state_dict()))


def _copied(world, name):
    world.parameters, world.optimizer = copy.deepcopy((world.parameters, world.optimizer))


def _pickled(world, name):
    gradients = [parameter.grad for parameter in world.parameters.values()]  # which pickles leave out
    world.parameters, world.optimizer = pickle.loads(pickle.dumps((world.parameters, world.optimizer)))
    for parameter, gradient in zip(world.parameters.values(), gradients, strict=True):
        parameter.grad = gradient


def _another_group(world, name):
    group = world.optimizer.param_groups[0]
    if len(group["params"]) > 1:
        rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        moved = group["params"].pop(0)
        named = [(group["param_names"].pop(0), moved)] if "param_names" in group else [moved]
        world.optimizer.add_param_group({"params": named, **rest, "lr": 3e-3})


def _reversed(world, name):
    world.optimizer.param_groups.reverse()
    for group in world.optimizer.param_groups:
        for key in {"params", "param_names"} & set(group):
            group[key].reverse()


def _renamed(world, name):
    for group in world.optimizer.param_groups:
        if "param_names" in group:
            group["param_names"] = [n.replace("layer.1.", "layer.2.") for n in group["param_names"]]


def _excluded(world, name):
    group = world.optimizer.param_groups[0]
    for key in {"perturb", "scale"} & {str(getattr(world.optimizer, "selection_key", None))}:
        group[key] = not group.get(key, True)


def _other_parameter(world, name):
    """Another parameter of the same shape takes a place; the former one is gone."""
    if world.pats:
        return
    former = world.parameters.pop(name)
    world.parameters[name] = new = Parameter(torch.full_like(former.detach(), 0.5))
    new.grad = None if former.grad is None else torch.full_like(new, 1e-3)
    for group in world.optimizer.param_groups:
        group["params"] = [new if p is former else p for p in group["params"]]
    world.optimizer.state.pop(former, None)
    world.parameters = {n: world.parameters[n] for n in SHAPES}


def _not_finite(world, name):
    if world.parameters[name].grad is not None:
        world.parameters[name].grad = torch.full_like(world.parameters[name].detach(), torch.nan)


def _in_closure(world, name):
    def closure():
        _data(torch.clone)(world, name)
        _gradient(torch.clone)(world, name)
        return 1.0

    world.optimizer.step(closure)


def _twice_attached(world, name):
    if world.pats:
        pats = world.pats
        pats.detach()
        world.optimizer.step()
        pats.attach(world.optimizer)


def _other_optimizer(world, name):
    other = MAKERS["adamax"](world.parameters.items())
    other.step()


def _settings(world, name):
    world.optimizer.param_groups[-1].update(weight_decay=0.25, lr=2e-3)


OPERATIONS = {
    "nothing": lambda world, name: None,
    "data: other memory": _data(lambda t: t.clone() * 2),
    "data: bfloat16": _data(lambda t: t.bfloat16()),
    "data: float32": _data(lambda t: t.float()),
    "data: strided": _data(_strided),
    "data: contiguous": _data(lambda t: t.contiguous()),
    "data: of numpy": _data(_from_numpy),
    "data: in the midst": _data(_in_the_midst),
    "data: freed and back": lambda world, name: _freed_and_back(world.parameters[name].data),
    "data: cut": _cut_data,
    "data: float64": _data(lambda t: t.double()),
    "data: emptied": _data(lambda t: t.new_empty(0)),
    "data: shared between processes": lambda world, name: world.parameters[name].data.share_memory_(),
    "set_": _set,
    "swapped": _swap,
    "gradient: none": lambda world, name: setattr(world.parameters[name], "grad", None),
    "gradient: all none": lambda world, name: world.optimizer.zero_grad(),
    "gradient: zeros": lambda world, name: world.optimizer.zero_grad(set_to_none=False),
    "gradient: strided": _gradient(lambda g: _strided(g.to_dense())),
    "gradient: expanded": _gradient(lambda g: g.to_dense().flatten()[:1].view([1] * g.ndim).expand(g.shape)),
    "gradient: in the midst": _gradient(lambda g: _in_the_midst(g.to_dense())),
    "gradient: cut": _cut_gradient,
    "gradient: with a graph": _gradient(lambda g: g.detach().clone().requires_grad_()),
    "gradient: not finite": _not_finite,
    "gradient: row-sparse": _row_sparse,
    "gradient: masked": _unmasked,
    "gradients: in a bucket": _bucket,
    "gradients: one for two": _shared_gradient,
    "requires_grad": _requires_no_grad,
    "state: gone": _pop_state,
    "state: another dict": _replace_state,
    "state: an entry is gone": _pop_entry,
    "state: unsound": _unsound_entry,
    "state: other memory": _entry(lambda t: t.clone()),
    "state: in the midst": _entry(_in_the_midst),
    "state: of numpy": _entry(lambda t: torch.from_numpy(t.numpy().copy())),
    "state: bfloat16": _entry(lambda t: t.bfloat16()),
    "state: a number": _entry(lambda t: 0.5),
    "state: freed and back": _entry(_freed_and_back),
    "state: loaded": _load,
    "state: cleared": lambda world, name: world.optimizer.state.clear(),
    "optimizer: copied": _copied,
    "optimizer: pickled": _pickled,
    "optimizer: attached again": _twice_attached,
    "optimizer: another steps": _other_optimizer,
    "group: added": _another_group,
    "group: settings": _settings,
    "groups: reversed": _reversed,
    "groups: renamed": _renamed,
    "groups: selection": _excluded,
    "parameter: another": _other_parameter,
    "closure": _in_closure,
}


@contextmanager
def watched(world):
    """Rows that the kernels are given must lead to what is there now."""

    def seen(kernel, columns):
        def call(rows, *squares):
            for row, member in zip(rows, world.engine._host.members, strict=True):
                if member.direct:
                    there = {"theta": member.parameter, "gradient": member.parameter.grad}
                    assert all(row[column] == there[column].data_ptr() for column in columns)
                    assert all(row[COLUMNS[key]] == member.state[key].data_ptr() for key in member.keys)
            return kernel(rows, *squares)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_step, "sum_rows", seen(host_step.sum_rows, ("theta", "gradient")))
        patch.setattr(host_step, "update_rows", seen(host_step.update_rows, ("theta",)))
        yield


def outcome(world, operation, name, anew):
    """What an operation and a step lead to: the words of refusals, and all numbers."""
    words = []
    try:
        OPERATIONS[operation](world, name)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        words.append(repr(error))
    before = world.numbers()
    if anew:
        world.engine._kept = (world.pats or world.optimizer)._asked = None
    try:
        with nullcontext() if operation == "gradient: row-sparse" else watched(world):
            world.optimizer.step()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        words.append(repr(error))
        assert world.pats or world.numbers() == before
    numbers = world.numbers()
    if words:
        world.mend()
    else:
        world.renew_gradients()
    return words, numbers


def check_both(make, done):
    kept, made_anew = World(make), World(make)
    for operation, name in done:
        assert outcome(kept, operation, name, False) == outcome(made_anew, operation, name, True), operation


everywhere = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.mark.filterwarnings("ignore")
@everywhere
@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_each_change_the_steps_are_those_of_tables_made_anew(make, operation):
    nothing = ("nothing", QUERY)
    for name in (QUERY, TABLE):
        check_both(make, [nothing, (operation, name), nothing, (operation, name), nothing])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    done=st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(NAMES)), min_size=3, max_size=8),
)
def test_after_any_changes_the_steps_are_those_of_tables_made_anew(kind, done):
    check_both(MAKERS[kind], done)
