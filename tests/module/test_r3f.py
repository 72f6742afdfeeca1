"""R3F and R4F against their formula; the noised pass; the spectral norm."""

import numpy as np
import pytest
import torch

from module.methods import parse_method
from module.methods.r3f import R3F, R3FSettings
from module.param_index import Kind, Role
from module.random_streams import RandomStreams
from module.resolution import LostNoise
from tests import toy
from tests.module.models import make_context, make_parameters
from tests.reference import r3f as reference


def reference_noise(stream, batch, settings):
    """Sigma times what the stream gives, by example."""
    like = torch.empty(*batch.input_ids.shape, toy.E)
    z = stream.normal(like) if settings.noise == "normal" else 2 * stream.uniform(like) - 1
    return [settings.noise_scale * one for one in toy.by_example(z, batch)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("regression", "changes"),
    [
        (False, {}),
        (False, {"noise": "uniform", "weight": 0.7}),
        (False, {"detach_embeddings": False}),
        (True, {"weight": 0.2}),
    ],
)
def test_twenty_steps_equal_the_formula(regression, changes, packed):
    settings = R3FSettings(**{"noise_scale": 0.3, **changes})
    step = toy.build("r3f", {"r3f": settings}, dropout=0.3, regression=regression, lr=0.05)
    theta, masks, stream = toy.theta_of(step), step.parts.model.masks, RandomStreams(1)["r3f"]
    for number in range(20):
        examples, labels = toy.data(number, regression=regression)
        batch = toy.batch_of(examples, labels, packed)
        step([batch])
        z = reference_noise(stream, batch, settings)
        _, gradient = reference.objective(
            theta, examples, labels, *masks[-2:], z, settings.weight, settings.detach_embeddings, regression
        )
        theta = {name: value - 0.05 * gradient[name] for name, value in theta.items()}
        toy.assert_theta(step, theta, f"step {number}")


def test_only_the_second_pass_is_a_noised_one_and_the_plain_one_keeps_its_masks():
    plain, step = toy.build("vanilla", dropout=0.3), toy.build("r3f", dropout=0.3)
    for number in range(3):
        for one in (plain, step):
            one([toy.batch_of(*toy.data(number))])
    assert step.parts.model.noised == [False, True] * 3
    assert np.array_equal(step.parts.model.masks[::2], plain.parts.model.masks)
    assert R3F.has_noised_pass


def test_without_noise_and_dropout_the_term_is_nothing():
    step = toy.build("r3f", {"r3f": R3FSettings(noise_scale=0.0, weight=3.0)})
    batch = toy.batch_of(*toy.data(0))
    logits = step.parts.model.logits(batch)
    term = step.parts.method.extra_loss(step.parts.context, batch, logits)
    term.backward()
    assert term.item() == 0.0
    assert not any(p.grad is not None and p.grad.any() for p in step.parts.network.parameters())


@pytest.mark.parametrize(
    ("regression", "changes", "passes"),
    [(False, {"weight": 0.0}, 1), (True, {"regression_term": "none"}, 1), (False, {"regression_term": "none"}, 2)],
)
def test_a_term_that_is_off_costs_no_pass(regression, changes, passes):
    step = toy.build("r3f", {"r3f": R3FSettings(**changes)}, regression=regression)
    step([toy.batch_of(*toy.data(0, regression=regression))])
    assert len(step.parts.model.masks) == passes


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_has_the_size_it_says(kind):
    seen = []
    context = make_context(make_parameters().items(), seed=3)
    context.model.embed = lambda batch: torch.zeros(400, 500)
    context.model.logits = lambda batch, inputs_embeds: seen.append(inputs_embeds)
    context.model.divergence = lambda logits, other: 0.0
    R3F(R3FSettings(noise_scale=1e-5, noise=kind)).extra_loss(context, None, torch.zeros(400, 2))
    z = seen[0] / 1e-5
    assert abs(z.mean()) < 0.01
    if kind == "normal":
        assert z.std().item() == pytest.approx(1.0, abs=0.01)
    else:
        assert z.std().item() == pytest.approx(3**-0.5, abs=0.01)
        assert 0.999 < z.abs().max() <= 1.0 + 1e-6


def test_noise_that_the_embeddings_lose_is_refused():
    step = toy.build("r3f", {"r3f": R3FSettings(noise_scale=1e-20)})
    with pytest.raises(LostNoise, match=r"r3f\.noise_scale on the word embeddings: noise of 1\.0e-20 is lost"):
        step([toy.batch_of(*toy.data(0))])


def test_spectral_norm_divides_the_head_by_its_largest_singular_value():
    step = toy.build(
        "r3f", {"r3f": R3FSettings(spectral_norm=True)}, lr=1e-9
    )  # its power iteration follows the weights
    network, context = step.parts.network, step.parts.context
    head = network.heads["toy"][1]
    original = head.parametrizations.weight.original
    np.testing.assert_array_equal(original.detach(), toy.build("vanilla").parts.network.heads["toy"][1].weight.detach())
    for number in range(30):
        step([toy.batch_of(*toy.data(number))])
    expected = original / torch.linalg.matrix_norm(original, 2)
    torch.testing.assert_close(head.eval().weight, expected, rtol=1e-4, atol=1e-5)
    (info,) = context.params.select(Role.HEAD, Kind.WEIGHT)
    assert info.name == "heads.toy.1.parametrizations.weight.original"
    assert info.parameter is original


def test_the_start_of_the_spectral_norm_comes_from_the_seed_and_moves_no_other_source():
    starts = []
    for torch_seed, seed in ((1, 1), (2, 1), (1, 2)):
        step = toy.build("vanilla", seed=seed)
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        R3F(R3FSettings(spectral_norm=True)).setup(step.parts.context)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append(step.parts.network.heads["toy"][1].parametrizations.weight[0]._u)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "Invalid weight: -1.0: a number of at least 0"),
        ({"noise_scale": float("nan")}, "Invalid noise_scale: nan"),
        ({"noise": "cauchy"}, "Invalid noise: 'cauchy': one of normal, uniform is needed"),
        ({"regression_term": "mse"}, "Invalid regression_term: 'mse': one of squared_difference, none is needed"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        R3FSettings(**changes)


@pytest.mark.parametrize("spec", ["r3f+freelb", "smart+r3f", "freelb+smart"])
def test_only_one_method_perturbs_the_embeddings(spec):
    with pytest.raises(ValueError, match="both need the perturbation of the word embeddings"):
        parse_method(spec)
