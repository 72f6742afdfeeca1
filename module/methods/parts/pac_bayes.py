r"""PAC-tuning's bound: the width of noise around each weight, learned together with the weights.

Posterior: :math:`\theta_j + e^{p_j} \tau_j` for each weight. Prior: :math:`N(\theta^0_j, e^{2 b_l})`, one width per
tensor l. With L tensors, d weights, m examples:

.. math::
    KL &= \tfrac12 \sum_l \Big[ e^{-2 b_l} \sum_{j \in l} \big( e^{2 p_j} + (\theta_j - \theta^0_j)^2 \big)
        + 2 b_l n_l \Big] - \sum_j p_j - \tfrac d2 \\
    L_{PAC} &= \tfrac32 \gamma K^2 + \frac{KL + 10 + 3 L}{\gamma m}, \qquad K = K(e^{\bar b}),
        \quad \bar b = \tfrac1L \sum_l b_l

as the authors' code has it (PAC-tuning, https://arxiv.org/abs/2310.17588). Their gradients are written out here:
nothing is left for autograd, which would keep copies of everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...lazy import guard, torch

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # Adam's for the widths, as in the authors' code
_HEAD_DECAY, _HEAD_DECAY_STEPS = 0.9, 10  # their head's step shrinks by a tenth every ten steps


def fit_k(losses: torch.Tensor, gamma: float) -> float:
    """Return the least K with ``mean exp(gamma (mu - loss)) <= exp(3 gamma^2 K^2 / 2)``, mu the mean loss.

    The authors search for it in factors of 1.5 and 1.1, which ends at most a tenth below.

    Args:
        losses: (models, examples) of random networks.
        gamma: Above 0.
    """
    exponents = gamma * (losses.double().mean() - losses.double().flatten())
    log_mean = float(torch.logsumexp(exponents, 0)) - math.log(exponents.numel())
    # max() in this order lets NaN through
    return math.sqrt(max(2.0 * log_mean / 3.0, 0.0)) / gamma


_SMALLEST = 1e-6  # magnitude of a weight, for its logarithm


class KCurve:
    """K as a function of the prior's width: straight between its points, flat below the first, straight on above.

    Args:
        levels: (n,) rising widths, n at least 2.
        values: (n,) K there; made non-decreasing.
        as_authors: Their code's curve, ``fun_K_auto``: it takes the last bend for the last slope, so that from the
            third level on it does not meet its points.
    """

    def __init__(self, levels: torch.Tensor, values: torch.Tensor, as_authors: bool = False) -> None:
        self.levels, self.values = levels, values.cummax(0).values
        slopes = self.values.diff() / levels.diff()
        if as_authors:
            bends = [slopes[0]]
            for slope in slopes[1:]:
                bends.append(slope - bends[-1])
            self._bends = torch.stack(bends)
        else:  # (n - 1,) change of slope at each level but the last
            self._bends = slopes.diff(prepend=slopes.new_zeros(1))

    def __call__(self, width: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K at a width, and its slope there: () each."""
        over = (width - self.levels[:-1]).clamp(min=0.0)
        return self.values[0] + (over * self._bends).sum(), ((over > 0.0) * self._bends).sum()


