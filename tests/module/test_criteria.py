"""MT-DNN's criteria against float64."""

import numpy as np
import pytest
import torch

from module.criteria import check_criterion, distance
from module.losses import divergence
from tests.reference import criteria as reference


@pytest.mark.parametrize("name", reference.BY_NAME)
@pytest.mark.parametrize("classes", [2, 5])
def test_value_and_gradients_equal_the_formula(name, classes):
    z, y = np.random.default_rng(classes).normal(size=(2, 7, classes))
    logits, other = (torch.from_numpy(values).requires_grad_() for values in (z, y))
    value = distance(name, logits, other)
    gradients = torch.autograd.grad(value, (logits, other), allow_unused=True)
    expected, *slopes = reference.BY_NAME[name](z, y)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    for gradient, slope in zip(gradients, slopes, strict=True):
        found = np.zeros_like(z) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(found, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", reference.BY_NAME)
def test_equal_predictions_have_no_distance(name):
    logits = torch.randn(4, 3, dtype=torch.float64)
    assert distance(name, logits, logits.clone()).item() == pytest.approx(0.0, abs=1e-12)


def test_one_detached_side_has_about_half_the_gradient_of_both():
    """The reason why lambda 1 of ours is about 2 of a published SMART."""
    logits = torch.randn(6, 4, dtype=torch.float64)
    near = (logits + 1e-4 * torch.randn_like(logits)).requires_grad_()
    (both,) = torch.autograd.grad(divergence(logits.requires_grad_(), near, False).double(), near, retain_graph=True)
    (detached,) = torch.autograd.grad(distance("SymKlCriterion", logits, near), near)
    assert (both.norm() / detached.norm()).item() == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("name", reference.BY_NAME)
def test_sure_predictions_stay_finite_in_float32(name):
    logits = torch.tensor([[40.0, -40.0], [0.0, 0.0]], requires_grad=True)
    other = torch.tensor([[35.0, -40.0], [-20.0, 20.0]])
    value = distance(name, logits, other)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("name", "regression", "message"),
    [
        ("HLCriterion", False, "adv_loss is HLCriterion, which has no gradient"),
        ("CeCriterion", False, "adv_loss is CeCriterion, no distance of two predictions: use one of MseCriterion, Kl"),
        ("SymKlCriterion", True, "adv_loss is SymKlCriterion, a distance of classes, but the output is a score"),
    ],
)
def test_names_without_a_form_are_refused(name, regression, message):
    with pytest.raises(ValueError, match=message):
        check_criterion("adv_loss", name, regression)
    assert check_criterion("adv_loss", "MseCriterion", regression) == "MseCriterion"
