"""Clipping inside of an optimizer's step on the CPU: the norm comes from the pass that looks for odd gradients."""

import math

import pytest
import torch

from module.bert_optim import Adamax, PATSAdamax
from module.clipping import clip_gradients, measures_itself
from module.kernels import backend
from module.kernels.member import NonFiniteGradient
from tests.module.models import assert_close, assert_same_bits, float64, make_gradients, make_parameters, set_gradients
from tests.module.test_threads import SHAPES
from tests.mt_dnn.method_runs import build
from tests.reference.adamax import adamax_step, new_state

MAKERS = {
    "adamax": lambda named: Adamax(named, 1e-3),
    "pats": lambda named: PATSAdamax(named, 1e-3, sensitivity_threshold=3e-6),
}
MAX_NORM = 0.05


def give_gradients(parameters, step):
    set_gradients(parameters, make_gradients(step, {name: p.shape for name, p in parameters.items()}))


def quiet(settings):
    """Without the noise, which an entry at the threshold gets or not by its last bit."""
    return lambda optimizer, group: {**settings(optimizer, group), "noise": False}


def clipped_steps(make, shapes=SHAPES, steps=3, max_norm=MAX_NORM):
    parameters, norms = make_parameters(shapes=shapes), []
    optimizer = make(parameters.items())
    for i in range(steps):
        give_gradients(parameters, i)
        optimizer.max_norm = max_norm
        optimizer.step()
        norms.append(optimizer.norm)
    return parameters, norms, optimizer


def test_a_step_is_the_float64_reference_of_the_clipped_gradients():
    parameters, norms, _ = clipped_steps(MAKERS["adamax"])
    expected = float64(make_parameters(shapes=SHAPES))
    states = {name: new_state(theta) for name, theta in expected.items()}
    for i, norm in enumerate(norms):
        gradients = float64(make_gradients(i, SHAPES))
        wanted = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert norm == pytest.approx(wanted, rel=1e-6)
        assert wanted > MAX_NORM
        for name, theta in expected.items():
            g = gradients[name] * (MAX_NORM / (wanted + 1e-6))
            expected[name] = adamax_step(theta, g, states[name], 1e-3)
    for name, theta in float64(parameters).items():
        assert_close(theta, expected[name], name, 1e-6)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("max_norm", [MAX_NORM, 1e9])
def test_it_is_clipping_before_the_step(make, max_norm, monkeypatch):
    monkeypatch.setattr(PATSAdamax, "settings", quiet(PATSAdamax.settings))
    parameters, norms, optimizer = clipped_steps(make, max_norm=max_norm)
    others = make_parameters(shapes=SHAPES)
    other = make(others.items())
    for i, norm in enumerate(norms):
        give_gradients(others, i)
        assert norm == pytest.approx(float(clip_gradients(others.values(), max_norm)), rel=1e-4)
        other.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter, others[name], rtol=1e-4, atol=1e-6)
        for key, entry in optimizer.state[parameter].items():
            torch.testing.assert_close(entry, other.state[others[name]][key], rtol=5e-4, atol=1e-9)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_neither_threads_nor_the_plain_step_change_a_bit(make, monkeypatch):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(clipped_steps(make))
        monkeypatch.setenv(backend.VARIABLE, "plain")
        found.append(clipped_steps(make))
    finally:
        torch.set_num_threads(before)
    (first, norms, _), *rest = found
    for parameters, other_norms, _ in rest:
        assert other_norms == norms
        assert_same_bits(first, parameters)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("large", [1e25, 3e38])
def test_a_norm_beyond_float32_makes_the_gradients_zero_as_torch_does(make, large):
    parameters, others = make_parameters(), make_parameters()
    first, second = make(parameters.items()), make(others.items())
    for some in (parameters, others):
        give_gradients(some, 0)
        next(iter(some.values())).grad.fill_(large)
    norm = torch.nn.utils.clip_grad_norm_(others.values(), MAX_NORM)
    second.step()
    first.max_norm = MAX_NORM
    first.step()
    assert norm == first.norm == math.inf
    assert_same_bits(parameters, others)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_by_name(make, odd):
    parameters = make_parameters()
    optimizer = make(parameters.items())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    give_gradients(parameters, 0)
    first, *_, last = parameters
    parameters[last].grad.view(-1)[-1] = odd
    parameters[first].grad.fill_(1e25)  # finite; its norm is not
    optimizer.max_norm = MAX_NORM
    with pytest.raises(NonFiniteGradient, match=last):
        optimizer.step()
    assert_same_bits(parameters, before)


def test_without_gradients_the_norm_is_zero():
    optimizer = MAKERS["adamax"](make_parameters().items())
    optimizer.max_norm = MAX_NORM
    optimizer.step()
    assert optimizer.norm == 0.0


def test_a_training_step_has_no_pass_for_the_norm(tiny_run, monkeypatch):
    parts, step, batches = build(tiny_run(global_grad_clipping=MAX_NORM))
    taken = []
    step_of = parts.optimizer.step

    def kept(*arguments):
        gradients = [p.grad for p in parts.network.parameters() if p.grad is not None]
        values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
        taken.append(math.sqrt(sum(float((g.double() ** 2).sum()) for g in values)))
        return step_of(*arguments)

    monkeypatch.setattr(parts.optimizer, "step", kept)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", None)
    for batch in batches[:2]:
        _, norm = step(batch)
        assert norm.dtype == torch.float32
        assert float(norm) == pytest.approx(taken[-1], rel=1e-6)
    assert "max_norm" not in vars(parts.optimizer)


def test_a_step_that_does_not_read_all_gradients_does_not_measure_them():
    parameters = make_parameters()
    values = [*parameters.values()]
    optimizer = MAKERS["adamax"](parameters.items())
    assert measures_itself(optimizer, values)
    assert not measures_itself(optimizer, values[1:])
    assert not measures_itself(optimizer, [*values, torch.nn.Parameter(torch.zeros(3))])
    assert measures_itself(optimizer, [*values, torch.nn.Parameter(torch.zeros(3), requires_grad=False)])
