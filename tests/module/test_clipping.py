"""Clipping inside of a step is clipping in place and then stepping."""

import copy

import pytest
import torch
from torch import nn

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.clipping import clip_gradients, clip_in_step, gradient_values
from tests.module.models import SHAPES, make_gradients, make_parameters, set_gradients

OPTIMIZERS = {
    "mtdnn": lambda named: Adamax(named, 1e-3, weight_decay=0.1),
    "torch": lambda named: Adamax(named, 1e-3, rule="torch", weight_decay=0.1),
    "pats": lambda named: PATSAdamax(named, 1e-3, sensitivity_threshold=3e-6, noise_scale=1e-4),
    "sage": lambda named: SAGEAdamax(named, 1e-3),
}
everywhere = pytest.mark.parametrize("name", OPTIMIZERS)
TABLE = "bert.embeddings.word_embeddings.weight"


def step_in_place(optimizer, parameters, max_norm):
    norm = clip_gradients(parameters.values(), max_norm)
    optimizer.step()
    return norm


def step_inside(optimizer, parameters, max_norm):
    before = [copy.deepcopy(p.grad) for p in parameters.values()]
    norm = clip_in_step(optimizer, parameters.values(), max_norm)
    optimizer.step()
    del optimizer.grad_scale
    for was, parameter in zip(before, parameters.values(), strict=True):
        assert (parameter.grad is None) == (was is None)
        if was is not None:
            assert torch.equal(parameter.grad.to_dense(), was.to_dense())
    return norm


def twins(name):
    both = [make_parameters() for _ in range(2)]
    return both, [OPTIMIZERS[name](own.items()) for own in both]


def sparse_rows(gradient, rows=(0, 3, 39)):
    rows = torch.tensor(rows)
    return torch.sparse_coo_tensor(rows[None], gradient[rows], gradient.shape, check_invariants=True)


def behind(what):
    """A message that says where."""
    return lambda message: f"{what}: {message}"


def compare(both, optimizers, exactly=False):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-9}
    for name, expected, got in zip(both[0], *(own.values() for own in both), strict=True):
        torch.testing.assert_close(got, expected, **tolerance, msg=behind(name))
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (expected, got), strict=True)]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            scale = {} if exactly else {"atol": 1e-6 * float(value.abs().max())}
            torch.testing.assert_close(states[1][key], value, **(tolerance | scale), msg=behind(f"{name} {key}"))


@everywhere
@pytest.mark.parametrize("kind", ["dense", "row-sparse", "missing", "masked"])
def test_a_step_that_clips_equals_clipping_and_then_stepping(name, kind):
    both, optimizers = twins(name)
    for number in range(1, 6):
        norms = []
        for own, optimizer, step in zip(both, optimizers, (step_in_place, step_inside), strict=True):
            gradients = make_gradients(number)
            if kind == "missing":
                del gradients["classifier.weight"]
            set_gradients(own, gradients)
            if kind == "row-sparse":
                own[TABLE].grad = sparse_rows(own[TABLE].grad)
            norm = step(optimizer, own, 1e-3) if kind != "masked" else masked_step(optimizer, own, step)
            norms.append(norm)
            assert not hasattr(optimizer, "grad_scale")
        assert torch.equal(*norms)
        assert norms[0] > 2e-3  # it clips
        compare(both, optimizers)


def masked_step(optimizer, own, step):
    """Half of each gradient is for the sensitivity alone."""
    masks = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in own.items()}
    whole = {name: p.grad for name, p in own.items()}
    if step is step_in_place:
        norm = clip_gradients(own.values(), 1e-3)
    else:
        norm = clip_in_step(optimizer, own.values(), 1e-3)
    for name, p in own.items():
        p.unmasked_grad, p.grad = whole[name], whole[name] * masks[name]
    optimizer.step()
    optimizer.__dict__.pop("grad_scale", None)
    for p in own.values():
        del p.unmasked_grad
    return norm


