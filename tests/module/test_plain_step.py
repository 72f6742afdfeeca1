"""The plain torch step, chosen on the CPU: the compiled kernels' bits, and the float64 reference."""

import numpy as np
import pytest
import torch

from module import PATS, Adamax, PATSAdamax, SAGEAdamax
from module.kernels import backend, cpu, plain_step
from module.noise import philox4x32, tensor_id
from tests.module.draws import draw
from tests.module.models import (
    PERTURBED,
    SHAPES,
    assert_close,
    assert_nested_equal,
    assert_same_bits,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)
from tests.module.test_pats import SWITCHES
from tests.reference import pats as reference

LOUD = {"noise_scale": 0.05, "threshold_mode": "none", "noise_probability": 0.9, "noise_seed": 2**40 + 7}
MAKERS = {
    "adamax": lambda named, rule: Adamax(named, 1e-3, rule=rule),
    "pats": lambda named, rule: PATSAdamax(named, 1e-3, rule=rule, **LOUD),
    "sage": lambda named, rule: SAGEAdamax(named, 1e-3, rule=rule),
}


@pytest.fixture
def plain(monkeypatch):
    """Chooses the plain step for everything from here on."""
    return lambda: monkeypatch.setenv(backend.VARIABLE, "plain")


def state_bits(optimizer):
    return [{k: v.clone() for k, v in state.items()} for state in optimizer.state.values()]


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:.*below its resolution")
def test_it_is_the_compiled_step_bit_for_bit(make, rule, dtype, plain):
    a, b = make_parameters(dtype=dtype), make_parameters(dtype=dtype)
    first = make(a.items(), rule)
    train(a, first, 5)
    plain()
    second = make(b.items(), rule)
    train(b, second, 5)
    assert_same_bits({n: p.float() for n, p in a.items()}, {n: p.float() for n, p in b.items()})
    assert_nested_equal(state_bits(first), state_bits(second))


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_with_every_switch(switches, plain):
    a, b, c = make_parameters(), make_parameters(), make_parameters()
    train(a, PATSAdamax(a.items(), 1e-3, noise_seed=3, **switches), 4)
    plain()
    train(b, PATSAdamax(b.items(), 1e-3, noise_seed=3, **switches), 4)
    optimizer = Adamax(c.items(), 1e-3)
    PATS(c.items(), noise_seed=3, **switches).attach(optimizer)
    train(c, optimizer, 4)
    assert_same_bits(a, b)
    assert_same_bits(a, c)


def test_it_is_held_to_the_reference(plain):
    plain()
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
    thetas = float64({name: parameters[name] for name in PERTURBED})
    states = {path: reference.new_state(theta) for path, theta in thetas.items()}
    rule = {"lam": 0.05, "threshold_mode": "none", "p": 0.9, "seed": 2**40 + 7}
    for step in range(1, 11):
        train(parameters, optimizer, 1, first=step)
        g = float64({name: make_gradients(step)[name] for name in PERTURBED})
        thetas = reference.pats_step(thetas, g, states, learning_rate(step), **rule)
    for name in PERTURBED:
        path = name.removeprefix("bert.encoder.")
        assert_close(parameters[name], thetas[path], path, scale=0.04)
        assert_close(optimizer.state[parameters[name]]["sensitivity"], states[path]["s_bar"], path)


def test_words_are_philox():
    counter, key = (9, 0xFFFFFFFF, 0x80000001), (0xDEADBEEF, 0xFFFFFFFF)
    lanes = torch.tensor([0, 1, 255, 0xFFFFFFFF, 0x80000000])
    words = torch.stack(plain_step.philox(lanes, counter, key), 1)
    assert words.tolist() == [list(philox4x32((int(lane), *counter), key)) for lane in lanes]


def test_normals_are_the_kernels_through_every_radius_and_angle():
    k = torch.arange(0, 1 << 24, 997, dtype=torch.int64)
    a, b = k << 8 | (k & 255), (k * 7919 & 0xFFFF) << 16 | (k & 0xFFFF)
    even, odd = plain_step.normals(a, b)
    lanes = 256
    for i in range(0, len(k) - lanes, lanes):
        part = slice(i, i + lanes)
        z, mask = np.empty(1024, np.float32), np.empty(1024, np.int32)
        cpu.normals_block(a[part].numpy().astype(np.uint32), b[part].numpy().astype(np.uint32), lanes, 0, z, mask)
        assert z[:lanes].tobytes() == even[part].numpy().tobytes()
        assert z[lanes : 2 * lanes].tobytes() == odd[part].numpy().tobytes()
        bits = plain_step.mask_bits(a[part], b[part])
        assert [*mask[:lanes]] == bits[0].tolist()
        assert [*mask[lanes : 2 * lanes]] == bits[1].tolist()


