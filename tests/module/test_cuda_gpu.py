"""What only a GPU can show: no waiting for the device, CUDA graphs, the gradient scaler. Parity: the other files."""

import pytest
import torch

from module.bert_optim import Adamax, PATSAdamax, SAGEAdamax
from module.pats import PATS
from tests.module.models import PERTURBED, SHAPES, make_gradients, make_parameters

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
LOUD = {"noise_scale": 0.5, "sensitivity_threshold": 2e-6, "noise_seed": 9}


def on_cuda():
    return {name: torch.nn.Parameter(p.detach().cuda()) for name, p in make_parameters().items()}


def set_cuda_gradients(parameters, step, scale=1.0):
    """In place where there is one: a graph knows gradients by their addresses."""
    for name, gradient in make_gradients(step, SHAPES).items():
        if parameters[name].grad is None:
            parameters[name].grad = torch.zeros_like(parameters[name])
        parameters[name].grad.copy_(gradient * scale)


@pytest.mark.parametrize("make", [Adamax, SAGEAdamax, PATSAdamax])
def test_a_step_never_waits_for_the_device(make):
    parameters = on_cuda()
    optimizer = make(list(parameters.items()), 1e-3)
    for step in (1, 2, 3):
        set_cuda_gradients(parameters, step)
        torch.cuda.synchronize()
        if step > 1:  # the first step makes the state and the list of blocks
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.param_groups[0]["lr"] = 1e-3 * step
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_hooks_never_wait_for_the_device():
    parameters = on_cuda()
    optimizer = torch.optim.AdamW(list(parameters.values()), 1e-3, fused=True)
    PATS(parameters.items(), **LOUD).attach(optimizer)
    for step in (1, 2):
        set_cuda_gradients(parameters, step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_captured_graph_follows_gradients_step_and_learning_rate():
    eager, captured = on_cuda(), on_cuda()
    rate = torch.tensor(1e-3, device="cuda")
    first = PATSAdamax(list(eager.items()), 1e-3, **LOUD)
    second = PATSAdamax(list(captured.items()), 1e-3, **LOUD)
    second.param_groups[0]["lr"] = rate
    set_cuda_gradients(captured, 1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second.step()
    for step in range(1, 6):
        set_cuda_gradients(eager, step)
        first.param_groups[0]["lr"] = float(torch.tensor(1e-3 * step))
        first.step()
        if step > 1:
            set_cuda_gradients(captured, step)
            rate.fill_(1e-3 * step)
            if step == 3:
                second.step()  # between replays
            else:
                graph.replay()
    for name, parameter in eager.items():
        assert torch.equal(parameter, captured[name]), name
    name = PERTURBED[0]
    assert second.state[captured[name]]["step"].item() == 5


def test_a_gradient_scaler_unscales_and_skips_without_waiting():
    plain, scaled = on_cuda(), on_cuda()
    first = PATSAdamax(list(plain.items()), 1e-3, **LOUD)
    second = PATSAdamax(list(scaled.items()), 1e-3, **LOUD)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=1000)
    scaler.scale(torch.zeros((), device="cuda"))
    for step in (1, 2, 3):
        set_cuda_gradients(plain, step)
        set_cuda_gradients(scaled, step, scale=1024.0)
        first.step()
        if step == 2:
            scaler.unscale_(second)
        scaler.step(second)
        scaler.update()
    for name, parameter in plain.items():
        torch.testing.assert_close(parameter, scaled[name], rtol=1e-6, atol=1e-8)
    before = {name: p.detach().clone() for name, p in scaled.items()}
    set_cuda_gradients(scaled, 4, scale=float("inf"))
    scaler.step(second)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(before[name], p) for name, p in scaled.items())
    second.check_refused()


def test_parameters_on_two_kinds_of_devices():
    half = {name: torch.nn.Parameter(p.detach()) for name, p in make_parameters().items()}
    for name in list(half)[::2]:
        half[name] = torch.nn.Parameter(half[name].detach().cuda())
    whole = make_parameters()
    optimizers = [PATSAdamax(list(p.items()), 1e-3, **LOUD) for p in (half, whole)]
    for step in (1, 2, 3):
        for parameters, optimizer in zip((half, whole), optimizers, strict=True):
            for name, gradient in make_gradients(step).items():
                parameters[name].grad = gradient.to(parameters[name].device)
            optimizer.step()
    for name, parameter in whole.items():
        torch.testing.assert_close(half[name].cpu(), parameter, rtol=2e-5, atol=1e-7)