@everywhere
def test_gradients_below_the_norm_give_the_bits_of_no_clipping(name):
    both, optimizers = twins(name)
    for number in range(1, 5):
        for own, optimizer in zip(both, optimizers, strict=True):
            set_gradients(own, make_gradients(number))
            if own is both[0]:
                optimizer.step()
            else:
                step_inside(optimizer, own, 1e3)
        compare(both, optimizers, exactly=True)


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_the_norm_is_torchs(max_norm):
    parameters = make_parameters()
    optimizer = OPTIMIZERS["mtdnn"](parameters.items())
    set_gradients(parameters, make_gradients(1))
    norm = clip_in_step(optimizer, parameters.values(), max_norm)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(parameters.values(), max_norm))


def test_without_gradients():
    parameters = make_parameters()
    optimizer = OPTIMIZERS["mtdnn"](parameters.items())
    assert clip_in_step(optimizer, parameters.values(), 1.0) == 0
    optimizer.step()
    assert not optimizer.state


@everywhere
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [TABLE, "bert.encoder.layer.0.intermediate.dense.weight", "classifier.bias"])
def test_gradients_that_are_not_finite_are_refused_by_name_and_nothing_changes(name, bad, where):
    parameters = make_parameters()
    optimizer = OPTIMIZERS[name](parameters.items())
    set_gradients(parameters, make_gradients(1))
    step_inside(optimizer, parameters, 1e-3)
    set_gradients(parameters, make_gradients(2))
    parameters[where].grad.view(-1)[0] = bad
    before = copy.deepcopy(([p.detach() for p in parameters.values()], optimizer.state_dict()["state"]))
    clip_in_step(optimizer, parameters.values(), 1e-3)
    with pytest.raises(RuntimeError, match=f"The gradient of '{where}' is not finite"):
        optimizer.step()
    assert all(map(torch.equal, before[0], parameters.values()))
    for was, now in zip(before[1].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(now[key], value) for key, value in was.items())


@everywhere
@pytest.mark.parametrize("huge", [1e19, 1e30, 3e38])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 10.0])
def test_finite_gradients_whose_norm_overflows_or_nearly_so(name, huge, max_norm):
    both, optimizers = twins(name)
    for own, optimizer, step in zip(both, optimizers, (step_in_place, step_inside), strict=True):
        gradients = make_gradients(1)
        for gradient in gradients.values():
            gradient /= gradient.abs().max()
        gradients["classifier.bias"][0] = 1.0
        for gradient in gradients.values():
            gradient *= huge
        set_gradients(own, gradients)
        step(optimizer, own, max_norm)
    compare(both, optimizers)


@pytest.mark.parametrize("entry", [1e18, 1e37, 3e38])
def test_a_norm_that_is_finite_but_not_over_a_small_limit(entry):
    """The norm over the limit, which the step divides by, must not overflow before the limit over the norm is 0."""
    both = [make_parameters(shapes={"classifier.weight": (1, 1)}) for _ in range(2)]
    optimizers = [Adamax(own.items(), 1e-2) for own in both]
    for own, optimizer, step in zip(both, optimizers, (step_in_place, step_inside), strict=True):
        own["classifier.weight"].grad = torch.full((1, 1), entry)
        step(optimizer, own, 1e-2)
    compare(both, optimizers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters(dtype):
    """Their gradients are rounded where they are clipped in place, so equal to that rounding alone."""
    both = [make_parameters(dtype=dtype) for _ in range(2)]
    with pytest.warns(UserWarning, match="rounded"):
        optimizers = [Adamax(own.items(), 1e-2) for own in both]
    for own, optimizer, step in zip(both, optimizers, (step_in_place, step_inside), strict=True):
        set_gradients(own, {name: g * 100 for name, g in make_gradients(1).items()})
        step(optimizer, own, 0.1)
    for expected, got in zip(both[0].values(), both[1].values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-3)


def test_row_sparse_values_count_once():
    parameters = make_parameters(shapes={TABLE: SHAPES[TABLE]})
    optimizer = OPTIMIZERS["mtdnn"](parameters.items())
    gradient = sparse_rows(make_gradients(1)[TABLE])
    parameters[TABLE].grad = gradient + gradient  # summed over two passes
    norm = clip_in_step(optimizer, parameters.values(), 1.0)
    torch.testing.assert_close(norm, 2 * gradient.to_dense().norm())
    assert len(gradient_values(parameters[TABLE])) == 3
