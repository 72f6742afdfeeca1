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
switches: docs/methods.md. One compiled step for all tensors, see ``kernels/``; the readable version is the float64
reference in ``tests/reference``.

Not supported, with an error that says so: complex, sparse and float64 gradients, ``maximize``, ``differentiable``.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from module.kernels.cpu import update_rows
from module.kernels.rows import RULE_MTDNN, RULE_TORCH
from module.kernels.step import (
    NonFiniteGradient,
    Operand,
    check_parameter,
    fill_noise,
    fill_sensitivity,
    first_pass,
    model_mean,
    warn_about_low_precision,
)
from module.noise import WORD, check_seed, tensor_id
from module.param_index import Kind, ParamIndex, encoder_path
from module.pats_rule import PATSRule
from module.sensitivity import Observation

__all__ = ["Adamax", "NonFiniteGradient", "PATSAdamax", "SAGEAdamax"]

_RULES = {"mtdnn": RULE_MTDNN, "torch": RULE_TORCH}
_DEFAULT_EPS = {"mtdnn": 1e-6, "torch": 1e-8}
_DEFAULT_DECAY = {"mtdnn": 0.01, "torch": 0.0}
# Names of the state, written once.
STEP, MOMENTUM, INFINITY_NORM, SENSITIVITY, SENSITIVITY_MEAN = (
    "step",
    "exp_avg",
    "exp_inf",
    "sensitivity",
    "sensitivity_mean",
)


