r"""Adamax, plain and patched: the optimizers of MT-DNN, SAGE and PATS.

One step of a tensor :math:`\theta` with gradient :math:`g` (after unscaling, accumulation and clipping), Algorithm 1
of PATS:

.. math::
    m &\leftarrow \beta_1 m + (1-\beta_1) g, \qquad u \leftarrow \max(\beta_2 u, |g| + \epsilon) \\
    d &= m / (u + \epsilon) + w \theta                                            && \text{rule "mtdnn"} \\
    d &= m / (u (1 - \beta_1^t)), \quad g \text{ replaced by } g + w \theta       && \text{rule "torch"} \\
    \bar s &\leftarrow \beta \bar s + (1-\beta) |\theta g|                        && \text{sensitivity: PATS, SAGE} \\
    \theta &\leftarrow \theta - \eta d                                            && \text{Adamax} \\
    \theta &\leftarrow \theta - \eta d \cdot |s - \bar s| / (\bar s + \epsilon_s) && \text{SAGE} \\
    \theta &\leftarrow (\theta - \eta d) - \eta\, b z, \quad
        z \sim N(0, (\lambda \tilde s / (\bar s + \epsilon_s))^2)
        \text{ where } \bar s < \gamma, \quad b \sim \mathrm{Bernoulli}(p)        && \text{PATS}

Papers: Adamax, Kingma and Ba 2015; SAGE, Liang et al. 2022; PATS, https://arxiv.org/abs/2210.12403. Rule "mtdnn" is the
Adamax of MT-DNN v0.2: no bias correction, :math:`\epsilon` twice, decoupled decay. Equations, open choices and their
switches: docs/pats.md. One compiled step for all tensors, see ``kernels/``; the readable version is the float64
reference in ``tests/reference``.

Not supported, with an error that says so: complex, sparse and float64 gradients, ``maximize``, ``differentiable``.
"""

import math
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, ClassVar

from .checks import check, one_of, within
from .choice import Chosen
from .kernel_optimizer import Group, KernelOptimizer
from .kernels.member import NonFiniteGradient
from .kernels.rows import RULE_MTDNN, RULE_TORCH
from .kernels.state import INFINITY_NORM, MOMENTUM, SENSITIVITY, SENSITIVITY_MEAN
from .noise import check_seed
from .pats_rule import PATSRule
from .sensitivity import Observation, numbers

__all__ = ["Adamax", "NonFiniteGradient", "PATSAdamax", "SAGEAdamax"]

_FROM_ZERO, _BELOW_ONE = within(0.0, math.inf), within(0.0, 1.0)
_RULES = {"mtdnn": RULE_MTDNN, "torch": RULE_TORCH}
_DEFAULT_EPS = {"mtdnn": 1e-6, "torch": 1e-8}
_DEFAULT_DECAY = {"mtdnn": 0.01, "torch": 0.0}
_PATS_FIELDS = tuple(field.name for field in fields(PATSRule))


class Adamax(KernelOptimizer):
    """Adamax by MT-DNN's rule or torch's.

    Args:
        params: The model, parameters, named parameters, or groups of either.
        lr: Learning rate, at least 0.
        betas: Decay rates of the momentum and of the infinity norm, each in [0, 1).
        eps: Term against division by zero, at least 0. Default: 1e-6 (mtdnn), 1e-8 (torch).
        weight_decay: At least 0. Decoupled (mtdnn) or added to the gradient (torch). Default: 0.01 (mtdnn), 0 (torch).
        rule: ``"mtdnn"`` or ``"torch"``.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a parameter is not float32, bfloat16 or float16.
        NotImplementedError: If a parameter is on meta, without memory.
    """

    former_defaults: ClassVar[dict[str, Any]] = {"rule": "mtdnn"}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
    ) -> None:
        super().__init__(params, _adamax_defaults(lr, betas, eps, weight_decay, rule))

    def check_group(self, group: Group) -> None:
        """Raise ValueError if a hyper-parameter of a group is out of range."""
        check("rule", group["rule"], one_of(*_RULES))
        for switch in ("maximize", "differentiable"):  # in groups of torch's own Adamax
            if group.get(switch):
                raise ValueError(f"Invalid {switch}: {group[switch]}: False is needed, there is no such step here")
        check("learning rate", group["lr"], _FROM_ZERO)
        betas = group["betas"]
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(f"Invalid betas: {reprlib.repr(betas)}: two numbers in [0, 1) are needed")
        for i, beta in enumerate(betas):
            check(f"beta parameter at index {i}", beta, _BELOW_ONE)
        check("epsilon value", group["eps"], _FROM_ZERO)
        check("weight_decay value", group["weight_decay"], _FROM_ZERO)

    def settings(self, group: Group) -> dict[str, Any]:
        """State what a group's tensors share in a step."""
        beta1, beta2 = group["betas"]
        return {
            "lr": group["lr"],
            "rule": _RULES[group["rule"]],
            "bias_correction": group["rule"] == "torch",
            "beta1": beta1,
            "one_minus_beta1": 1.0 - beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
        }


