"""PATSAdamax against its float64 reference, and what it must reduce to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from module.bert_optim import Adamax, PATSAdamax
from module.pats_rule import PATSRule
from tests.module.models import (
    PERTURBED,
    SCALE,
    SHAPES,
    assert_close,
    assert_same_bits,
    float64,
    learning_rate,
    make_gradients,
    make_parameters,
    set_gradients,
    train,
)
from tests.reference import adamax
from tests.reference import pats as reference

SEED = 0xFEDCBA9876543210
# With the gradients of `models`, gamma spares about half of the entries in every mode.
SWITCHES = {
    "default": {"sensitivity_threshold": 3e-6},
    "all perturbed": {"threshold_mode": "none", "noise_probability": 1.0},
    "relative": {"threshold_mode": "relative", "sensitivity_threshold": 0.5},
    "ratio": {"threshold_mode": "ratio", "sensitivity_threshold": 2.0},
    "model mean": {"mean_scope": "model", "sensitivity_threshold": 3e-6},
    "model mean, relative": {"mean_scope": "model", "threshold_mode": "relative", "sensitivity_threshold": 0.3},
    "tensor mask": {"mask_scope": "tensor", "sensitivity_threshold": 3e-6},
    "no biases": {"perturb_biases": False, "sensitivity_threshold": 3e-6},
    "cap": {"max_ratio": 1.5, "threshold_mode": "none"},
    "cap after the threshold": {"max_ratio": 1.5, "threshold_mode": "ratio", "sensitivity_threshold": 2.0},
    "outside lr": {"noise_times_lr": False, "noise_scale": 1e-6, "sensitivity_threshold": 3e-6},
    "constant": {"reading": "constant", "sensitivity_threshold": 0.7},
    "other numbers": {"sensitivity_beta": 0.0, "sensitivity_eps": 1e-7, "noise_scale": 0.02, "noise_probability": 0.9},
}
SYMBOLS = {
    "noise_scale": "lam", "sensitivity_threshold": "gamma", "sensitivity_beta": "beta", "noise_probability": "p",
    "sensitivity_eps": "eps", "noise_times_lr": "noise_times_lr", "threshold_mode": "threshold_mode",
    "mean_scope": "mean_scope", "mask_scope": "mask_scope", "max_ratio": "max_ratio",
}  # fmt: skip


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_equals_the_reference_on_parameters_and_state(switches, rule):
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3, rule=rule, noise_seed=SEED, weight_decay=0.01, **switches)
    filled = PATSRule(**switches)
    symbols = {symbol: getattr(filled, name) for name, symbol in SYMBOLS.items()}
    perturbed = [n for n in PERTURBED if filled.perturb_biases or not n.endswith("bias")]
    paths = {name: name.removeprefix("bert.encoder.") for name in perturbed}
    thetas = float64({name: parameters[name] for name in perturbed})
    states = {path: reference.new_state(theta) for path, theta in thetas.items()}
    settings = {"eps": {"mtdnn": 1e-6, "torch": 1e-8}[rule], "rule": rule}
    quiet = {path: reference.new_state(theta) for path, theta in thetas.items()}
    for step in range(1, 26):
        train(parameters, optimizer, 1, first=step)
        g = float64({name: make_gradients(step)[name] for name in perturbed})
        without = reference.pats_step(
            thetas, g, quiet, learning_rate(step), optimizer=settings, seed=SEED, **{**symbols, "lam": 0.0}
        )
        thetas = reference.pats_step(thetas, g, states, learning_rate(step), optimizer=settings, seed=SEED, **symbols)
    assert any((thetas[path] != without[path]).any() for path in thetas), "the last step drew no noise"
    for name, path in paths.items():
        state = optimizer.state[parameters[name]]
        assert_close(parameters[name], thetas[path], path, scale=SCALE)
        assert_close(state["exp_avg"], states[path]["m"], path)
        assert_close(state["exp_inf"], states[path]["u"], path)
        assert_close(state["sensitivity"], states[path]["s_bar"], path)
        assert_close(state["sensitivity_mean"], states[path]["s_bar"].mean(), path)
        assert state["step"] == 25
    assert_changes_match(parameters, perturbed, thetas, paths)


def assert_changes_match(parameters, perturbed, thetas, paths):
    """What the 25 steps changed, the noise a part of it, is right too: parameters are larger than their changes."""
    for name, before in make_parameters().items():
        if name in perturbed:
            before = before.detach().double().numpy()
            got = parameters[name].detach().double().numpy() - before
            assert_close(got, thetas[paths[name]] - before, name, tolerance=1e-4)


@pytest.mark.parametrize("rule", ["mtdnn", "torch"])
@pytest.mark.parametrize(
    "silent",
    [
        {"noise_scale": 0.0},
        {"noise_probability": 0.0},
        {"sensitivity_threshold": 0.0},
        {"threshold_mode": "relative", "sensitivity_threshold": 0.0},
        {"threshold_mode": "ratio", "sensitivity_threshold": 1e30},
    ],
)
def test_without_noise_it_is_adamax_bit_for_bit(silent, rule):
    a, b = make_parameters(), make_parameters()
    train(a, Adamax(a.items(), 1e-3, rule=rule), 25)
    train(b, PATSAdamax(b.items(), 1e-3, rule=rule, noise_seed=3, **silent), 25)
    assert_same_bits(a, b)


def test_only_weights_and_biases_of_the_layers_are_perturbed():
    a, b = make_parameters(), make_parameters()
    train(a, Adamax(a.items(), 1e-3), 3)
    train(b, PATSAdamax(b.items(), 1e-3, threshold_mode="none", noise_probability=1.0), 3)
    assert [name for name in SHAPES if not torch.equal(a[name], b[name])] == PERTURBED


def noise_of_one_step(sensitivities, **switches):
    """-noise / lr of a tensor with these |theta g| at its first step."""
    s = torch.as_tensor(sensitivities, dtype=torch.float32)
    name = "encoder.layer.0.output.dense.weight"
    result = []
    for scale in (0.0, None):
        parameter = torch.nn.Parameter(torch.ones_like(s))
        parameter.grad = s.clone()
        # The parameter is 1, so |theta g| = s; a huge eps silences Adamax's own step.
        options = {"eps": 1e30, "weight_decay": 0.0, "sensitivity_beta": 0.0, "sensitivity_eps": 1e-30}
        switches = {"threshold_mode": "none", "noise_probability": 1.0, **switches}
        scaled = switches if scale is None else {**switches, "noise_scale": scale}
        PATSAdamax([(name, parameter)], 1.0, **options, **scaled).step()
        result.append(parameter.detach().double())
    return (result[1] - result[0]).numpy()


def test_noise_has_the_scale_of_equation_4():
    n = 1 << 16
    same = noise_of_one_step(np.full(n, 1e-3), noise_scale=0.01)
    assert same.std() == pytest.approx(0.01, rel=0.02)  # all equally sensitive: sigma = lambda
    s = np.where(np.arange(n) < n // 2, 1e-3, 2e-3)
    noise = noise_of_one_step(s, noise_scale=0.01)
    expected = np.where(np.arange(n) < n // 2, 1.5, 0.75) * same  # the mean is 1.5e-3
    np.testing.assert_allclose(noise, expected, rtol=1e-6, atol=2e-7)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40), st.floats(1e-4, 1e-2))
@settings(max_examples=30, deadline=None)
def test_less_sensitive_means_more_noise_and_lambda_scales_it(sensitivities, lam):
    s = np.array(sensitivities, np.float32)
    unit = noise_of_one_step(np.full(s.size, 0.5), noise_scale=lam)  # the same draws with ratio 1
    once = noise_of_one_step(s, noise_scale=lam)
    size = np.abs(once / unit)
    order = np.argsort(s)
    assert (np.diff(size[order]) <= 1e-2 * size[order][:-1]).all()
    twice = noise_of_one_step(s, noise_scale=2 * lam)
    np.testing.assert_allclose(twice, 2 * once, rtol=0, atol=1e-6 + 1e-6 * np.abs(once).max())


def test_threshold_divides_exactly():
    s = np.array([1e-6, 0.99e-3, 1e-3, 1.01e-3, 1.0], np.float32)
    noise = noise_of_one_step(s, threshold_mode="absolute", sensitivity_threshold=float(s[2]))
    assert (noise != 0).tolist() == [True, True, False, False, False]


def test_noise_inside_the_learning_rate_anneals_and_outside_it_does_not():
    def sizes(**switches):
        out = []
        for lr in (1e-2, 1e-3):
            a, b = make_parameters(), make_parameters()
            train(a, Adamax(a.items(), lr), 1, schedule=lambda _, lr=lr: lr)
            train(b, PATSAdamax(b.items(), lr, threshold_mode="none", **switches), 1, schedule=lambda _, lr=lr: lr)
            out.append(sum((a[n] - b[n]).double().square().sum() for n in PERTURBED).sqrt().item())
        return out

    inside, outside = sizes(noise_times_lr=True), sizes(noise_times_lr=False)
    assert inside[1] == pytest.approx(inside[0] / 10, rel=1e-2)
    assert outside[1] == pytest.approx(outside[0], rel=1e-3)


def test_scale_of_the_loss_does_not_matter_to_the_ratio():
    s = np.geomspace(1e-4, 1e-2, 64)
    np.testing.assert_allclose(noise_of_one_step(s), noise_of_one_step(1000 * s), rtol=1e-3, atol=1e-7)


def test_the_noise_never_enters_the_moments():
    a, b = make_parameters(), make_parameters()
    plain, noisy = Adamax(a.items(), 1e-3), PATSAdamax(b.items(), 1e-3, threshold_mode="none")
    train(a, plain, 5)
    train(b, noisy, 5)  # the same gradients, though the parameters differ
    for name in SHAPES:
        for key in ("exp_avg", "exp_inf"):
            assert torch.equal(plain.state[a[name]][key], noisy.state[b[name]][key])


def test_freezing_regrouping_and_reordering_change_no_noise():
    def run(make_groups):
        parameters = make_parameters()
        groups = make_groups(parameters)
        train(parameters, PATSAdamax(groups, 1e-3, threshold_mode="none", noise_seed=9), 3)
        return parameters

    everything = run(lambda p: list(p.items()))
    reordered = run(lambda p: list(p.items())[::-1])
    regrouped = run(lambda p: [{"params": [pair]} for pair in p.items()])
    assert_same_bits(everything, reordered)
    assert_same_bits(everything, regrouped)
    frozen = run(lambda p: [pair for pair in p.items() if "query" not in pair[0] and "embeddings" not in pair[0]])
    for name in SHAPES:
        if "query" not in name and "embeddings" not in name:
            assert torch.equal(everything[name], frozen[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "encoder.model.", "module.encoder.model."])
def test_the_prefix_of_the_encoder_changes_no_noise(prefix):
    def run(rename):
        parameters = make_parameters()
        named = [(rename(name), p) for name, p in parameters.items() if name.startswith("bert.")]
        train(parameters, PATSAdamax(named, 1e-3, threshold_mode="none"), 2)
        return parameters

    shorter = run(lambda name: name)
    longer = run(lambda name: prefix + name.removeprefix("bert."))
    assert_same_bits(shorter, longer)


def test_a_group_may_say_what_is_perturbed_and_how():
    a, b = make_parameters(), make_parameters()
    head = ["classifier.weight", "classifier.bias"]
    groups = [
        {"params": [(n, b[n]) for n in head], "perturb": True, "noise_probability": 1.0},
        {"params": [(n, b[n]) for n in PERTURBED], "perturb": False},
    ]
    train(a, Adamax(a.items(), 1e-3), 2)
    train(b, PATSAdamax(groups, 1e-3, threshold_mode="none"), 2)
    assert all(torch.equal(a[n], b[n]) for n in PERTURBED)
    assert not any(torch.equal(a[n], b[n]) for n in head)


def test_explicit_groups_need_no_known_encoder():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    PATSAdamax([{"params": [("anything", parameter)], "perturb": True}], 1e-3).step()
    with pytest.raises(ValueError, match="prefixes found: anything"):
        PATSAdamax([("anything", parameter)], 1e-3)


def test_unnamed_parameters_are_refused_with_what_to_pass():
    with pytest.raises(ValueError, match=r"PATSAdamax .*pass model\.named_parameters\(\)"):
        PATSAdamax(make_parameters().values(), 1e-3)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"noise_scale": -1.0}, "Invalid noise_scale: -1.0"),
        ({"sensitivity_threshold": float("nan")}, "Invalid sensitivity_threshold: nan"),
        ({"sensitivity_beta": 1.0}, "Invalid sensitivity_beta: 1.0"),
        ({"sensitivity_eps": 0.0}, "Invalid sensitivity_eps: 0.0"),
        ({"noise_probability": 1e-5}, "Invalid noise_probability: 1e-05 rounds to 0"),
        ({"threshold_mode": "soft"}, "Invalid threshold_mode: 'soft': one of absolute, relative, ratio, none"),
        ({"mean_scope": "layer"}, "Invalid mean_scope: 'layer'"),
        ({"mask_scope": "row"}, "Invalid mask_scope: 'row'"),
        ({"max_ratio": 0.0}, "Invalid max_ratio: 0.0"),
        ({"reading": "other"}, "Invalid reading: 'other'"),
        ({"noise_seed": -1}, "Invalid noise_seed: -1"),
    ],
)
def test_values_are_checked(switches, message):
    with pytest.raises(ValueError, match=message):
        PATSAdamax(make_parameters().items(), 1e-3, **switches)


def test_readings_preset_what_is_left_out():
    gated, constant = PATSRule(), PATSRule(reading="constant")
    assert (gated.noise_scale, gated.sensitivity_threshold) == (5e-3, 1e-6)
    assert (gated.noise_times_lr, gated.threshold_mode) == (True, "absolute")
    assert (constant.noise_scale, constant.sensitivity_threshold) == (1e-6, 5e-3)
    assert (constant.noise_times_lr, constant.threshold_mode) == (False, "ratio")
    assert PATSRule(reading="constant", noise_scale=1e-3).noise_scale == 1e-3
    with pytest.raises(ValueError, match="leave them out"):
        replace(gated, reading="constant")


def test_statistics_of_the_state_match_what_is_seen():
    parameters = make_parameters()
    optimizer = PATSAdamax(parameters.items(), 1e-3, threshold_mode="none")
    set_gradients(parameters, make_gradients(1))
    optimizer.step()
    for name in PERTURBED:
        s = (make_parameters()[name].detach().double() * make_gradients(1)[name].double()).abs()
        assert_close(optimizer.state[parameters[name]]["sensitivity"], 0.25 * s)
    assert set(optimizer.state[parameters["classifier.weight"]]) == {"step", "exp_avg", "exp_inf"}
    assert adamax.new_state(np.zeros(1))["t"] == 0
