"""R-Drop against its formula, and what its second pass leaves alone."""

import numpy as np
import pytest
import torch

from module.methods.rdrop import RDropSettings
from tests import toy
from tests.reference import rdrop as reference


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_twenty_steps_equal_the_formula(alpha, regression, packed):
    step = toy.build("rdrop", {"rdrop": RDropSettings(alpha)}, dropout=0.3, regression=regression, lr=0.05)
    theta, masks = toy.theta_of(step), step.parts.model.masks
    for number in range(20):
        examples, labels = toy.data(number, regression=regression)
        step([toy.batch_of(examples, labels, packed)])
        _, gradient = reference.objective(theta, examples, labels, *masks[-2:], alpha, regression)
        theta = {name: value - 0.05 * gradient[name] for name, value in theta.items()}
        toy.assert_theta(step, theta, f"step {number}")
    assert not np.array_equal(masks[0], masks[1]), "two passes have two masks"


def test_the_plain_pass_has_the_masks_of_plain_fine_tuning():
    masks = {}
    for spec in ("vanilla", "rdrop"):
        step = toy.build(spec, dropout=0.3)
        for number in range(3):
            step([toy.batch_of(*toy.data(number))])
        masks[spec] = step.parts.model.masks
    assert np.array_equal(masks["rdrop"][::2], masks["vanilla"])
    second = np.array(masks["rdrop"][1::2])
    assert not any(np.array_equal(a, b) for a in second for b in masks["vanilla"]), "nor does it borrow them"


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_without_dropout_the_gradient_is_the_plain_one_bit_for_bit(alpha):
    gradients = []
    for spec, settings in (("vanilla", {}), ("rdrop", {"rdrop": RDropSettings(alpha)})):
        step = toy.build(spec, settings)
        step([toy.batch_of(*toy.data(0))])
        gradients.append([p.grad for p in step.parts.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_accumulation_equals_the_large_batch():
    """Without dropout both passes agree; a hidden layer of dropout would draw other masks for other batches."""
    theta = []
    examples, labels = toy.data(0, n=7)
    for parts in ([slice(0, 7)], [slice(0, 4), slice(4, 7)]):
        step = toy.build("rdrop", dropout=0.0)
        step([toy.batch_of(examples[part], labels[part]) for part in parts])
        theta.append(toy.theta_of(step))
    for name, value in theta[0].items():
        np.testing.assert_allclose(theta[1][name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_settings_are_checked(alpha):
    with pytest.raises(ValueError, match=r"Invalid alpha: .*: a number of at least 0 is needed"):
        RDropSettings(alpha)