class Adamax(Optimizer):
    """Adamax by MT-DNN's rule or torch's.

    Args:
        params: Parameters, named parameters, or groups of either.
        lr: Learning rate, at least 0.
        betas: Decay rates of the momentum and of the infinity norm, each in [0, 1).
        eps: Term against division by zero, at least 0. Default: 1e-6 (mtdnn), 1e-8 (torch).
        weight_decay: At least 0. Decoupled (mtdnn) or added to the gradient (torch). Default: 0.01 (mtdnn), 0 (torch).
        rule: ``"mtdnn"`` or ``"torch"``.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a parameter is not float32, bfloat16 or float16.
        NotImplementedError: If a parameter is not on the CPU.
    """

    # Group key by which a caller selects or spares a whole group, for subclasses that treat some tensors specially.
    selection_key: ClassVar[str | None] = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
        **more_defaults: Any,
    ) -> None:
        if rule not in _RULES:
            raise ValueError(f"Invalid rule: {rule!r}: one of {', '.join(_RULES)} is needed")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": _DEFAULT_EPS[rule] if eps is None else eps,
            "weight_decay": _DEFAULT_DECAY[rule] if weight_decay is None else weight_decay,
            "rule": rule,
            **more_defaults,
        }
        self._selected: dict[int, int | None] | None = None  # id of a parameter -> its noise id if selected
        super().__init__(params, defaults)
        self._selection()
        warn_about_low_precision(self._named_parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after pickling, copying or loading."""
        super().__setstate__(state)
        self._selected = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see :class:`torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._selected = None

    def _check_group(self, group: dict[str, Any]) -> None:
        _check("learning rate", group["lr"], 0.0, float("inf"))
        for i in (0, 1):
            _check(f"beta parameter at index {i}", group["betas"][i], 0.0, 1.0)
        _check("epsilon value", group["eps"], 0.0, float("inf"))
        _check("weight_decay value", group["weight_decay"], 0.0, float("inf"))
        for name, parameter in _names_and_parameters(group, len(self.param_groups) - 1):
            check_parameter(name, parameter)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            NonFiniteGradient: If a gradient is not finite; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        selection = self._selection()
        operands: list[Operand] = []
        spans: list[tuple[dict[str, Any], slice]] = []
        for number, group in enumerate(self.param_groups):
            start = len(operands)
            for name, parameter in _names_and_parameters(group, number):
                if parameter.grad is not None and parameter.numel():
                    operands.append(Operand(name, parameter))
            spans.append((group, slice(start, len(operands))))
        if not operands:
            return loss
        identities = [selection[id(operand.parameter)] for operand in operands]
        rows, means = first_pass(operands, [identity is not None for identity in identities])
        states = [self._state_of(operand, tracked) for operand, tracked in zip(operands, rows["track"], strict=True)]
        self._fill(rows, states, spans)
        self._fill_selected(rows, states, spans, means, identities)
        update_rows(rows)
        for operand, state in zip(operands, states, strict=True):
            operand.write_back()
            state[STEP] += 1
        return loss

    def _state_of(self, operand: Operand, tracked: bool) -> dict[str, Any]:
        state: dict[str, Any] = self.state[operand.parameter]
        if not state:
            shape = operand.parameter.shape
            state[STEP] = torch.tensor(0.0, dtype=torch.float32)
            state[MOMENTUM] = torch.zeros(shape, dtype=torch.float32)
            state[INFINITY_NORM] = torch.zeros(shape, dtype=torch.float32)
        if tracked and SENSITIVITY not in state:
            state[SENSITIVITY] = torch.zeros(operand.parameter.shape, dtype=torch.float32)
            state[SENSITIVITY_MEAN] = torch.tensor(0.0, dtype=torch.float64)
        return state

    def _fill(self, rows: np.ndarray, states: list[dict[str, Any]], spans: list[tuple[dict[str, Any], slice]]) -> None:
        rows["momentum"] = [state[MOMENTUM].data_ptr() for state in states]
        rows["infinity_norm"] = [state[INFINITY_NORM].data_ptr() for state in states]
        rows["step"] = [int(state[STEP]) + 1 for state in states]
        for group, span in spans:
            part = rows[span]
            beta1, beta2 = group["betas"]
            part["beta1"], part["one_minus_beta1"], part["beta2"] = beta1, 1.0 - beta1, beta2
            part["eps"], part["weight_decay"] = group["eps"], group["weight_decay"]
            part["rule"] = _RULES[group["rule"]]
            lr = float(group["lr"])
            bias = 1.0 - beta1 ** part["step"].astype(np.float64) if group["rule"] == "torch" else 1.0
            part["step_size"] = lr / bias

    def _fill_selected(
        self,
        rows: np.ndarray,
        states: list[dict[str, Any]],
        spans: list[tuple[dict[str, Any], slice]],
        means: np.ndarray,
        identities: list[int | None],
    ) -> None:
        """Set what a subclass does to the selected tensors."""

    def _selection(self) -> dict[int, int | None]:
        """Per parameter its identity in the noise stream, or None if it is not selected; worked out once."""
        if self._selected is None:
            self._selected = self._select() if self.selection_key else {id(p): None for p in self._parameters()}
        return self._selected

    def _select(self) -> dict[int, int | None]:
        key = self.selection_key
        assert key is not None
        if any("param_names" not in group for group in self.param_groups):
            raise ValueError(
                f"{type(self).__name__} chooses tensors by their role and needs names: pass model.named_parameters(), "
                'or groups like {"params": [(name, parameter), ...]}'
            )
        explicit = {id(p): group[key] for group in self.param_groups if key in group for p in group["params"]}
        named = list(self._named_parameters())
        index = ParamIndex(named) if any(id(p) not in explicit for _, p in named) else None
        selected: dict[int, int | None] = {}
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                chosen = explicit.get(id(parameter))
                if chosen is None and index is not None:
                    info = index[name]
                    biases = group.get("perturb_biases", True)
                    chosen = info.in_layer and (info.kind == Kind.WEIGHT or (info.kind == Kind.BIAS and biases))
                selected[id(parameter)] = tensor_id(encoder_path(name)) if chosen else None
        return selected

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _named_parameters(self) -> Iterable[tuple[str, Any]]:
        return (pair for number, group in enumerate(self.param_groups) for pair in _names_and_parameters(group, number))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; the state keeps its own precision, which torch casts to the parameters'."""
        super().load_state_dict(state_dict)
        saved_ids = (i for group in state_dict["param_groups"] for i in group["params"])
        for saved_id, parameter in zip(saved_ids, list(self._parameters()), strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor):
                    dtype = torch.float64 if key == SENSITIVITY_MEAN else torch.float32
                    self.state[parameter][key] = value.detach().to("cpu", dtype, copy=True).contiguous()


class SAGEAdamax(Adamax):
    """Adamax whose step on each entry of the encoder layers is scaled by SAGE's factor |s - s_bar| / (s_bar + eps).

    The factor is as in the authors' code: the moving average already contains the current step and has no bias
    correction; decay is scaled too (rule mtdnn). Selected: weights and biases of the encoder layers, no layer norms; a
    group may say ``scale: bool`` instead.

    Args:
        params: Named parameters, or groups of them.
        lr: As in :class:`Adamax`; SAGE's authors advise 2 to 5 times the plain one.
        betas: As in :class:`Adamax`.
        eps: As in :class:`Adamax`.
        weight_decay: As in :class:`Adamax`.
        rule: As in :class:`Adamax`.
        sensitivity_beta: beta of the moving average, in [0, 1); the authors advise 0.6 to 0.9.
        sensitivity_eps: Added to the sensitivity in the factor, above 0 (the authors' code: 1e-6 squared).

    Raises:
        ValueError: If a value is out of range, or parameters have no names.
    """

    selection_key = "scale"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
        *,
        sensitivity_beta: float = 0.75,
        sensitivity_eps: float = 1e-12,
    ) -> None:
        more = {"sensitivity_beta": sensitivity_beta, "sensitivity_eps": sensitivity_eps}
        super().__init__(params, lr, betas, eps, weight_decay, rule, **more)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _check("sensitivity_beta", group["sensitivity_beta"], 0.0, 1.0)
        _check("sensitivity_eps", group["sensitivity_eps"], 1e-37, float("inf"))

    def _fill_selected(
        self,
        rows: np.ndarray,
        states: list[dict[str, Any]],
        spans: list[tuple[dict[str, Any], slice]],
        means: np.ndarray,
        identities: list[int | None],
    ) -> None:
        rows["scale"] = rows["track"]
        rows["sensitivity"] = [_address(state) for state in states]
        for group, span in spans:
            fill_sensitivity(rows[span], group["sensitivity_beta"], group["sensitivity_eps"])
        _advance_means(rows, states, means)


