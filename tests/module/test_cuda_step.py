"""The optimizers on the Triton kernels against the CPU kernel, on parameters and every state buffer."""

import copy
import warnings

import pytest
import torch

from module.bert_optim import Adamax, NonFiniteGradient, PATSAdamax, SAGEAdamax
from module.kernels.rows import Flag
from module.pats import PATS
from module.sensitivity import noise_statistics, sensitivity_histogram
from tests.module.models import assert_close, make_gradients, make_parameters, set_gradients, to_device, train

SHAPES = {
    "bert.embeddings.word_embeddings.weight": (5, 8),
    "bert.encoder.layer.0.attention.self.query.weight": (41, 33),
    "bert.encoder.layer.0.attention.self.query.bias": (33,),
    "bert.encoder.layer.0.output.LayerNorm.weight": (16,),
    "bert.encoder.layer.1.output.dense.weight": (1, 1),
    "bert.encoder.layer.1.output.dense.bias": (1024,),
    "bert.encoder.layer.1.empty.weight": (0, 3),
    "classifier.bias": (1,),
}
QUERY, BIAS = (f"bert.encoder.layer.0.attention.self.query.{kind}" for kind in ("weight", "bias"))
# A block is a launch of Triton's interpreter. These are a plain tensor, two blocks of one with a sensitivity, of which
# the second is cut, and a scalar: enough where a test is not of the shapes themselves.
FEW = {name: SHAPES[name] for name in ("bert.embeddings.word_embeddings.weight", QUERY, "classifier.bias")}
LOUD = {"noise_scale": 0.5, "sensitivity_threshold": 2e-6}
# The means of a tensor are summed in another order than on the CPU, which moves the noise in its last bits.
TOLERANCE = 2e-6


def adamax(rule):
    return lambda named: Adamax(named, 1e-3, rule=rule)


def sage(rule):
    return lambda named: SAGEAdamax(named, 1e-3, rule=rule)


def pats(**switches):
    return lambda named: PATSAdamax(named, 1e-3, noise_seed=2**63 + 5, **{**LOUD, **switches})


def pair(make, device, dtype=torch.float32, shapes=SHAPES):
    """The same parameters and optimizer on the CPU kernel and on the Triton kernels."""
    cpu = make_parameters(dtype=dtype, shapes=shapes)
    there = {name: to_device(p, device) for name, p in cpu.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 16-bit parameters
        return (cpu, make(list(cpu.items()))), (there, make(list(there.items())))


def set_both(cpu, there, step, scale=1.0):
    gradients = make_gradients(step, {name: p.shape for name, p in cpu.items()})
    set_gradients(cpu, gradients)
    for name, parameter in there.items():
        parameter.grad = (gradients[name].to(parameter.dtype) * scale).to(parameter.device)


def run_both(first, second, steps=2, start=1):
    for step in range(start, start + steps):
        set_both(first[0], second[0], step)
        for _, optimizer in (first, second):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step)
            optimizer.step()


def state_of(optimizer, parameter):
    return {key: value.cpu() for key, value in optimizer.state.get(parameter, {}).items()}


def assert_alike(first, second, tolerance=TOLERANCE):
    (cpu, a), (there, b) = first, second
    for name, p in cpu.items():
        if not p.numel():
            continue
        limit = tolerance if p.dtype == torch.float32 else torch.finfo(p.dtype).eps
        assert_close(there[name].detach().float().cpu(), p.detach().float(), name, limit)
        expected, got = state_of(a, p), state_of(b, there[name])
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert got[key].dtype == value.dtype
            if p.dtype == torch.float32:
                assert_close(got[key], value, f"{name} {key}", tolerance)


