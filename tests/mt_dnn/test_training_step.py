"""Where gradients are clipped inside of the step, and where in place."""

import copy

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from module.clipping import clip_gradients, gradient_values
from module.kernel_optimizer import KernelOptimizer
from module.kernels.member import NonFiniteGradient
from mt_dnn import training_step
from tests.mt_dnn.method_runs import build

INSIDE, IN_PLACE = "clip_in_step", "clip_gradients"


@pytest.fixture
def used(monkeypatch):
    """Which way was gone, at each step."""
    calls = []

    def note(name, function):
        monkeypatch.setattr(training_step, name, lambda *arguments: (calls.append(name), function(*arguments))[1])

    for name in (INSIDE, IN_PLACE):
        note(name, getattr(training_step, name))
    as_the_step = training_step.clip_as_the_step
    monkeypatch.setattr(training_step, "clip_as_the_step", lambda *a: (calls.append(IN_PLACE), as_the_step(*a))[1])
    clip = training_step.TrainingStep._clip

    def clip_and_note(step):
        before = len(calls)
        norm = clip(step)
        if len(calls) == before:  # the step measures the norm itself
            calls.append(INSIDE)
        return norm

    monkeypatch.setattr(training_step.TrainingStep, "_clip", clip_and_note)
    return calls


def largest_norm(parts):
    return torch.nn.utils.get_total_norm(
        [g for p in parts.network.parameters() if (g := gradient_values(p)) is not None]
    )


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, INSIDE),
        ({"method": "pats"}, INSIDE),
        ({"method": "sage"}, INSIDE),
        ({"method": "recadam", "recadam": {"gamma": 1.0}}, INSIDE),
        ({"optimizer": "adamw"}, IN_PLACE),
        ({"method": "pats", "optimizer": "adamw"}, IN_PLACE),
        ({"method": "l2sp"}, INSIDE),
        ({"method": "child_tuning"}, IN_PLACE),
        ({"method": "component_clip", "component_clip": {"max_norm": 1e-3}}, IN_PLACE),
    ],
    ids=str,
)
def test_which_way(tiny_run, used, changes, way):
    parts, step, batches = build(tiny_run(global_grad_clipping=1e-3, **changes))
    for batch in batches[:2]:
        _, norm = step(batch)
        assert norm > 1e-3
        assert not hasattr(parts.optimizer, "grad_scale")
        if way == IN_PLACE:
            assert largest_norm(parts) <= 1e-3 * (1 + 1e-4)
    assert used == [way] * 2


@pytest.mark.parametrize("method", ["vanilla", "pats", "sage"])
def test_both_ways_are_one(tiny_run, used, method):
    found = []
    for way in (INSIDE, IN_PLACE):
        parts, step, batches = build(tiny_run(global_grad_clipping=1e-3, method=method))
        if way == IN_PLACE:
            parts.optimizer.register_step_pre_hook(lambda *_: None)  # it may look at gradients
        norms = [step(batch)[1] for batch in batches[:3]]
        found.append((torch.stack(norms), [p.detach() for p in parts.network.parameters()]))
    assert used == [INSIDE] * 3 + [IN_PLACE] * 3
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)  # whoever looks on changes nothing


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_every_optimizer_see_clipped_gradients(tiny_run, register):
    parts, step, batches = build(tiny_run(global_grad_clipping=1e-3))
    norms = []
    handle = register(lambda *_: norms.append(largest_norm(parts)))
    try:
        step(batches[0])
    finally:
        handle.remove()
    assert norms
    assert norms[0] <= 1e-3 * (1 + 1e-4)


def test_hooks_behind_the_step_see_clipped_gradients(tiny_run):
    parts, step, batches = build(tiny_run(global_grad_clipping=1e-3))
    norms = []
    parts.optimizer.register_step_post_hook(lambda *_: norms.append(largest_norm(parts)))
    step(batches[0])
    assert norms[0] <= 1e-3 * (1 + 1e-4)


