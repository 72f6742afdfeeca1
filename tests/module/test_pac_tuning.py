"""PAC-tuning: bound and gradients against the reference, K, both stages, whole runs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from module.context import DropoutRates
from module.methods import build_method, parse_method
from module.methods.pac_tuning import PACTuning, PACTuningSettings
from module.methods.parts.pac_bayes import KCurve, NoiseWidths, fit_k
from module.param_index import Role
from module.random_streams import RandomStreams
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.landscape import Landscape
from tests.module.models import SHAPES
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.reference import pac_tuning as reference

LEVELS, VALUES = np.exp(np.linspace(-6, -2, 8)), np.array([0.01, 0.03, 0.02, 0.1, 0.2, 0.5, 0.9, 2.0])
GAMMA, LR = 5.0, 0.01
EXAMPLES = 10_000  # with few, the first pull is so strong that plain gradient descent overshoots
TRAINED = [name for name in SHAPES if "embeddings" not in name]
HEADS = {name for name in SHAPES if name.startswith("classifier")}
QUICK = {"k_levels": 2, "k_models": 1}


def build(land, context, **settings):
    """The method as it stands before the first step, with a K of our own."""
    method = PACTuning(PACTuningSettings(gamma=GAMMA, **settings))
    method.setup(context)
    method.param_groups(context, [])
    state = method.state_dict()
    method.load_state_dict({**state, "curve": (torch.tensor(LEVELS), torch.tensor(VALUES))})
    return method


def trained(land):
    return {n: theta for n, theta in land.thetas().items() if n in TRAINED}


def gradient_of(land):
    frozen = {n: theta for n, theta in land.thetas().items() if n not in TRAINED}
    return lambda thetas: {n: g for n, g in land.gradient({**frozen, **thetas}).items() if n in thetas}


def draws_of(stream, land):
    return {n: stream.normal(land.parameters[n]).clamp(-2, 2).double().numpy() for n in TRAINED}


def test_stage_1_equals_the_reference_on_weights_and_widths():
    land = Landscape()
    context, stream = land.context(seed=4, n_examples=EXAMPLES, total_steps=1000), RandomStreams(4)["pac_tuning"]
    method, gradient, theta0 = build(land, context), gradient_of(land), trained(land)
    theta, state = dict(theta0), reference.new_state(theta0, HEADS)
    for _ in range(45):  # past four shrinkings of the head's step
        land.descend(method, context, LR)
        tau = draws_of(stream, land)
        theta = reference.stage1_step(
            theta, theta0, state, tau, gradient, LR, LEVELS, VALUES, GAMMA, EXAMPLES, HEADS, 1e-2
        )
    land.assert_at(theta, 1e-9)
    widths = method._widths
    for name, p, b in zip(TRAINED, widths.log_std, widths.prior, strict=True):
        np.testing.assert_allclose(p.numpy(), state["p"][name], rtol=1e-8, atol=1e-8)
        assert float(b) == pytest.approx(state["b"][name], rel=1e-8)
    expected = reference.bound(theta, theta0, state["p"], state["b"], LEVELS, VALUES, GAMMA, EXAMPLES)
    assert method.metrics(context)["bound"] == pytest.approx(expected, rel=1e-8)


def test_stage_2_is_gradient_descent_under_the_noise_that_was_learned():
    land = Landscape()
    context, stream = land.context(seed=4, n_examples=EXAMPLES, total_steps=20), RandomStreams(4)["pac_tuning"]
    method, gradient = build(land, context, stage1_share=0.25), gradient_of(land)
    for _ in range(5):
        land.descend(method, context, LR)
        draws_of(stream, land)
    p = {n: width.numpy().copy() for n, width in zip(TRAINED, method._widths.log_std, strict=True)}
    theta = trained(land)
    for _ in range(15):
        land.descend(method, context, LR)
        tau = draws_of(stream, land)
        g = gradient({n: theta[n] + np.exp(p[n]) * tau[n] for n in theta})
        theta = {n: theta[n] - LR * g[n] for n in theta}
    land.assert_at(theta, 1e-9)
    for name, width in zip(TRAINED, method._widths.log_std, strict=True):
        assert np.array_equal(width.numpy(), p[name])
    assert set(method.metrics(context)) == {"noise_std"}


def test_the_gradients_are_the_slopes_of_loss_and_bound():
    """Central differences of loss(theta + exp(p) tau) + L_PAC, against the first means of Adam, a tenth of each."""
    land = Landscape()
    context = land.context(seed=4, n_examples=10, total_steps=10)
    method, theta0 = build(land, context), trained(land)
    rng = np.random.default_rng(0)
    for parameter in land.parameters.values():
        parameter.data += 0.01 * torch.from_numpy(rng.normal(size=parameter.shape))
    theta, widths = trained(land), method._widths
    for width in widths.log_std:
        width += 0.3 * torch.from_numpy(rng.normal(size=width.shape))
    widths.prior += 0.3 * torch.from_numpy(rng.normal(size=widths.prior.shape))
    p = {n: w.numpy().copy() for n, w in zip(TRAINED, widths.log_std, strict=True)}
    b = {n: float(value) for n, value in zip(TRAINED, widths.prior, strict=True)}
    tau = draws_of(RandomStreams(4)["pac_tuning"], land)
    frozen = {n: w for n, w in land.thetas().items() if n not in TRAINED}
    method.gradients(context, [1.0], land.inner)
    means = widths.state_dict()["means"]

    def objective(theta, p, b, moved):
        noisy = {n: moved[n] + np.exp(p[n]) * tau[n] for n in moved}
        bound = reference.bound(theta, theta0, p, b, LEVELS, VALUES, GAMMA, 10)
        return land.loss({**frozen, **noisy}) + bound

    def slope(change):
        return (change(1e-5) - change(-1e-5)) / 2e-5

    for i, name in enumerate(TRAINED):
        entry = np.unravel_index(p[name].size // 2, p[name].shape)
        one = np.zeros(p[name].shape)
        one[entry] = 1.0
        moved = {n: one if n == name else 0.0 for n in TRAINED}

        def of_p(h, moved=moved):
            return objective(theta, {n: p[n] + h * moved[n] for n in p}, b, theta)

        def of_theta(h, moved=moved):
            shifted = {n: theta[n] + h * moved[n] for n in theta}
            return objective(shifted, p, b, shifted)

        def of_b(h, name=name):
            return objective(theta, p, {n: b[n] + h * (n == name) for n in b}, theta)

        assert 10 * float(means[i][entry]) == pytest.approx(slope(of_p), rel=1e-4, abs=1e-5)
        assert 10 * float(means[-1][i]) == pytest.approx(slope(of_b), rel=1e-4, abs=1e-5)
        assert float(land.parameters[name].grad[entry]) == pytest.approx(slope(of_theta), rel=1e-4, abs=1e-5)


def widths_of(weights, heads=None, per_weight=False):
    return NoiseWidths(weights, heads or [False] * len(weights), per_weight, 0.1, 1e-2, 50.0)


def test_kl_is_zero_only_where_nothing_differs():
    weights = [torch.randn(7, 5, dtype=torch.float64), torch.randn(9, dtype=torch.float64)]
    widths = widths_of(weights)
    assert float(widths.kl(weights)) == pytest.approx(0.0, abs=1e-9)
    for change in (
        lambda: weights[0].add_(0.1),
        lambda: widths.log_std[1].add_(0.2),
        lambda: widths.prior.sub_(0.1),
    ):
        before = [t.clone() for t in (weights[0], widths.log_std[1], widths.prior)]
        change()
        assert float(widths.kl(weights)) > 1e-3
        for tensor, value in zip((weights[0], widths.log_std[1], widths.prior), before, strict=True):
            tensor.copy_(value)
    assert float(widths.kl(weights)) == pytest.approx(0.0, abs=1e-9)


def test_the_first_widths():
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(40, 50, generator=rng) * 0.1, torch.zeros(4), torch.randn(30, generator=rng)]
    body, head = torch.cat([w.flatten() for w in weights[:2]]).abs().mean(), weights[2].abs().mean()
    widths = widths_of(weights, [False, False, True])
    torch.testing.assert_close(widths.log_std[0], torch.full((40, 50), float(2 * body.log())))
    torch.testing.assert_close(widths.prior, torch.stack([2 * body.log(), 2 * body.log(), head.log()]))
    widths = widths_of(weights, [False, False, True], per_weight=True)
    torch.testing.assert_close(widths.log_std[2].exp(), weights[2].abs())
    torch.testing.assert_close(widths.log_std[1].exp(), torch.full((4,), 1e-6))


@pytest.mark.parametrize("gamma", [0.5, 5.0, 10.0])
def test_k_is_the_smallest_that_bounds_the_losses(gamma):
    losses = torch.rand(6, 50, generator=torch.Generator().manual_seed(1)) * 2
    assert fit_k(losses, gamma) == pytest.approx(reference.smallest_k(losses.double().numpy(), gamma), rel=1e-9)
    assert fit_k(torch.full((3, 4), 0.7), gamma) == pytest.approx(0.0, abs=1e-8)
    assert fit_k(torch.tensor([[200.0, 0.0]]), 10.0) < 20.0, "no overflow"


@pytest.mark.parametrize("width", [1e-4, 0.0025, 0.004, 0.03, 0.135, 0.5])
def test_k_between_the_points(width):
    curve = KCurve(torch.tensor(LEVELS), torch.tensor(VALUES))
    got = [float(x) for x in curve(torch.tensor(width, dtype=torch.float64))]
    assert got == pytest.approx(reference.k_at(width, LEVELS, VALUES), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("width", [1e-4, 0.0025, 0.004, 0.03, 0.135, 0.5])
def test_the_authors_k_leaves_the_straight_one_beyond_the_third_level(width):
    levels, values = np.exp(np.linspace(-6, -2, 8)), np.linspace(0.1, 0.9, 8) ** 2
    curves = [KCurve(torch.tensor(levels), torch.tensor(values), as_authors) for as_authors in (True, False)]
    at = torch.tensor(width, dtype=torch.float64)
    authors, straight = ([float(x) for x in curve(at)] for curve in curves)
    assert authors == pytest.approx(reference.authors_k_at(width, levels, values), rel=1e-9, abs=1e-12)
    assert (authors == pytest.approx(straight, rel=1e-9)) == (width <= levels[2])


def test_the_curve_is_a_setting():
    land = Landscape()
    state = (torch.tensor(LEVELS), torch.tensor(VALUES))
    for name in ("straight", "authors"):
        context = land.context(n_examples=EXAMPLES, total_steps=10)
        method = build(land, context, k_curve=name)
        method._set_curve(*state)
        wanted = KCurve(*state, as_authors=name == "authors")
        at = torch.tensor(0.1, dtype=torch.float64)
        assert torch.equal(method._curve(at)[0], wanted(at)[0])


def test_a_gradient_that_is_not_finite_leaves_the_widths_alone():
    land = Landscape()
    context = land.context(n_examples=EXAMPLES, total_steps=10)
    method = build(land, context)
    land.descend(method, context, LR)
    before = [value.clone() for value in method._widths.state_dict()["values"]]
    count = method._widths.state_dict()["count"].clone()

    def inner(batches, weight=1.0):
        loss = land.inner(batches, weight)
        land.parameters["classifier.bias"].grad.fill_(float("inf"))
        return loss

    weights = land.thetas()
    method.gradients(context, [1.0], inner)
    assert all(torch.equal(a, b) for a, b in zip(before, method._widths.state_dict()["values"], strict=True))
    assert torch.equal(method._widths.state_dict()["count"], count)
    assert all(np.array_equal(weights[n], after) for n, after in land.thetas().items())


def test_the_loss_scale_reaches_only_the_weights_gradients():
    lands = [Landscape() for _ in range(2)]
    found = []
    for land, scale in zip(lands, (1.0, 1024.0), strict=True):
        context = land.context(seed=4, n_examples=EXAMPLES, total_steps=10)
        context.gradient_scale = None if scale == 1.0 else torch.tensor(scale)
        method = build(land, context)
        method.gradients(context, [scale], land.inner)
        found.append(method._widths.state_dict()["means"])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for name in TRAINED:
        plain, scaled = (land.parameters[name].grad for land in lands)
        torch.testing.assert_close(scaled, plain * 1024.0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "Invalid gamma: 0.0: a number above 0 is needed"),
        ({"head_learning_rate": -1.0}, "Invalid head_learning_rate: -1.0"),
        ({"noise_step_size": float("inf")}, "Invalid noise_step_size: inf"),
        ({"stage1_share": 1.5}, r"Invalid stage1_share: 1.5: a number in \[0, 1\] is needed"),
        ({"stage1_epochs": -1}, "Invalid stage1_epochs: -1: an integer of at least 0 is needed"),
        ({"head_noise_factor": 0.5}, "Invalid head_noise_factor: 0.5: a number of at least 1 is needed"),
        ({"initial_width": "layer"}, "Invalid initial_width: 'layer': one of part, weight is needed"),
        ({"k_levels": 1}, "Invalid k_levels: 1: an integer of at least 2 is needed"),
        ({"k_models": 0}, "Invalid k_models: 0"),
        ({"k_examples": 0}, "Invalid k_examples: 0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PACTuningSettings(**settings)


def test_what_may_stand_beside_it():
    with pytest.raises(ValueError, match="'pac_tuning' and 'pats' both add noise"):
        build_method("pac_tuning+pats")

    class HyPe(PACTuning):
        name = "hype"

    with pytest.raises(ValueError, match="'pac_tuning' and 'hype' both add noise"):
        PACTuning().check_beside([HyPe()])
    for other in ("mixout", "sam", "pgd"):
        with pytest.raises(ValueError, match="which only one can own"):
            parse_method(f"pac_tuning+{other}")
    assert PACTuning().configure(DropoutRates(0.1, 0.2, 0.3)) == DropoutRates(0.0, 0.0, 0.0)
    parse_method(PACTuning.control)


def test_without_noise_it_is_its_control_bit_for_bit(tiny_run, tmp_path, monkeypatch):
    settings = {"save": "last", "method": "pac_tuning", "pac_tuning": {"stage1_share": 0.0}}
    control = plain_weights(tiny_run, method=PACTuning.control)
    noisy = final_weights(tiny_run(**settings))
    assert not all(torch.equal(control[name], noisy[name]) for name in control)
    monkeypatch.setattr(NoiseWidths, "noise", lambda self, draws: [torch.zeros_like(draw) for draw in draws])
    quiet = final_weights(tiny_run(output_dir=tmp_path / "quiet", **settings))
    assert all(torch.equal(control[name], quiet[name]) for name in control)


def test_both_stages_of_a_run(tiny_run, tiny_encoder):
    settings = {"stage1_epochs": 2, "k_levels": 3, "k_models": 2, "k_examples": 20}
    config = tiny_run(
        method="pac_tuning", pac_tuning=settings, log_per_updates=1, save="last", learning_rate=1e-3, optimizer="adamw"
    )
    weights = final_weights(config)
    lines = [json.loads(line) for line in (run_dir(config) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert ["pac_tuning/bound" in line for line in steps] == [True] * 10 + [False] * 5
    widths = [line["pac_tuning/noise_std"] for line in steps]
    assert len(set(widths[:10])) == 10, "learned in every step of stage 1"
    assert len(set(widths[9:])) == 1, "frozen after it"
    loaded = load_file(tiny_encoder / "model.safetensors")
    frozen = [name for name in loaded if name.startswith("embeddings.")]
    assert len(frozen) == 5
    assert all(torch.equal(weights[f"encoder.model.{name}"], loaded[name]) for name in frozen)


def test_embeddings_are_left_out_and_the_head_has_its_rate(tiny_run):
    from tests.mt_dnn.test_assembly import build as assemble_parts

    parts = assemble_parts(tiny_run(method="pac_tuning", learning_rate=1e-3))
    rates = {id(p): group["lr"] for group in parts.optimizer.param_groups for p in group["params"]}
    for info in parts.context.params:
        if info.role == "embeddings":
            assert id(info.parameter) not in rates
        else:
            assert rates[id(info.parameter)] == (1e-2 if info.role is Role.HEAD else 1e-3)


def test_k_is_fitted_before_training_and_leaves_no_trace(tiny_run):
    """K is drawn from random networks; weights, mode and streams are as if it had not been."""
    from tests.mt_dnn.test_assembly import build as assemble_parts

    parts = assemble_parts(tiny_run(method="pac_tuning", pac_tuning={"k_levels": 3, "k_models": 2, "gamma": 5.0}))
    from mt_dnn.data import open_datasets

    data = open_datasets(tiny_run())
    batch = parts.network.encoder.batch(data.train, torch.arange(8).numpy(), torch.device("cpu"))
    parts.model.n_examples, parts.model.passes = 8, lambda: iter([[batch]])
    before = {n: p.clone() for n, p in parts.network.state_dict().items()}
    parts.network.train()
    parts.method.before_fit(parts.context)
    assert all(torch.equal(before[n], p) for n, p in parts.network.state_dict().items())
    assert parts.network.training
    levels, values = parts.method.state_dict()["pac_tuning"]["curve"]
    assert levels.tolist() == pytest.approx(np.exp(np.linspace(-6, -2, 3)))
    method = parts.method.methods[0]
    with parts.streams.preserved():
        parts.streams["pac_tuning/K"].restart()
        losses = [method._random_losses(parts.context, float(level)) for level in levels]
    found = [reference.smallest_k(loss.double().numpy(), 5.0) for loss in losses]
    assert [loss.shape for loss in losses] == [(2, 8)] * 3
    assert values.tolist() == pytest.approx(np.maximum.accumulate(found), rel=1e-6)


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {
        "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4, "method": "pac_tuning", "pac_tuning": {
            **QUICK, "stage1_share": 0.0, "head_learning_rate": 1e-3,
        },
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["pac_tuning", "noisytune+pac_tuning"])
def test_it_runs_under_bf16_and_beside_others(tiny_run, method):
    result = run(tiny_run(method=method, precision="bf16", epochs=2, learning_rate=1e-3, pac_tuning=QUICK))
    assert result.status in (Status.OK, Status.DEGENERATE)