def assert_same(first, second):
    (cpu, a), (there, b) = first, second
    for name, p in cpu.items():
        assert torch.equal(there[name].detach().cpu(), p.detach()), name
        expected, got = state_of(a, p), state_of(b, there[name])
        assert all(torch.equal(got[key], value) for key, value in expected.items() if key != "sensitivity_mean")


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
def test_adamax_is_the_cpu_kernel_bit_for_bit(device, rule):
    first, second = pair(adamax(rule), device)
    run_both(first, second)
    assert_same(first, second)


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
def test_sage_is_the_cpu_kernel_bit_for_bit(device, rule):
    first, second = pair(sage(rule), device)
    run_both(first, second)
    assert_same(first, second)
    assert_alike(first, second)  # the means


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"rule": "torch"},
        {"noise_times_lr": False, "noise_scale": 1e-4},
        {"threshold_mode": "relative", "sensitivity_threshold": 0.8},
        {"threshold_mode": "ratio", "sensitivity_threshold": 1.5},
        {"threshold_mode": "none", "max_ratio": 2.0},
        {"mean_scope": "model"},
        {"mask_scope": "tensor"},
        {"noise_probability": 1.0, "perturb_biases": False},
        {"reading": "constant", "noise_scale": 1e-4, "sensitivity_threshold": 0.5},
    ],
    ids=str,
)
def test_pats_is_the_cpu_kernel(device, switches):
    shapes = SHAPES if not switches else {**FEW, BIAS: SHAPES[BIAS]}  # switches that tell biases apart
    first, second = pair(pats(**switches), device, shapes=shapes)
    start = {name: p.detach().clone() for name, p in first[0].items()}
    run_both(first, second)
    assert_alike(first, second)
    plain, optimizer = pair(adamax(switches.get("rule", "mtdnn")), device, shapes=shapes)[0]
    train(plain, optimizer, 2, schedule=lambda step: 1e-3 * (1 + step))
    difference = (plain[QUERY] - first[0][QUERY]).abs().max()
    assert difference > 100 * TOLERANCE * start[QUERY].abs().max()  # the noise is far above what is compared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [adamax("mtdnn"), pats(), sage("torch")], ids=["adamax", "pats", "sage"])
def test_16_bit_parameters(device, dtype, make):
    first, second = pair(make, device, dtype, FEW)
    before = first[0][QUERY].detach().clone()
    run_both(first, second)
    assert_alike(first, second)
    assert not torch.equal(before, first[0][QUERY])
    mean = second[1].state[second[0][QUERY]]["exp_avg"]
    assert mean.dtype == torch.float32


@pytest.mark.parametrize("silence", [{"noise_scale": 0.0}, {"noise_probability": 0.0}, {"sensitivity_threshold": 0.0}])
def test_without_noise_it_is_adamax_bit_for_bit(device, silence):
    first, _ = pair(adamax("mtdnn"), device, shapes=FEW)
    _, second = pair(pats(**silence), device, shapes=FEW)
    run_both(first, second)
    for name, parameter in first[0].items():
        assert torch.equal(parameter, second[0][name].cpu())


def test_views_that_are_not_aligned_and_not_contiguous(device):
    first, second = pair(pats(), device, shapes=FEW)
    there = second[0]
    store = torch.zeros(41 * 33 + 1, device=device)
    store[1:] = there[QUERY].detach().flatten()
    there[QUERY].data = store[1:].view(41, 33)  # 4 bytes off
    word = "bert.embeddings.word_embeddings.weight"
    there[word].data = there[word].detach().t().contiguous().t()
    run_both(first, second)
    assert_alike(first, second)


def test_parameters_may_get_gradients_later(device):
    first, second = pair(pats(), device, shapes=FEW)
    for step in range(1, 4):
        set_both(first[0], second[0], step)
        if step == 1:
            first[0][QUERY].grad = second[0][QUERY].grad = None
        first[1].step()
        second[1].step()
    assert_alike(first, second)
    assert second[1].state[second[0][QUERY]]["step"].item() == 2


def snapshot(parameters, optimizer):
    return copy.deepcopy([[p.detach().cpu(), state_of(optimizer, p)] for p in parameters.values()])


def assert_unchanged(before, parameters, optimizer):
    for (value, state), (now, now_state) in zip(before, snapshot(parameters, optimizer), strict=True):
        assert torch.equal(value, now)
        assert all(torch.equal(state[key], now_state[key]) for key in now_state if key in state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [QUERY, "classifier.bias"])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told_when_asked(device, value, name):
    first, second = pair(pats(), device, shapes=FEW)
    run_both(first, second, 1)
    there, optimizer = second
    optimizer.check_refused()
    before = snapshot(there, optimizer)
    for step in (2, 3):
        set_both(first[0], there, step)
        there[name].grad.view(-1)[-1] = value
        optimizer.step()
    assert_unchanged(before, there, optimizer)
    with pytest.raises(NonFiniteGradient, match=f"{name}' is not finite.*2 refused steps"):
        optimizer.check_refused()
    optimizer.check_refused()  # told once
    run_both(first, second, 1, start=2)
    assert_alike(first, second)


