"""Copies, pickles, compiled functions and torch's distributed checkpoints: PATS must be in all of them."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import (
    assert_close,
    assert_nested_equal,
    assert_same_bits,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)

LOUD = {"threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 7}


class Model(nn.Module):
    """The parameters under their own names."""

    def __init__(self, seed=0):
        super().__init__()
        for name, parameter in make_parameters(seed).items():
            *path, leaf = name.split(".")
            here = self
            for part in path:
                if part not in here._modules:
                    here.add_module(part, nn.Module())
                here = here._modules[part]
            here.register_parameter(leaf, parameter)


def go(model, optimizer, steps, first):
    train(dict(model.named_parameters()), optimizer, steps, first=first)


def same(a, b):
    assert_same_bits(dict(a.named_parameters()), dict(b.named_parameters()))


def attached(base, seed=0, **rule):
    model = Model(seed)
    parameters = model.named_parameters() if base is SAGEAdamax else model.parameters()
    optimizer = base(list(parameters), lr=1e-3)
    return model, optimizer, PATS(model.named_parameters(), **{**LOUD, **rule}).attach(optimizer)


bases = pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD, Adamax, SAGEAdamax])


def through_pickle(things):
    return pickle.loads(pickle.dumps(things))


def through_file(things):
    file = io.BytesIO()
    torch.save(things, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@bases
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_file])
def test_copies_of_all_three_go_on_alike(base, steps, copied):
    model, optimizer, pats = attached(base)
    go(model, optimizer, steps, first=1)
    model2, optimizer2, pats2 = copied((model, optimizer, pats))
    pats3, model3, optimizer3 = copied((pats2, model2, optimizer2))  # another order, a copy's copy
    plain = copy.deepcopy(model)
    go(model, optimizer, 3, first=steps + 1)
    for one, other, its in ((model2, optimizer2, pats2), (model3, optimizer3, pats3)):
        go(one, other, 3, first=steps + 1)
        same(model, one)
        assert_nested_equal(other.state_dict(), optimizer.state_dict())
        assert_nested_equal(its.state_dict(), pats.state_dict())
    assert any(not torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


@bases
def test_an_optimizers_copy_alone_takes_its_pats_along(base):
    model, optimizer, pats = attached(base)
    go(model, optimizer, 2, first=1)
    model2, optimizer2 = copy.deepcopy((model, optimizer))
    go(model, optimizer, 2, first=3)
    go(model2, optimizer2, 2, first=3)
    same(model, model2)
    assert_nested_equal(optimizer2.state_dict()["pats"], pats.state_dict())


def test_a_copy_of_pats_alone_touches_nothing_of_the_original():
    model, optimizer, pats = attached(torch.optim.AdamW)
    go(model, optimizer, 2, first=1)
    before = copy.deepcopy(pats.state_dict())
    again = copy.deepcopy(pats)
    assert again._optimizer is not optimizer
    again._state.clear()
    assert_nested_equal(pats.state_dict(), before)


def test_a_copy_can_be_detached_and_others_hooks_stay_behind():
    model, optimizer, pats = attached(torch.optim.AdamW)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer2, pats2 = copy.deepcopy((optimizer, pats))
    set_gradients(
        dict(zip([n for n, _ in model.named_parameters()], optimizer2.param_groups[0]["params"], strict=True)),
        make_gradients(1),
    )
    optimizer2.step()
    assert calls == []  # torch leaves them out of copies
    assert "__getstate__" in vars(optimizer2)
    pats2.detach()
    assert "__getstate__" not in vars(optimizer2)
    assert "pats" not in optimizer2.state_dict()
    assert "pats" not in copy.deepcopy(optimizer2).state_dict()
    assert "pats" in optimizer.state_dict()
    pats2.attach(optimizer2)
    handle = optimizer2.register_step_pre_hook(lambda *_: None)
    handle.remove()
    assert "pats" in optimizer2.state_dict()


COMPILED = {
    "adamax": lambda named: Adamax(named, 1e-3),
    "pats": lambda named: PATSAdamax(named, 1e-3, **LOUD),
    "sage": lambda named: SAGEAdamax(named, 1e-3),
    "on adamax": lambda named: on(Adamax, named),
    "on sgd": lambda named: on(torch.optim.SGD, named),
    "on adamw": lambda named: on(torch.optim.AdamW, named),
}


def on(base, named):
    optimizer = base([p for _, p in named], 1e-3)
    PATS(named, **LOUD).attach(optimizer)
    return optimizer


@pytest.mark.parametrize("name", COMPILED)
def test_a_step_in_a_compiled_function_is_the_plain_step(name):
    torch._dynamo.reset()
    a, b = make_parameters(), make_parameters()
    plain, inside = COMPILED[name](list(a.items())), COMPILED[name](list(b.items()))

    @torch.compile(backend="eager")
    def compiled(x):
        y = x + 1
        inside.step()
        return y * 2

    for step in range(1, 4):
        set_gradients(a, make_gradients(step))
        set_gradients(b, make_gradients(step))
        plain.step()
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 4.0))
    for parameter, other in zip(a.values(), b.values(), strict=True):
        if name == "on adamw":  # torch compiles it to another order of operations, without PATS too
            assert_close(other, parameter.detach(), tolerance=1e-4)
        else:
            assert torch.equal(other, parameter)


@pytest.fixture
def one_process():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def patsadamax(seed=0, **rule):
    model = Model(seed)
    return model, PATSAdamax(model.named_parameters(), 1e-3, **{**LOUD, **rule}), None


BUILDERS = {
    "adamw": lambda **k: attached(torch.optim.AdamW, **k),
    "sgd": lambda **k: attached(torch.optim.SGD, **k),
    "adamax": lambda **k: attached(Adamax, **k),
    "patsadamax": patsadamax,
}
CONSTANT = {"reading": "constant", "noise_scale": 1e-3}  # noise at learning rate 0 too


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"full_state_dict": True, "cpu_offload": True}], ids=["plain", "full"])
@pytest.mark.parametrize("rule", [{}, CONSTANT], ids=["gated", "constant"])
@pytest.mark.parametrize("name", BUILDERS)
def test_distributed_checkpoints_bring_the_sensitivities_back(name, rule, options, one_process):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer, _ = BUILDERS[name](**rule)
    go(model, optimizer, 2, first=1)
    optimizer.zero_grad()
    untouched = copy.deepcopy((model, optimizer))
    chosen = StateDictOptions(**options)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=chosen))
    weights = copy.deepcopy(model.state_dict())
    go(model, optimizer, 2, first=3)
    go(*untouched, 2, first=3)
    same(model, untouched[0])  # saving has changed nothing

    again, other, _ = BUILDERS[name](seed=1, **rule)
    again.load_state_dict(weights)
    set_optimizer_state_dict(again, other, saved, options=chosen)
    go(again, other, 2, first=3)
    same(model, again)


@pytest.mark.filterwarnings("ignore:.*barrier")
def test_flattened_ones_do_not_and_say_so(one_process):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    chosen = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer, _ = attached(torch.optim.AdamW)
    go(model, optimizer, 2, first=1)
    saved = get_optimizer_state_dict(model, optimizer, options=chosen)
    again, other, _ = attached(torch.optim.AdamW)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        set_optimizer_state_dict(again, other, saved, options=chosen)
    assert any("was written without PATS" in str(warning.message) for warning in said)
