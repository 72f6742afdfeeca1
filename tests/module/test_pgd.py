"""Perturbed gradient descent: the reference, what is perturbed, weights that come back, whole runs."""

from collections import Counter

import numpy as np
import pytest
import torch

from module.methods import build_method, parse_method
from module.methods.pgd import PGD, PGDSettings
from module.random_streams import RandomStreams
from module.resolution import LostNoise
from mt_dnn.results import Status
from mt_dnn.run import run
from tests.module.landscape import Landscape
from tests.module.models import SHAPES
from tests.mt_dnn.method_runs import final_weights, plain_weights
from tests.reference.pgd import pgd_step


def perturbed(before, after):
    return {n for n in before if not np.array_equal(before[n], after[n])}


@pytest.mark.parametrize("two_point", [False, True])
@pytest.mark.parametrize("roles", [("embeddings", "encoder", "pooler", "head"), ("encoder",)])
def test_equals_the_reference(two_point, roles):
    land = Landscape()
    method = PGD(PGDSettings(sigma=0.3, two_point=two_point, roles=roles))
    context, stream = land.context(seed=3), RandomStreams(3)["pgd"]
    w = land.thetas()
    chosen = [n for n in SHAPES if len(roles) > 1 or ".layer." in n]
    for _ in range(25):
        land.descend(method, context, 0.02)
        u = {n: 0.3 * stream.normal(land.parameters[n]).double().numpy() for n in chosen}
        w = pgd_step(w, land.gradient, u, 0.02, two_point)
    land.assert_at(w, 1e-6)  # the draws are float32


@pytest.mark.parametrize("two_point", [False, True])
def test_the_weights_come_back_exactly_and_the_loss_is_that_under_noise(two_point):
    land = Landscape()
    before = land.thetas()
    loss = PGD(PGDSettings(sigma=1e-3, two_point=two_point)).gradients(land.context(), [0.25, 0.75], land.inner)
    assert all(np.array_equal(before[n], after) for n, after in land.thetas().items())
    assert len(land.seen) == 1 + two_point
    assert float(loss) == pytest.approx(np.mean([float(land.loss(seen)) for seen in land.seen]), rel=1e-12)
    assert perturbed(before, land.seen[0]) == set(SHAPES)


def test_the_weights_come_back_after_an_error():
    land = Landscape()
    before = land.thetas()

    def fail(batches, weight=1.0):
        land.inner(batches, weight)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        PGD().gradients(land.context(), [1.0], fail)
    assert perturbed(before, land.seen[0])
    assert not perturbed(before, land.thetas())


def test_the_noise_has_the_size_sigma_and_two_points_lie_opposite():
    land = Landscape()
    before = land.thetas()
    PGD(PGDSettings(sigma=0.2, two_point=True)).gradients(land.context(), [1.0], land.inner)
    noise = [np.concatenate([(seen[n] - before[n]).ravel() for n in before]) for seen in land.seen]
    np.testing.assert_allclose(noise[1], -noise[0], atol=1e-12)
    assert noise[0].std() == pytest.approx(0.2, rel=0.05)
    assert abs(noise[0].mean()) < 5 * 0.2 / len(noise[0]) ** 0.5


def test_one_random_layer_per_step():
    land = Landscape()
    method = PGD(PGDSettings(where="random_layer"))
    context = land.context()
    hit = Counter()
    for _ in range(200):
        before = land.thetas()
        method.gradients(context, [1.0], land.inner)
        hit[frozenset(perturbed(before, land.seen[-1]))] += 1
        context.step += 1
    layers = [{n for n in SHAPES if key in n} for key in ("embeddings", "layer.0.", "layer.1.", "classifier")]
    assert set(hit) == {frozenset(layer) for layer in layers}
    assert all(25 < count < 80 for count in hit.values()), "about 50 each"


@pytest.mark.parametrize("replay", [True, False])
def test_the_second_point_replays_the_dropout_of_the_first(replay):
    land, draws = Landscape(), []
    context = land.context()

    def inner(batches, weight=1.0):
        draws.append(context.streams.dropout.factors(torch.zeros(99), 0.5))
        return land.inner(batches, weight)

    PGD(PGDSettings(two_point=True, replay_dropout=replay)).gradients(context, [1.0], inner)
    assert torch.equal(*draws) == replay


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": -1.0}, "Invalid sigma: -1.0: a number of at least 0 is needed"),
        ({"sigma": float("nan")}, "Invalid sigma: nan"),
        ({"where": "layer"}, "Invalid where: 'layer': one of all, random_layer is needed"),
        ({"roles": ()}, r"Invalid roles: \[\]: different ones of embeddings, encoder, pooler, head are needed"),
        ({"roles": ("encoder", "tail")}, r"Invalid roles: \['encoder', 'tail'\]"),
        ({"roles": ("encoder", "encoder")}, "Invalid roles"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PGDSettings(**settings)


def test_what_may_stand_beside_it():
    with pytest.raises(ValueError, match=r"'pgd' and 'pats' both add noise to the weights: set pgd\.beside_pats"):
        build_method("pgd+pats")
    build_method("pgd+pats", {"pgd": PGDSettings(beside_pats=True)})
    for other in ("mixout", "sam", "pac_tuning"):
        with pytest.raises(ValueError, match="which only one can own"):
            parse_method(f"pgd+{other}")


def test_parts_that_are_not_trained_are_refused():
    land = Landscape()
    for parameter in land.parameters.values():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"pgd\.roles: nothing of encoder is trained: choose other parts"):
        PGD(PGDSettings(roles=("encoder",))).setup(land.context())


def test_noise_below_the_weights_resolution_is_refused():
    land = Landscape()
    with pytest.raises(LostNoise, match="pgd: noise on the weights: noise of"):
        PGD(PGDSettings(sigma=1e-19)).gradients(land.context(), [1.0], land.inner)


@pytest.mark.parametrize("settings", [{}, {"where": "random_layer"}, {"two_point": True}])
def test_without_noise_it_is_plain_fine_tuning_bit_for_bit(tiny_run, settings):
    plain = plain_weights(tiny_run)
    quiet = final_weights(tiny_run(save="last", method="pgd", pgd={"sigma": 0.0, **settings}))
    assert all(torch.equal(plain[name], quiet[name]) for name in plain)
    noisy = final_weights(tiny_run(save="last", method="pgd", pgd=settings))
    assert not all(torch.equal(plain[name], noisy[name]) for name in plain)


@pytest.mark.parametrize("two_point", [False, True])
def test_accumulation_equals_the_large_batch(tiny_run, two_point):
    quiet = {
        "bert_dropout_p": 0.0, "dropout_p": 0.0, "save": "last", "learning_rate": 1e-3, "adam_eps": 1e-4,
        "method": "pgd", "pgd": {"two_point": two_point},
    }  # fmt: skip
    large = final_weights(tiny_run(batch_size=16, **quiet))
    small = final_weights(tiny_run(batch_size=4, grad_accumulation_step=4, **quiet))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("pgd", {"two_point": True, "where": "random_layer"}), ("pgd+pats", {"beside_pats": True}), ("noisytune+pgd", {})],
)
def test_it_runs_under_bf16_and_beside_others(tiny_run, method, settings):
    result = run(tiny_run(method=method, precision="bf16", epochs=1, pgd=settings))
    assert result.status in (Status.OK, Status.DEGENERATE)
