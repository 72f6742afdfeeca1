"""A loss that can be written down, over the tensors of tests.module.models, for the estimators of gradients."""

import numpy as np
import torch

from tests.module.models import SHAPES, make_context, make_parameters

COUPLING = 0.01


class Landscape:
    """``sum_j [a_j (theta_j - c_j)^2 / 2 + sin(3 theta_j) / 3] + (sum_j theta_j)^2 / 200``, in float64."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.parameters = make_parameters(seed, torch.float64)
        self.a = {name: rng.uniform(0.5, 2.0, shape) for name, shape in SHAPES.items()}
        self.c = {name: rng.normal(0.0, 0.05, shape) for name, shape in SHAPES.items()}
        self.seen = []

    def context(self, seed=1, **changes):
        return make_context(self.parameters.items(), seed=seed, **changes)

    def thetas(self):
        return {name: p.detach().numpy().copy() for name, p in self.parameters.items()}

    def loss(self, thetas):
        terms = (
            (self.a[n] * (theta - self.c[n]) ** 2 / 2 + np.sin(3 * theta) / 3).sum() for n, theta in thetas.items()
        )
        return sum(terms) + COUPLING * sum(theta.sum() for theta in thetas.values()) ** 2 / 2

    def gradient(self, thetas):
        whole = COUPLING * sum(theta.sum() for theta in thetas.values())
        return {n: self.a[n] * (theta - self.c[n]) + np.cos(3 * theta) + whole for n, theta in thetas.items()}

    def inner(self, batches, weight=1.0):
        """The hook's ``inner``: batches are shares of the loss. Notes the weights it saw."""
        thetas = self.thetas()
        self.seen.append(thetas)
        total = torch.zeros((), dtype=torch.float64)
        for share in batches:
            for name, g in self.gradient(thetas).items():
                parameter = self.parameters[name]
                if parameter.requires_grad:
                    g = torch.from_numpy(share * weight * g)
                    parameter.grad = g if parameter.grad is None else parameter.grad + g
            total += share * float(self.loss(thetas))
        return total

    def descend(self, method, context, lr, batches=(0.25, 0.75)):
        """One step of plain gradient descent with a method's gradients; returns its loss."""
        loss = method.gradients(context, list(batches), self.inner)
        with torch.no_grad():
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
                    parameter.grad = None
        context.step += 1
        return float(loss)

    def assert_at(self, thetas, tolerance=1e-12):
        for name, theta in thetas.items():
            np.testing.assert_allclose(self.parameters[name].detach().numpy(), theta, rtol=tolerance, atol=tolerance)
