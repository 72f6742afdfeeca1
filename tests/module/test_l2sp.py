"""L2-SP against its reference: the penalty's gradient, where it is added, and what it leaves alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from module.composition import Composition
from module.method import FineTuningMethod
from module.methods.l2sp import L2SP, L2SPSettings
from module.methods.noisytune import NoisyTuneSettings
from mt_dnn.results import Status
from mt_dnn.run import run
from mt_dnn.run_id import run_dir
from tests.module.hooked import Hooked
from tests.module.models import assert_close, float64, learning_rate, make_gradients, make_parameters
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.mt_dnn.test_run import lines
from tests.reference import adamw
from tests.reference.l2sp import gradient, penalty

HEAD = "classifier"
ALPHA, BETA = 0.3, 0.7


def l2sp(**settings):
    return {"l2sp": L2SPSettings(**{"alpha": ALPHA, "beta": BETA, **settings})}


def nudge(parameters):
    for parameter in parameters.values():
        parameter.data.add_(0.01)


def test_the_gradient_is_that_of_the_penalty():
    rng = np.random.default_rng(0)
    theta, theta0 = rng.normal(size=5), rng.normal(size=5)
    numeric = [(penalty(theta + h, theta0, ALPHA) - penalty(theta - h, theta0, ALPHA)) / 2e-6 for h in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(gradient(np.zeros(5), theta, theta0, ALPHA), numeric, rtol=1e-6)


def test_equals_the_reference():
    hooked = Hooked("l2sp", l2sp(), changed=nudge, learning_rate=learning_rate(1), weight_decay=0.02)
    assert {group["weight_decay"] for group in hooked.context.optimizer.param_groups} == {0.0}
    theta0 = float64(make_parameters())
    expected = {name: value + 0.01 for name, value in theta0.items()}
    states = {name: adamw.new_state(value) for name, value in expected.items()}
    for step in range(1, 25):
        gradients = float64(make_gradients(step))
        for name, theta in expected.items():
            head = name.startswith(HEAD)
            whole = gradient(gradients[name], theta, 0.0 if head else theta0[name], BETA if head else ALPHA)
            expected[name] = adamw.adamw_step(theta, whole, states[name], learning_rate(step), w=0.0)
    for name, value in float64(hooked.steps(24).values()).items():
        assert_close(value, expected[name], name, tolerance=2e-5)


class TwoHalves(FineTuningMethod):
    """Goes through the batches one by one, twice, with weights."""

    name = "two_halves"

    def gradients(self, context, batches, inner):
        return sum(inner([batch], 0.25) + inner([batch], 0.75) for batch in batches)


class Once(FineTuningMethod):
    name = "once"

    def gradients(self, context, batches, inner):
        return inner(batches)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_methods_around_it_get_the_penalty_once(scale):
    sums = []
    for around in (Once, TwoHalves):
        hooked = Hooked("l2sp", l2sp(), changed=nudge)
        method = Composition([around(), *hooked.method.methods])
        hooked.context.examples = 4
        hooked.context.gradient_scale = None if scale is None else torch.tensor(scale)
        batches = [SimpleNamespace(size=3), SimpleNamespace(size=1)]
        method.gradients(hooked.context, batches, lambda batches, weight=1.0: torch.zeros(()))
        sums.append({name: p.grad for name, p in hooked.parameters.items()})
    theta0 = make_parameters()
    for name, got in sums[0].items():
        torch.testing.assert_close(sums[1][name], got)
        expected = BETA * (theta0[name] + 0.01) if name.startswith(HEAD) else torch.full_like(got, ALPHA * 0.01)
        torch.testing.assert_close(got, expected.detach() * (scale or 1.0), rtol=1e-4, atol=1e-8)


def test_without_strength_it_is_plain_fine_tuning_bit_for_bit(tiny_run):
    plain = plain_weights(tiny_run)
    same = final_weights(tiny_run(save="last", method="l2sp", l2sp={"alpha": 0.0, "beta": 0.0}))
    other = final_weights(tiny_run(save="last", method="l2sp"))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)


def test_each_penalty_replaces_the_weight_decay_of_its_parameters_alone():
    def decays(**settings):
        hooked = Hooked("l2sp", l2sp(**settings), weight_decay=0.02)
        return {
            "head" if group["param_names"][0].startswith(HEAD) else "pretrained"
            for group in hooked.context.optimizer.param_groups
            if group["weight_decay"] > 0
        }

    assert decays() == set()
    assert decays(alpha=0.0) == {"pretrained"}
    assert decays(beta=0.0) == {"head"}


def test_a_strong_penalty_keeps_the_weights_near_the_pretrained_ones(tiny_run):
    distance = {}
    for alpha in (1e-6, 1.0):
        config = tiny_run(method="l2sp", l2sp={"alpha": alpha}, optimizer="adamw", learning_rate=1e-3)
        assert run(config).status in (Status.OK, Status.DEGENERATE)
        distance[alpha] = [line["l2sp/distance"] for line in lines(run_dir(config)) if "loss" in line][-1]
    assert 0.0 < distance[1.0] < 0.5 * distance[1e-6]


def test_the_anchor_may_hold_the_noise_of_noisytune():
    noise = {"noisytune": NoisyTuneSettings(noise_scale=0.5)}
    clean = Hooked("noisytune+l2sp", {**noise, **l2sp()})
    noisy = Hooked("noisytune+l2sp", {**noise, **l2sp(anchor="init")})
    assert clean.method.metrics(clean.context)["l2sp/distance"] > 0.0
    assert noisy.method.metrics(noisy.context)["l2sp/distance"] == 0.0


def test_it_changes_neither_head_nor_data_order_nor_dropout(tiny_run):
    losses = {}
    for method in ("vanilla", "l2sp"):
        config = tiny_run(method=method, learning_rate=1e-12, log_per_updates=1, epochs=1)
        run(config)
        losses[method] = [line["loss"] for line in lines(run_dir(config)) if "loss" in line]
    assert losses["l2sp"] == pytest.approx(losses["vanilla"], rel=1e-6)


def test_accumulation_equals_the_large_batch(tiny_run):
    quiet = {
        "method": "l2sp", "l2sp": {"alpha": 1.0}, "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last",
        "learning_rate": 1e-3, "adam_eps": 1e-4,
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


def test_it_runs_in_bf16(tiny_run):
    assert run(tiny_run(method="l2sp", precision="bf16", epochs=6)).status is Status.OK


def test_mistakes():
    for wrong in ({"alpha": -1.0}, {"beta": float("inf")}):
        with pytest.raises(ValueError, match=f"Invalid {next(iter(wrong))}: .*: a number of at least 0 is needed"):
            L2SPSettings(**wrong)
    with pytest.raises(ValueError, match="Invalid anchor: 'zero': one of pretrained, init is needed"):
        L2SPSettings(anchor="zero")

    def freeze(parameters):
        for name, parameter in parameters.items():
            parameter.requires_grad_(name.startswith(HEAD))

    with pytest.raises(ValueError, match=r"all of them are frozen: use l2sp\.alpha 0"):
        Hooked("l2sp", l2sp(), changed=freeze)
    Hooked("l2sp", l2sp(alpha=0.0), changed=freeze)


def test_word_embeddings_may_stay_row_sparse_without_a_pull_on_them():
    assert L2SP(L2SPSettings()).needs_dense_gradients
    assert not L2SP(L2SPSettings(alpha=0.0)).needs_dense_gradients
