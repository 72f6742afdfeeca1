"""FreeLB against its formula; the ascent; what its passes share."""

import numpy as np
import pytest
import torch

from module.composition import Composition
from module.methods.freelb import FreeLB, FreeLBSettings, ascend, example_norms
from module.methods.rdrop import RDrop
from module.random_streams import RandomStreams
from module.resolution import LostNoise
from tests import toy
from tests.reference import freelb as reference


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"ascent_steps": 1},
        {"ascent_steps": 3},
        {"ascent_steps": 2, "passes": "K+1"},
        {"ascent_steps": 3, "passes": "K+1", "max_norm": None},
        {"ascent_steps": 2, "init_magnitude": 0.0, "max_norm": 0.1},
    ],
)
def test_twenty_steps_equal_the_formula(changes, packed):
    settings = FreeLBSettings(**{"step_size": 0.4, "init_magnitude": 0.5, "max_norm": 0.6, **changes})
    step = toy.build("freelb", {"freelb": settings}, dropout=0.3, lr=0.05)
    model, theta, stream = step.parts.model, toy.theta_of(step), RandomStreams(1)["freelb"]
    plus_one = settings.passes == "K+1"
    n = settings.ascent_steps + plus_one
    for number in range(20):
        examples, labels = toy.data(number)
        batch = toy.batch_of(examples, labels, packed)
        words = theta["E"]
        step([batch])
        deltas = [np.zeros((len(tokens), toy.E)) for tokens in examples]
        if settings.init_magnitude > 0:
            uniform = stream.uniform(torch.empty(*batch.input_ids.shape, toy.E))
            deltas = [reference.start(u, settings.init_magnitude) for u in toy.by_example(uniform, batch)]
        masks = model.masks[-n:]
        assert all(np.array_equal(mask, masks[0]) for mask in masks), "all passes have the same dropout"
        gradient, path = reference.gradient(
            theta, examples, labels, masks[0], deltas,
            settings.ascent_steps, plus_one, settings.step_size, settings.max_norm,
        )  # fmt: skip
        for seen, expected in zip(model.inputs[-n:], path, strict=True):
            for tokens, got, delta in zip(examples, toy.by_example(seen, batch), expected, strict=True):
                np.testing.assert_allclose(got - words[tokens], delta, rtol=1e-8, atol=1e-10)
        theta = {name: value - 0.05 * gradient[name] for name, value in theta.items()}
        toy.assert_theta(step, theta, f"step {number}")


def test_padding_is_never_perturbed():
    step = toy.build("freelb", {"freelb": FreeLBSettings(ascent_steps=3, init_magnitude=0.5)})
    batch = toy.batch_of(*toy.data(0), packed=False)
    with torch.no_grad():
        words = step.parts.model.embed(batch).clone()
    step([batch])
    padding = batch.attention_mask == 0
    assert padding.any()
    for seen in step.parts.model.inputs:
        assert torch.equal(seen[padding], words[padding])
        assert (seen != words)[~padding].all()


def random_ascent(scale=1.0):
    batch = toy.batch_of(*toy.data(2))
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(batch.n_tokens, toy.E, generator=generator) * 0.1
    return delta, torch.randn(batch.n_tokens, toy.E, generator=generator) * scale, batch


def test_deltas_stay_in_the_ball_and_steps_have_their_length():
    delta, gradient, batch = random_ascent()
    free = ascend(delta, gradient, batch, FreeLBSettings(step_size=0.25, max_norm=None))
    torch.testing.assert_close(example_norms(free - delta, batch), torch.full((batch.size,), 0.25))
    for _ in range(5):
        delta = ascend(delta, gradient, batch, FreeLBSettings(step_size=0.25, max_norm=0.4))
        assert (example_norms(delta, batch) <= 0.4 * (1 + 1e-6)).all()
    torch.testing.assert_close(example_norms(delta, batch), torch.full((batch.size,), 0.4))