class NoiseWidths:
    """The logarithms of the widths, p of each weight and b of each tensor's prior, with their own Adam.

    Args:
        weights: Parameters as they are at the start (theta0).
        in_head: Of each, whether it is of the head.
        per_weight: Whether p starts at log|theta0_j| of each weight (the paper), not at one value below the head,
            2 log(mean|theta0|), and one for the head, log(mean|theta0|) (the authors' code).
        step_size: Adam's on tensors below the head.
        head_step_size: Adam's on the head in the end.
        head_factor: How many times that it is in the beginning, at least 1.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        in_head: Sequence[bool],
        per_weight: bool,
        step_size: float,
        head_step_size: float,
        head_factor: float,
    ) -> None:
        self.starts = [weight.detach().clone() for weight in weights]
        self.in_head = list(in_head)
        self.log_std = [start.abs().clamp_(min=_SMALLEST).log_() for start in self.starts]
        if not per_weight:
            self._level(in_head=False, factor=2.0)
            self._level(in_head=True, factor=1.0)
        self.prior = torch.stack([width.mean() for width in self.log_std])  # (L,)
        self._steps = (step_size, head_step_size, head_factor)
        self._values = [*self.log_std, self.prior]
        self._means = [torch.zeros_like(value) for value in self._values]
        self._squares = [torch.zeros_like(value) for value in self._values]
        self._count = self.prior.new_zeros(())

    def noise(self, draws: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the noise to add to the weights, from standard noise of their shapes."""
        return [draw * width.exp() for draw, width in zip(draws, self.log_std, strict=True)]

    def kl(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """() float64, at least 0 up to rounding; 0 where widths are the prior's and weights theta0."""
        total = self.prior.new_zeros((), dtype=torch.float64)
        for spread, width, prior in zip(self._spreads(weights), self.log_std, self.prior.double(), strict=True):
            n = width.numel()
            total += (-2 * prior).exp() * spread / 2 + prior * n - width.sum(dtype=torch.float64) - n / 2
        return total

    def bound(self, weights: Sequence[torch.Tensor], curve: KCurve, gamma: float, examples: int) -> torch.Tensor:
        """Return L_PAC: () float64."""
        k, _ = curve(self.prior.double().mean().exp())
        rest = 10 + 3 * len(self.log_std)
        return 1.5 * gamma * k**2 + (self.kl(weights) + rest) / (gamma * examples)

    def pulls(self, weights: Sequence[torch.Tensor], gamma: float, examples: int) -> list[torch.Tensor]:
        """Return the gradients of L_PAC with respect to the weights."""
        factors = (-2 * self.prior).exp() / (gamma * examples)
        return [(w - start) * factor for w, start, factor in zip(weights, self.starts, factors, strict=True)]

    def learn(
        self,
        weights: Sequence[torch.Tensor],
        loss_gradients: Sequence[torch.Tensor | None],
        draws: Sequence[torch.Tensor],
        curve: KCurve,
        gamma: float,
        examples: int,
    ) -> None:
        """Do a step of Adam on all widths, or none where a gradient is not finite.

        Args:
            weights: Without noise.
            loss_gradients: Of the mean loss with respect to the weights, under the noise of ``draws``; None: zero.
            draws: Standard noise.
            curve: K.
            gamma: Above 0.
            examples: m.
        """
        share = 1.0 / (gamma * examples)
        priors = self.prior.double()
        width = priors.mean().exp()
        k, slope = curve(width)
        by_k = 3.0 * gamma * k * slope * width / len(priors)
        by_kl = [
            width.numel() - (-2 * prior).exp() * spread
            for width, prior, spread in zip(self.log_std, priors, self._spreads(weights), strict=True)
        ]
        of_prior = torch.stack(by_kl) * share + by_k  # (L,)
        seen = [g for g in loss_gradients if g is not None]
        finite = torch.stack([g.sum().isfinite() for g in seen]).all() & of_prior.isfinite().all()
        self._count += finite
        for i, (p, gradient, draw) in enumerate(zip(self.log_std, loss_gradients, draws, strict=True)):
            g = ((2 * (p - self.prior[i])).exp() - 1.0) * share
            if gradient is not None:
                g = g + gradient * draw * p.exp()
            self._adam(i, g, self._rate(self.in_head[i]), finite)
        rates = torch.stack([self._rate(head) for head in self.in_head])
        self._adam(len(self.log_std), of_prior.to(self.prior.dtype), rates, finite)

    def mean_width(self) -> torch.Tensor:
        """() mean of exp(p) over all weights."""
        total = sum(width.exp().sum() for width in self.log_std)
        assert isinstance(total, torch.Tensor)
        return total / sum(width.numel() for width in self.log_std)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        return {
            "values": list(self._values), "means": list(self._means), "squares": list(self._squares),
            "count": self._count,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of :meth:`state_dict`.

        Raises:
            TypeError: If something is no plain tensor; nothing has been changed then.
            ValueError: If there are more or fewer widths than weights, or one has another shape.
        """
        counts = [len(state[part]) for part in ("values", "means", "squares")]
        if counts != [len(self._values)] * 3:
            wanted = len(self._values)
            raise ValueError(f"The checkpoint has widths of {counts} tensors, the model of {wanted}: load its own")
        pairs = [
            (own, guard.check_saved(f"weight {i}", part, saved, own.shape))
            for part, tensors in (("values", self._values), ("means", self._means), ("squares", self._squares))
            for i, (own, saved) in enumerate(zip(tensors, state[part], strict=True))
        ]
        pairs.append((self._count, guard.check_saved("widths", "count", state["count"], self._count.shape)))
        for own, saved in pairs:
            own.copy_(saved)

    def _level(self, in_head: bool, factor: float) -> None:
        """Set p of one part of the network to ``factor * log(mean |theta0|)``."""
        chosen = [i for i, head in enumerate(self.in_head) if head == in_head]
        if chosen:
            total = torch.stack([self.starts[i].abs().sum(dtype=torch.float64) for i in chosen]).sum()
            value = factor * (total / sum(self.starts[i].numel() for i in chosen)).clamp(min=_SMALLEST).log()
            for i in chosen:
                self.log_std[i].copy_(value)

    def _spreads(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sum of exp(2p) + (theta - theta0)^2 of each tensor, float64."""
        return [
            (2 * width).exp().sum(dtype=torch.float64) + (weight - start).square().sum(dtype=torch.float64)
            for width, weight, start in zip(self.log_std, weights, self.starts, strict=True)
        ]

    def _rate(self, in_head: bool) -> torch.Tensor:
        step_size, head_step_size, head_factor = self._steps
        if not in_head:
            return torch.full_like(self._count, step_size)
        decayed = head_factor * _HEAD_DECAY ** (self._count / _HEAD_DECAY_STEPS).floor()
        return head_step_size * decayed.clamp(min=1.0)

    def _adam(self, i: int, gradient: torch.Tensor, rate: torch.Tensor, finite: torch.Tensor) -> None:
        value, mean, square = self._values[i], self._means[i], self._squares[i]
        new_mean = mean.lerp(gradient, 1.0 - _BETA1)
        new_square = (square * _BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
        m = new_mean / (1.0 - _BETA1**self._count)
        v = new_square / (1.0 - _BETA2**self._count)
        new_value = value - rate * m / (v.sqrt() + _EPS)
        for old, new in ((value, new_value), (mean, new_mean), (square, new_square)):
            old.copy_(torch.where(finite, new, old))