@pytest.fixture(params=[False, True], ids=["scaler skips", "step skips"])
def scaled_step(request, monkeypatch):
    """Make a step with a gradient scaler; on a GPU the optimizer's step finds out itself whether it is skipped."""
    monkeypatch.setattr(KernelOptimizer, "_step_supports_amp_scaling", request.param)

    def make(config):
        parts, step, batches = build(config)
        step.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return parts, step, batches

    return make


def moments(optimizer):
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


@pytest.mark.parametrize("method", ["vanilla", "pats", "sage", "child_tuning"])
def test_a_scaler_and_clipping_inside_of_the_step(tiny_run, used, scaled_step, method):
    found = []
    for way in (INSIDE, IN_PLACE):
        parts, step, batches = scaled_step(tiny_run(global_grad_clipping=1e-3, method=method))
        if way == IN_PLACE:
            parts.optimizer.register_step_pre_hook(lambda *_: None)
        norms = [step(batch)[1] for batch in batches[:3]]
        assert min(norms) > 1e-3
        assert not {"grad_scale", "found_inf"} & vars(parts.optimizer).keys()
        found.append([*norms, *(p.detach() for p in parts.network.parameters()), *moments(parts.optimizer)])
    assert used == [IN_PLACE if method == "child_tuning" else INSIDE] * 3 + [IN_PLACE] * 3
    assert len(found[0]) > len(norms) + 2 * len([*parts.network.parameters()])
    for inside, in_place in zip(*found, strict=True):
        least = 1e-5 * float(in_place.abs().max()) + 1e-11  # keys' biases have gradients of rounding alone
        torch.testing.assert_close(inside, in_place, rtol=1e-5, atol=least)


@pytest.mark.parametrize("method", ["vanilla", "pats"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_a_scaler_skips_changes_nothing(tiny_run, used, scaled_step, method, bad):
    parts, step, batches = scaled_step(tiny_run(global_grad_clipping=1e-3, method=method))
    step(batches[0])
    before = copy.deepcopy(([p.detach() for p in parts.network.parameters()], parts.optimizer.state_dict()["state"]))
    handle = [*parts.network.parameters()][-1].register_post_accumulate_grad_hook(lambda p: spoil(p.grad, bad))
    _, norm = step(batches[1])
    handle.remove()
    assert not norm.isfinite()
    assert step.scaler.get_scale() == 512.0
    after = [p.detach() for p in parts.network.parameters()], parts.optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not {"grad_scale", "found_inf"} & vars(parts.optimizer).keys()
    _, norm = step(batches[1])
    assert norm.isfinite()
    assert used == [INSIDE] * 3
    assert not all(map(torch.equal, before[0], parts.network.parameters()))


def spoil(gradient, bad):
    gradient.fill_(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_refused_step_leaves_nothing_behind(tiny_run, bad):
    parts, step, batches = build(tiny_run(global_grad_clipping=1e-3))
    step(batches[0])
    name, parameter = [*parts.network.named_parameters()][-1]
    parameter.register_post_accumulate_grad_hook(lambda p: spoil(p.grad, bad))
    before = [p.detach().clone() for p in parts.network.parameters()]
    with pytest.raises(NonFiniteGradient, match=name):
        step(batches[1])
    assert not hasattr(parts.optimizer, "grad_scale")
    assert not hasattr(parts.optimizer, "max_norm")
    assert all(map(torch.equal, before, parts.network.parameters()))


def test_component_clipping_is_of_clipped_gradients(tiny_run):
    """The order is that of the hooks: the global norm first, then each component's."""
    largest, small = 0.1, {"method": "component_clip", "component_clip": {"max_norm": 0.03}}
    parts, step, batches = build(tiny_run(global_grad_clipping=largest, **small))
    _, norm = step(batches[0])
    assert norm > largest
    got = [gradient_values(p).clone() for p in parts.network.parameters() if p.grad is not None]
    parts, step, batches = build(tiny_run(global_grad_clipping=0.0, **small))
    parts.network.train()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.context.accumulate(batches[0])
    clip_gradients(parts.network.parameters(), largest)
    parts.method.after_backward(parts.context)
    wanted = [gradient_values(p).clone() for p in parts.network.parameters() if p.grad is not None]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-9)