def test_the_ascent_does_not_depend_on_the_scale_of_the_loss():
    delta, gradient, batch = random_ascent(1e-6)
    settings = FreeLBSettings(step_size=0.25)
    expected = ascend(delta, gradient, batch, settings)
    for scale in (2.0**16, 2.0**-10, 3.0):
        torch.testing.assert_close(ascend(delta, gradient * scale, batch, settings), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_an_example_without_a_direction_stays_where_it_is(bad):
    delta, gradient, batch = random_ascent()
    first = batch.to_tokens(torch.arange(batch.size)) == 0
    gradient[first] = bad
    moved = ascend(delta, gradient, batch, FreeLBSettings(max_norm=None))
    assert torch.equal(moved[first], delta[first])
    assert moved.isfinite().all()
    assert (moved != delta)[~first].all()


def test_one_pass_without_a_start_is_the_plain_gradient_bit_for_bit():
    gradients = []
    off = {"freelb": FreeLBSettings(ascent_steps=1, init_magnitude=0.0)}
    for spec, settings in (("vanilla", {}), ("freelb", off)):
        step = toy.build(spec, settings, dropout=0.3)
        step([toy.batch_of(*toy.data(0)), toy.batch_of(*toy.data(1))])
        gradients.append([p.grad for p in step.parts.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_step_draws_another_start_and_leaves_dropout_where_one_pass_leaves_it():
    plain, step = toy.build("vanilla", dropout=0.3), toy.build("freelb", dropout=0.3, lr=0.0)
    batch = toy.batch_of(*toy.data(0))
    for _ in range(3):
        plain([batch])
        step([batch])
    assert np.array_equal(step.parts.model.masks[::2], plain.parts.model.masks)
    assert step.parts.streams.dropout.position == plain.parts.streams.dropout.position
    starts = step.parts.model.inputs[::2]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_accumulation_equals_the_large_batch():
    settings = {"freelb": FreeLBSettings(ascent_steps=3, init_magnitude=0.0, step_size=0.4)}
    theta = []
    examples, labels = toy.data(0, n=7)
    for parts in ([slice(0, 7)], [slice(0, 4), slice(4, 7)]):
        step = toy.build("freelb", settings)
        step([toy.batch_of(examples[part], labels[part]) for part in parts])
        theta.append(toy.theta_of(step))
    for name, value in theta[0].items():
        np.testing.assert_allclose(theta[1][name], value, rtol=1e-10, atol=1e-13)


def test_passes_of_other_methods_are_perturbed_and_replayed_too():
    settings = FreeLBSettings(ascent_steps=2, step_size=0.4)
    step = toy.build(Composition([FreeLB(settings), RDrop()]), dropout=0.3)
    batch = toy.batch_of(*toy.data(0))
    with torch.no_grad():
        words = step.parts.model.embed(batch).clone()
    step([batch])
    model = step.parts.model
    first, first_second, then, then_second = model.inputs
    assert torch.equal(first, first_second)
    assert torch.equal(then, then_second)
    assert not torch.equal(first, then)
    assert not torch.equal(first, words)
    assert np.array_equal(model.masks[1], model.masks[3])
    assert not np.array_equal(model.masks[0], model.masks[1])


def test_the_hook_goes_away_even_after_an_error():
    step = toy.build("freelb")
    model = step.parts.model
    step([toy.batch_of(*toy.data(0))])
    assert model.embedding_hooks == []

    def fail(batches, weight=1.0):
        assert len(model.embedding_hooks) == 1
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        step.parts.method.gradients(step.parts.context, [toy.batch_of(*toy.data(0))], fail)
    assert model.embedding_hooks == []


def test_the_loss_is_the_mean_over_the_passes():
    step = toy.build("freelb")
    losses = iter([3.0, 5.0, 10.0, 20.0])

    def inner(batches, weight=1.0):
        assert weight == 0.5
        (step.parts.model.logits(batches[0]).sum() * weight).backward()
        return torch.tensor(next(losses))

    batches = [toy.batch_of(*toy.data(number)) for number in range(2)]
    assert step.parts.method.gradients(step.parts.context, batches, inner).item() == 4.0 + 15.0


def test_it_reads_no_gradient_of_parameters():
    assert not FreeLB().needs_dense_gradients


def test_a_perturbation_that_the_embeddings_lose_is_refused():
    step = toy.build("freelb", {"freelb": FreeLBSettings(step_size=1e-19)})
    with pytest.raises(LostNoise, match="freelb on the word embeddings"):
        step([toy.batch_of(*toy.data(0))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ascent_steps": 0}, "Invalid ascent_steps: 0: an integer of at least 1 is needed"),
        ({"passes": "2K"}, r"Invalid passes: '2K': one of K, K\+1 is needed"),
        ({"step_size": -1.0}, "Invalid step_size: -1.0: a number of at least 0"),
        ({"init_magnitude": float("inf")}, "Invalid init_magnitude: inf"),
        ({"max_norm": 0.0}, "Invalid max_norm: 0.0: a number above 0, or null, is needed"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        FreeLBSettings(**changes)