class PATSAdamax(Adamax):
    """Adamax with PATS: after each step, noise on the insensitive entries of the encoder layers (Equations 1-5).

    Perturbed: weights and (``perturb_biases``) biases of the encoder layers, no layer norms; a group may say
    ``perturb: bool`` instead. The noise is a function of ``noise_seed``, the tensor's path, its step and the entry.

    Args:
        params: Named parameters, or groups of them; a group may have its own values of any argument.
        lr: As in :class:`Adamax`.
        betas: As in :class:`Adamax`.
        eps: As in :class:`Adamax`.
        weight_decay: As in :class:`Adamax`.
        rule: As in :class:`Adamax`.
        noise_seed: Seed of the noise stream, in [0, 2**64).
        **switches: Fields of :class:`module.pats_rule.PATSRule`.

    Raises:
        ValueError: If a value is out of range, or parameters have no names or are of an unknown encoder.
    """

    selection_key = "perturb"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        rule: str = "mtdnn",
        *,
        noise_seed: int = 0,
        **switches: Any,
    ) -> None:
        more = {"noise_seed": noise_seed, **asdict(PATSRule(**switches))}
        super().__init__(params, lr, betas, eps, weight_decay, rule, **more)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_seed(group["noise_seed"])
        rule_of(group)

    def _fill_selected(
        self,
        rows: np.ndarray,
        states: list[dict[str, Any]],
        spans: list[tuple[dict[str, Any], slice]],
        means: np.ndarray,
        identities: list[int | None],
    ) -> None:
        rows["sensitivity"] = [_address(state) for state in states]
        rows["id_low"] = [(identity or 0) & WORD for identity in identities]
        rows["id_high"] = [(identity or 0) >> 32 for identity in identities]
        rules = [rule_of(group) for group, _ in spans]
        for pats, (_, span) in zip(rules, spans, strict=True):
            fill_sensitivity(rows[span], pats.sensitivity_beta, pats.sensitivity_eps)
        tensor_means = _advance_means(rows, states, means)
        tracked = rows["track"] == 1
        whole = model_mean(tensor_means[tracked], rows["size"][tracked])
        for pats, (group, span) in zip(rules, spans, strict=True):
            chosen = np.arange(len(rows))[span][tracked[span]]
            part = rows[chosen]  # a copy
            scope = tensor_means[chosen] if pats.mean_scope == "tensor" else np.full(len(chosen), whole)
            fill_noise(part, pats, float(group["lr"]), scope, group["noise_seed"])
            rows[chosen] = part

    def observations(self) -> list[Observation]:
        """Return what the statistics of :mod:`module.sensitivity` are made of; empty before the first step."""
        return [
            Observation(
                rule_of(group),
                float(group["lr"]),
                float(state[SENSITIVITY_MEAN]),
                state[SENSITIVITY],
                (state[MOMENTUM], state[INFINITY_NORM], parameter, *_observed_terms(group)),
            )
            for group in self.param_groups
            for parameter in group["params"]
            if SENSITIVITY in (state := self.state.get(parameter, {}))
        ]


_RULE_FIELDS = tuple(field.name for field in fields(PATSRule))


def rule_of(group: dict[str, Any]) -> PATSRule:
    """Return the PATS rule that stands in a parameter group."""
    return PATSRule(**{name: group[name] for name in _RULE_FIELDS})


def _advance_means(rows: np.ndarray, states: list[dict[str, Any]], means: np.ndarray) -> np.ndarray:
    """Advance each tensor's mean sensitivity: the moving average is linear, so its mean needs no pass of its own."""
    advanced = np.zeros(len(rows))
    for i in np.flatnonzero(rows["track"]):
        beta = float(rows["beta"][i])
        state = states[i]
        advanced[i] = beta * float(state[SENSITIVITY_MEAN]) + float(rows["one_minus_beta"][i]) * means[i]
        state[SENSITIVITY_MEAN].fill_(advanced[i])
    return advanced


def _observed_terms(group: dict[str, Any]) -> tuple[float, float]:
    # The denominator's epsilon and the decoupled decay; rule torch has neither there.
    return (group["eps"], group["weight_decay"]) if group["rule"] == "mtdnn" else (1e-37, 0.0)


def _address(state: dict[str, Any]) -> int:
    return int(state[SENSITIVITY].data_ptr()) if SENSITIVITY in state else 0


def _names_and_parameters(group: dict[str, Any], number: int) -> Iterable[tuple[str, Any]]:
    names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
    return zip(names, group["params"], strict=True)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"Invalid {name}: {value}: a number in [{low:g}, {high:g}) is needed")