@pytest.mark.parametrize("size", [1, 255, 1024, 5000])
def test_draws_in_parts_are_the_whole(size, monkeypatch):
    monkeypatch.setattr(plain_step, "_CHUNK", 2)
    identity = np.array([tensor_id("a.path")], np.uint64).view(np.int64)[0]
    row = {"identity": identity, "step": 3, "key_low": 5, "key_high": 1}
    parts = list(plain_step._draws(row, size, torch.device("cpu")))
    assert [start for start, *_ in parts] == list(range(0, size, 2048))
    z = torch.cat([z for _, z, _ in parts]).numpy()
    np.testing.assert_array_equal(z, draw((1 << 32) + 5, 3, "a.path", size))


def test_transposed_masked_and_sparse_tensors(plain):
    def run():
        parameters = make_parameters()
        turned = parameters[PERTURBED[0]]
        turned.data = turned.data.t().contiguous().t()
        optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
        for step in (1, 2):
            set_gradients(parameters, make_gradients(step))
            masked = parameters[PERTURBED[2]]
            masked.unmasked_grad, masked.grad = masked.grad, masked.grad * (masked.grad > 0)
            words = parameters["bert.embeddings.word_embeddings.weight"]
            rows = torch.tensor([[1, 7, 30]])
            words.grad = torch.sparse_coo_tensor(rows, words.grad[rows[0]], words.shape, is_coalesced=True)
            optimizer.step()
        return parameters

    compiled = run()
    plain()
    assert_same_bits(compiled, run())


def test_a_gradient_that_is_not_finite_is_refused(plain):
    from module import NonFiniteGradient

    plain()
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3)
    set_gradients(parameters, make_gradients(1))
    parameters["classifier.weight"].grad[0, 0] = torch.nan
    with pytest.raises(NonFiniteGradient) as error:
        optimizer.step()
    assert error.value.parameter == "classifier.weight"
    assert_same_bits(parameters, make_parameters())


@pytest.mark.parametrize(("device", "package"), [("cpu", "numba"), ("cuda", "triton")])
def test_a_missing_package_means_the_plain_step(device, package, monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == package else object())
    backend._installed.cache_clear()
    try:
        assert not backend.has_kernels(device)
        assert not any(backend.has_kernels(other) for other in ("mps", "xpu"))
        parameters = make_parameters()
        optimizer = PATSAdamax(parameters.items(), 1e-3, **LOUD)
        if device == "cpu":
            with pytest.warns(UserWarning, match="^No numba: a plain torch step on cpu, slower: pip install numba$"):
                train(parameters, optimizer, 1)
    finally:
        monkeypatch.undo()
        backend._installed.cache_clear()
    if device == "cpu":
        others = make_parameters()
        train(others, PATSAdamax(others.items(), 1e-3, **LOUD), 1)
        assert_same_bits(parameters, others)
    assert len(SHAPES) == len(parameters)


def test_numbers_of_the_state_stay_on_the_cpu_where_a_device_may_lack_float64():
    from module.kernels.state import entry_device

    class There:
        device = torch.device("mps", 0)

    keys = ("step", "sensitivity_mean", "exp_avg", "sensitivity")
    assert [entry_device(key, There()).type for key in keys] == ["cpu", "cpu", "mps", "mps"]


def test_noise_on_other_entries_needs_the_compiled_step(plain):
    from module.methods.parts.noise_spread import SpreadNoise

    plain()
    parameters = make_parameters()
    optimizer = Adamax(parameters.items(), 1e-3)
    SpreadNoise(parameters.items(), spread="uniform").attach(optimizer)
    with pytest.raises(NotImplementedError, match="needs the compiled step of the CPU: pip install numba"):
        train(parameters, optimizer, 1)
    assert_same_bits(parameters, make_parameters())


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv(backend.VARIABLE, "numba")
    parameters = make_parameters()
    with pytest.raises(ValueError, match=r"^Invalid PATS_STEP: 'numba': plain is needed, or unset it$"):
        train(parameters, PATSAdamax(parameters.items(), 1e-3), 1)
    assert_same_bits(parameters, make_parameters())