class SAGEAdamax(Adamax):
    """Adamax whose step on each entry of the encoder layers is scaled by SAGE's factor |s - s_bar| / (s_bar + eps).

    The factor is as in the authors' code: the moving average already contains the current step and has no bias
    correction; decay is scaled too (rule mtdnn). Selected: weights and biases of the encoder layers, no layer norms; a
    group may say ``scale: bool`` instead.

    Args:
        params: The model, named parameters, or groups of them.
        lr: SAGE's authors advise 2 to 5 times the plain one. It and those up to ``rule`` are as in :class:`Adamax`.
        scale: Selects other tensors: a function ``(name, parameter) -> bool``, or globs
            (:class:`module.choice.Choice`).
        sensitivity_beta: beta of the moving average, in [0, 1); the authors advise 0.6 to 0.9.
        sensitivity_eps: Added to the sensitivity in the factor, above 0 (the authors' code: 1e-6 squared).

    Raises:
        ValueError: If a value is out of range, or parameters have no names.
    """

    selection_key = "scale"
    former_defaults: ClassVar[dict[str, Any]] = {"rule": "mtdnn", "sensitivity_beta": 0.75, "sensitivity_eps": 1e-12}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
        *,
        scale: Chosen | None = None,
        sensitivity_beta: float = 0.75,
        sensitivity_eps: float = 1e-12,
    ) -> None:
        more = {"sensitivity_beta": sensitivity_beta, "sensitivity_eps": sensitivity_eps}
        KernelOptimizer.__init__(self, params, _adamax_defaults(lr, betas, eps, weight_decay, rule) | more, scale)

    def check_group(self, group: Group) -> None:
        """Raise ValueError if a hyper-parameter of a group is out of range."""
        super().check_group(group)
        check("sensitivity_beta", group["sensitivity_beta"], _BELOW_ONE)
        check("sensitivity_eps", group["sensitivity_eps"], within(1e-37, math.inf))

    def settings(self, group: Group) -> dict[str, Any]:
        """State what a group's tensors share in a step."""
        beta = group["sensitivity_beta"]
        sensitivity = {"beta": beta, "one_minus_beta": 1.0 - beta, "sensitivity_eps": group["sensitivity_eps"]}
        return {**super().settings(group), **sensitivity, "scale": True}


class PATSAdamax(Adamax):
    """Adamax with PATS: after each step, noise on the insensitive entries of the encoder layers (Equations 1-5).

    Perturbed: weights and (``perturb_biases``) biases of the layers, no norms; or those that ``perturb`` chooses; a
    group may say ``perturb: bool`` instead. The noise is a function of ``noise_seed``, the tensor's path, its step and
    the entry.

    Args:
        params: The model, named parameters, or groups of them; a group may have its own values of any argument below
            but ``perturb``, which is a flag there.
        lr: It and those up to ``rule`` are as in :class:`Adamax`.
        perturb: Chooses other tensors: a function ``(name, parameter) -> bool``, or globs
            (:class:`module.choice.Choice`). The choice is whole: ``perturb_biases`` then says nothing.
        noise_seed: Seed of the noise stream, in [0, 2**64).
        **switches: Fields of :class:`module.pats_rule.PATSRule`.

    Raises:
        ValueError: If a value is out of range, parameters have no names or none is in a layer, or a glob matches none.
        TypeError: If there is no such switch.
    """

    selection_key = "perturb"
    former_defaults: ClassVar[dict[str, Any]] = {"rule": "mtdnn", "noise_seed": 0, **asdict(PATSRule())}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
        *,
        perturb: Chosen | None = None,
        noise_seed: int = 0,
        **switches: Any,
    ) -> None:
        more = {"noise_seed": noise_seed, **asdict(PATSRule.of("PATSAdamax", switches))}
        KernelOptimizer.__init__(self, params, _adamax_defaults(lr, betas, eps, weight_decay, rule) | more, perturb)

    def check_group(self, group: Group) -> None:
        """Raise ValueError if a hyper-parameter of a group is out of range."""
        super().check_group(group)
        check_seed(group["noise_seed"])
        rule_of(group)

    def settings(self, group: Group) -> dict[str, Any]:
        """State what a group's tensors share in a step."""
        return {**super().settings(group), **rule_of(group).settings(group["noise_seed"])}

    @property
    def _verb(self) -> str:
        silent = all(rule_of(group).is_silent for group in self.param_groups)
        return "PATS watches" if silent else super()._verb

    def observations(self) -> list[Observation]:
        """Return what the statistics of :mod:`module.sensitivity` are made of; empty before the first step."""
        tracked = [
            (member, state)
            for member in self._members()
            if SENSITIVITY in (state := self.state.get(member.parameter, {})) and member.identity is not None
        ]
        means = numbers([state[SENSITIVITY_MEAN] for _, state in tracked])
        return [
            Observation(
                rule_of(group := self.param_groups[member.group]),
                float(group["lr"]),
                mean,
                state[SENSITIVITY],
                (state[MOMENTUM], state[INFINITY_NORM], member.parameter, *_observed_terms(group)),
            )
            for (member, state), mean in zip(tracked, means, strict=True)
        ]


def rule_of(group: Group) -> PATSRule:
    """Return the PATS rule that stands in a parameter group."""
    return PATSRule(**{name: group[name] for name in _PATS_FIELDS})


def _observed_terms(group: dict[str, Any]) -> tuple[float, float]:
    # The denominator's epsilon and the decoupled decay; rule torch has neither there.
    return (group["eps"], group["weight_decay"]) if group["rule"] == "mtdnn" else (1e-37, 0.0)


def _adamax_defaults(
    lr: float, betas: tuple[float, float], eps: float | None, weight_decay: float | None, rule: str
) -> dict[str, Any]:
    check("rule", rule, one_of(*_RULES))
    return {
        "lr": lr,
        "betas": betas,
        "eps": _DEFAULT_EPS[rule] if eps is None else eps,
        "weight_decay": _DEFAULT_DECAY[rule] if weight_decay is None else weight_decay,
        "rule": rule,
    }