def test_a_gradient_scaler_unscales_and_skips(device):
    first, second = pair(pats(), device, shapes=FEW)
    there, optimizer = second
    assert optimizer._step_supports_amp_scaling
    assert not first[1]._step_supports_amp_scaling
    for step in range(1, 4):
        set_both(first[0], there, step, scale=1024.0)
        first[1].step()
        optimizer.grad_scale = torch.tensor(1024.0, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
        optimizer.step()
    assert_alike(first, second)
    before = snapshot(there, optimizer)
    there[QUERY].grad[0, 0] = float("inf")
    optimizer.found_inf.fill_(1.0)
    optimizer.step()
    assert_unchanged(before, there, optimizer)
    optimizer.check_refused()  # the scaler's own affair


def test_the_learning_rate_may_be_a_tensor(device):
    first, second = pair(pats(), device, shapes=FEW)
    lr = to_device(torch.tensor(1e-3), device)
    second[1].param_groups[0]["lr"] = lr
    for step in range(1, 4):
        set_both(first[0], second[0], step)
        first[1].param_groups[0]["lr"] = float(torch.tensor(1e-3 * step))
        lr.fill_(1e-3 * step)
        first[1].step()
        second[1].step()
    assert_alike(first, second)


def test_groups_of_their_own(device):
    def make(named):
        groups = [{"params": named[:3], "lr": 3e-3, "noise_scale": 0.2, "rule": "torch"}, {"params": named[3:]}]
        return PATSAdamax(groups, 1e-3, noise_seed=3, **LOUD)

    first, second = pair(make, device)
    for step in range(1, 4):
        set_both(first[0], second[0], step)
        first[1].step()
        second[1].step()
    assert_alike(first, second)


def test_state_goes_to_the_cpu_and_back(device):
    first, second = pair(pats(), device, shapes=FEW)
    run_both(first, second, 2)
    (cpu, a), (there, b) = pair(pats(), device, shapes=FEW)
    a.load_state_dict(second[1].state_dict())
    b.load_state_dict(first[1].state_dict())
    for target, source in ((cpu, second[0]), (there, first[0])):
        for name, parameter in target.items():
            parameter.data.copy_(source[name].data)
    assert all(v.device == p.device for p in there.values() for v in b.state.get(p, {}).values())
    run_both((cpu, a), (there, b), 2, start=3)
    assert_alike((cpu, a), (there, b))
    run_both(first, second, 2, start=3)
    assert_alike(first, (there, b))


def test_statistics_are_read_from_the_device(device):
    first, second = pair(pats(), device, shapes=FEW)
    run_both(first, second, 2)
    expected, got = (noise_statistics(optimizer.observations()) for _, optimizer in (first, second))
    assert got == pytest.approx(expected, rel=1e-5)
    counts, _ = sensitivity_histogram(o.sensitivity for o in second[1].observations())
    assert counts.sum() == sum(o.sensitivity.numel() for o in second[1].observations())


def test_a_sparse_gradient_is_refused_by_name(device):
    _, (there, optimizer) = pair(pats(), device)
    name = "bert.embeddings.word_embeddings.weight"
    there[name].grad = torch.zeros(5, 8, device=device).to_sparse(1)
    with pytest.raises(RuntimeError, match=f"gradient of '{name}' is sparse.*dense gradients are needed"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("switches", [{}, {"mean_scope": "model", "mask_scope": "tensor"}], ids=str)
def test_pats_around_another_optimizer(device, dtype, switches):
    def make(named):
        return torch.optim.AdamW(named, 1e-3, weight_decay=0.0)

    shapes = SHAPES if switches else FEW  # means of several tensors and of one
    first, second = pair(make, device, dtype, shapes)
    hooks = [PATS(p.items(), noise_seed=7, **{**LOUD, **switches}).attach(o) for p, o in (first, second)]
    plain, _ = pair(make, device, dtype, shapes)
    for step in range(1, 4):
        set_both(first[0], second[0], step)
        set_both(plain[0], second[0], step)
        for _, optimizer in (first, second, plain):
            optimizer.step()
    assert_alike(first, second)
    assert not torch.equal(plain[0][QUERY], second[0][QUERY].cpu())
    for path, state in hooks[0].state_dict()["state"].items():
        for key, value in state.items():
            got = hooks[1].state_dict()["state"][path][key].cpu()
            torch.testing.assert_close(got, value, rtol=2e-6 if dtype == torch.float32 else 0.1, atol=1e-9)


def test_pats_around_another_optimizer_on_adamax_is_pats_adamax(device):
    _, whole = pair(lambda named: PATSAdamax(named, 1e-3, noise_seed=7, **LOUD), device, shapes=FEW)
    cpu, (there, plain) = pair(adamax("mtdnn"), device, shapes=FEW)
    PATS(there.items(), noise_seed=7, **LOUD).attach(plain)
    run_both(cpu, whole)
    run_both(cpu, (there, plain))
    for name, parameter in there.items():
        assert torch.equal(parameter, whole[0][name])


def test_pats_around_another_optimizer_leaves_out_what_is_not_finite(device):
    cpu, (there, optimizer) = pair(adamax("mtdnn"), device, shapes=FEW)
    hooks = PATS(there.items(), noise_seed=7, **LOUD).attach(optimizer)
    run_both(cpu, (there, optimizer), 2)
    before = copy.deepcopy(hooks.state_dict()["state"])
    there[QUERY].grad[0, 0] = float("nan")
    optimizer.step()
    for path, state in hooks.state_dict()["state"].items():
        assert all(torch.equal(state[key], before[path][key]) for key in state)
    with pytest.raises(NonFiniteGradient, match=QUERY):
        hooks.check_refused()


def test_the_number_of_launches_does_not_depend_on_the_number_of_tensors(device):
    launches = []
    for layers in (1, 5):
        shapes = {f"bert.encoder.layer.{i}.{n}": (4,) for i in range(layers) for n in ("x.bias", "LayerNorm.bias")}
        first, (there, optimizer) = pair(pats(), device, shapes=shapes)
        run_both(first, (there, optimizer), 1)
        (step,) = optimizer._engine.device_steps.values()
        launches.append(len(step._launches))
    assert launches == [2, 2]  # tensors with and without a sensitivity; twice each, and two launches per step


def test_mean_over_the_model_needs_one_device(device):
    _, (there, _) = pair(pats(), device)
    there[QUERY] = torch.nn.Parameter(there[QUERY].detach().cpu())  # stays with the CPU kernel
    optimizer = pats(mean_scope="model")(list(there.items()))
    for parameter in there.values():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(ValueError, match="'model' with parameters on several devices"):
        optimizer.step()


def test_a_model_that_moves_takes_its_state_along(device):
    first, second = pair(pats(), device, shapes=FEW)
    run_both(first, second)
    for parameter in first[0].values():  # from now on on the kernels of the device
        parameter.data = parameter.data.to(device, copy=True)
        parameter.simulates_cuda = True
    for step in (3, 4):
        set_both(second[0], first[0], step)
        set_both(first[0], second[0], step)
        for _, optimizer in (first, second):
            optimizer.param_groups[0]["lr"] = 1e-3
            optimizer.step()
    for name, parameter in first[0].items():
        if parameter.numel():
            assert_close(parameter.detach().cpu(), second[0][name].detach().cpu(), name, TOLERANCE)


def test_gradients_are_made_where_their_parameters_are():
    """A gradient on another device than its parameter's is refused by torch, which only a second device shows."""
    here, there = ({QUERY: torch.nn.Parameter(torch.empty(SHAPES[QUERY], device="meta"))} for _ in range(2))
    set_both(here, there, 1)
    assert {p.grad.device.type for p in (here[QUERY], there[QUERY])} == {"meta"}


def test_flags_of_a_good_step_are_clean(device):
    first, (there, optimizer) = pair(pats(), device)
    run_both(first, (there, optimizer), 1)
    (step,) = optimizer._engine.device_steps.values()
    assert step._flags[Flag.SKIP] == 0
    assert step.refused() == (0, None)
