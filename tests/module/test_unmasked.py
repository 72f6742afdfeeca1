"""A masked gradient moves the parameter; the whole one, left beside it, is what sensitivities are of."""

import pytest
import torch

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import SHAPES, make_gradients, make_parameters, set_gradients, to_device

LAYER = "bert.encoder.layer.0.intermediate.dense.weight"
STEPS = 4


def mask_of(shape, step):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(shape, generator=generator) < 0.4


def train(optimizer, parameters, keep_whole, mask=True):
    for step in range(1, STEPS + 1):
        set_gradients(parameters, make_gradients(step))
        for parameter in parameters.values():
            if keep_whole:
                parameter.unmasked_grad = parameter.grad.clone()
            if mask:
                parameter.grad.mul_(mask_of(parameter.shape, step).to(parameter.device))
        optimizer.step()
        for parameter in parameters.values():
            if keep_whole:
                del parameter.unmasked_grad
    return optimizer


@pytest.mark.parametrize("kind", [PATSAdamax, SAGEAdamax])
def test_sensitivities_are_of_the_whole_gradient_and_moments_of_the_masked_one(kind):
    silent = {"noise_scale": 0.0} if kind is PATSAdamax else {}
    # Steps of no length: theta stays, so that the sensitivities depend on the gradients alone.
    both, whole, masked = make_parameters(), make_parameters(), make_parameters()
    ours = train(kind(both.items(), lr=0.0, **silent), both, keep_whole=True)
    tracked = train(kind(whole.items(), lr=0.0, **silent), whole, keep_whole=False, mask=False)
    moved = train(Adamax(masked.items(), lr=0.0), masked, keep_whole=False)
    for name in SHAPES:
        state, of_whole, of_masked = ours.state[both[name]], tracked.state[whole[name]], moved.state[masked[name]]
        assert torch.equal(state["exp_avg"], of_masked["exp_avg"])
        assert torch.equal(state["exp_inf"], of_masked["exp_inf"])
        if "sensitivity" in of_whole:
            assert torch.equal(state["sensitivity"], of_whole["sensitivity"])
            assert torch.equal(state["sensitivity_mean"], of_whole["sensitivity_mean"])
    assert "sensitivity" in ours.state[both[LAYER]]


def test_attached_pats_is_the_fused_one_under_a_mask():
    fused, attached = make_parameters(), make_parameters()
    rule = {"noise_scale": 0.1, "threshold_mode": "none", "noise_seed": 7}
    train(PATSAdamax(fused.items(), lr=1e-3, **rule), fused, keep_whole=True)
    optimizer = Adamax(attached.items(), lr=1e-3)
    PATS(attached.items(), **rule).attach(optimizer)
    train(optimizer, attached, keep_whole=True)
    assert all(torch.equal(fused[name], attached[name]) for name in SHAPES)


def test_an_update_without_a_mask_is_the_plain_one():
    plain, marked = make_parameters(), make_parameters()
    rule = {"noise_scale": 0.1, "threshold_mode": "none", "noise_seed": 7}
    train(PATSAdamax(plain.items(), lr=1e-3, **rule), plain, keep_whole=False, mask=False)
    train(PATSAdamax(marked.items(), lr=1e-3, **rule), marked, keep_whole=True, mask=False)
    assert all(torch.equal(plain[name], marked[name]) for name in SHAPES)


def fused_pats(parameters):
    return PATSAdamax(parameters.items(), lr=1e-3, noise_scale=0.1, threshold_mode="none", noise_seed=7)


def attached_pats(parameters):
    optimizer = Adamax(parameters.items(), lr=1e-3)
    PATS(parameters.items(), noise_scale=0.1, threshold_mode="none", noise_seed=7).attach(optimizer)
    return optimizer


def sage(parameters):
    return SAGEAdamax(parameters.items(), lr=1e-3)


@pytest.mark.parametrize("make", [fused_pats, attached_pats, sage], ids=["fused", "attached", "sage"])
def test_the_kernels_of_a_gpu_mask_as_the_cpu_does(device, make):
    here, plain = make_parameters(), make_parameters()
    there = {name: to_device(parameter, device) for name, parameter in here.items()}
    first, second = (train(make(parameters), parameters, keep_whole=True) for parameters in (here, there))
    train(make(plain), plain, keep_whole=False)
    assert not torch.equal(here[LAYER], plain[LAYER])  # sensitivities of masked gradients are others
    for name in SHAPES:
        torch.testing.assert_close(there[name].cpu(), here[name], rtol=1e-5, atol=1e-8, msg=name)
        got, expected = second.state[there[name]], first.state[here[name]]
        assert list(got) == list(expected)
        assert torch.equal(got["exp_avg"].cpu(), expected["exp_avg"])


def test_a_whole_gradient_of_another_dtype_is_refused_on_a_gpu(device):
    parameters = {LAYER: to_device(make_parameters()[LAYER], device)}
    set_gradients(parameters, {LAYER: make_gradients(1)[LAYER]})
    parameters[LAYER].unmasked_grad = parameters[LAYER].grad.half()
    with pytest.raises(TypeError, match=r"unmasked_grad of .* is torch.float16: torch.float32 is needed"):
        PATSAdamax(parameters.items(), lr=1e-3).step()
