"""PATS around any torch optimizer: the same rule and the same noise as PATSAdamax, through step hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from .bert_optim import PATSAdamax
from .copied_hooks import keep_in_copies, owners, remove_hooks
from .kernels.cpu import update_rows
from .kernels.device_step import (
    DeviceGroup,
    DeviceStep,
    Member,
    fill_device_rule,
    new_settings,
    on_device,
    raise_refused,
)
from .kernels.guard import PARAMETER, address, at_hand, check_apart
from .kernels.rows import SENSITIVITY, SENSITIVITY_MEAN, STEP, new_table
from .kernels.state import State, addresses, steps_made
from .kernels.step import (
    Operand,
    check_parameter,
    fill_noise,
    fill_sensitivity,
    first_pass,
    model_mean,
    warn_that_nothing_is_chosen,
)
from .noise import WORD, tensor_id
from .noise_spread import SPREADS, misplaced, spread_evenly
from .param_index import ParamIndex, ParamInfo
from .pats_entries import ENTRIES
from .pats_rule import PATSRule
from .pats_state import STATE_KEY, PATSState
from .sensitivity import Observation


class PATS(PATSState):
    """Perturb parameters according to their sensitivity after each step of an optimizer.

    Before the step the sensitivities are updated from the parameters and gradients; after it the noise is subtracted:
    ``theta <- (theta - eta d) - eta b z`` whatever ``d`` is. On :class:`module.bert_optim.Adamax` the result is that of
    ``PATSAdamax``, bit for bit.

    Example::

        pats = PATS(model.named_parameters(), noise_scale=5e-3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        pats.attach(optimizer)  # from here on, optimizer.step() is PATS

    The optimizer's ``state_dict`` carries this object's state from then on, and its ``load_state_dict`` restores it, so
    that the checkpoints of a training loop that saves the optimizer (transformers.Trainer, Lightning) are complete:
    the sensitivities come back in float32 and the noise goes on where it stood. Copies and pickles of the optimizer
    take this object along.

    Gradients that are not finite are refused with ``NonFiniteGradient``, before the optimizer sees them. On a GPU the
    host does not wait to see: PATS leaves such a step out, the optimizer does with it what it does, and
    :meth:`check_refused` raises.

    Args:
        named_parameters: ``model.named_parameters()`` of a known encoder, in any wrapper.
        noise_seed: Seed of the noise stream, in [0, 2**64).
        spread: Where the noise goes: as the sensitivities say; or, as controls of that, the same amount per tensor with
            one size for all entries (``"uniform"``), or the same sizes on other entries (``"shuffled"``). The controls
            are for parameters on the CPU.
        **switches: Fields of :class:`module.pats_rule.PATSRule`.

    Raises:
        ValueError: If a value is out of range, or the encoder is unknown.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        noise_seed: int = 0,
        spread: str = "sensitivity",
        **switches: Any,
    ) -> None:
        if spread not in SPREADS:
            raise ValueError(f"Invalid spread: {spread!r}: one of {', '.join(SPREADS)} is needed")
        self.spread = spread
        super().__init__(ParamIndex(named_parameters), PATSRule(**switches), noise_seed)
        self._optimizer: Optimizer | None = None
        self._pending: list[ParamInfo] = []
        self._device_steps: dict[torch.device, DeviceStep] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; the optimizer and its parameters are part of it."""
        return {**self.__dict__, "_pending": [], "_loading": None, "_device_steps": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after copying or pickling."""
        self.__dict__.update(state)
        if self._optimizer is not None:
            keep_in_copies(self._optimizer, PATS)

    def attach(self, optimizer: Optimizer, state_key: str | None = STATE_KEY) -> PATS:
        """Hook into an optimizer and return self.

        Args:
            optimizer: Its steps are watched and followed by the noise.
            state_key: Where this object's state stands in the optimizer's state dict; None: it is kept apart.

        Raises:
            ValueError: If this object is attached already, the optimizer perturbs by itself and this object would too,
                or has another PATS under this key, or a trainable parameter to be perturbed is not one of the
                optimizer's (asked again at each step: what is frozen now may be trained later).
        """
        if self._optimizer is not None:
            raise ValueError("This PATS is attached already: call detach() first")
        if isinstance(optimizer, PATSAdamax) and not self.rule.is_silent:
            raise ValueError("PATSAdamax perturbs by itself: attach PATS to another optimizer, or use PATSAdamax alone")
        if state_key is not None and any(other._state_key == state_key for other in owners(optimizer, PATS)):
            raise ValueError("This optimizer has another PATS attached: call its detach() first")
        _check_owned(optimizer, self._perturbed)
        if not any(info.parameter.requires_grad for info in self._perturbed):
            warn_that_nothing_is_chosen("PATS", "watch" if self.rule.is_silent else "perturb", stacklevel=3)
        if state_key is not None:
            self.take_over(optimizer, state_key)
            optimizer.register_state_dict_post_hook(self._save_with)
            optimizer.register_load_state_dict_pre_hook(self._load_with)
            optimizer.register_load_state_dict_post_hook(self._after_loading)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        keep_in_copies(optimizer, PATS)
        self._optimizer, self._state_key = optimizer, state_key
        return self

    def detach(self) -> None:
        """Leave the optimizer as it was before :meth:`attach`; the state is kept."""
        if self._optimizer is not None:
            remove_hooks(self._optimizer, self)
        self._optimizer = None

    @_disable_dynamo
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is None:
            self._observe(optimizer)
            return None
        # The closure makes the gradients, inside the step: look at them right after its first call.
        self._pending = []
        watched = self._watch(optimizer, closure)
        return ((args[0], watched), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def _watch(self, optimizer: Optimizer, closure: Callable[[], float]) -> Callable[[], float]:
        seen = False

        def watched() -> float:
            nonlocal seen
            loss = closure()
            if not seen:
                seen = True
                self._observe(optimizer)
            return loss

        return watched

    @torch.no_grad()
    def _observe(self, optimizer: Optimizer) -> None:
        self._pending = []
        # Those without a gradient too: fully_shard after attach() leaves the parameters that are watched behind.
        infos = _check_owned(optimizer, self._perturbed)
        infos = [info for info in infos if info.parameter.grad is not None and info.parameter.numel()]
        here, there = _by_device(infos)
        if there and self.spread != "sensitivity":
            raise NotImplementedError(f"spread {self.spread!r} is for parameters on the CPU: move the model there")
        if len(there) + bool(here) > 1 and self.rule.mean_scope == "model":
            raise ValueError("Invalid mean_scope: 'model' with parameters on several devices: 'tensor' is needed there")
        # A gradient scaler leaves both to optimizers that ask for them.
        scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if here and scale is not None:
            raise ValueError("The gradients are scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)")
        steps = [self._begin(device, some, optimizer, scale) for device, some in there.items()]
        if here and not (found_inf is not None and found_inf.item()):
            self._observe_on_host(here)
        for step, some in zip(steps, there.values(), strict=True):
            paths = {info.name: info.path for info in some}
            self._state.update((paths[member.name], member.state) for member in step.members)
            step.measure(found_inf)
            step.update(after=False)
            self._pending += some

    def _begin(
        self, device: torch.device, infos: list[ParamInfo], optimizer: Optimizer, scale: Tensor | None = None
    ) -> DeviceStep:
        if device not in self._device_steps:
            self._device_steps[device] = DeviceStep(device)
        number_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        members = []
        for info in infos:
            number, identity = number_of[id(info.parameter)], tensor_id(info.path)
            members.append(Member(info.name, info.parameter, number, identity, self._state_of(info), moments=False))
        settings = new_settings()
        fill_device_rule(settings, self.rule, self.noise_seed)
        plain = DeviceGroup(settings, noise=not self.rule.is_silent)
        self._device_steps[device].begin(members, [plain.at(group["lr"]) for group in optimizer.param_groups], scale)
        return self._device_steps[device]

    def _observe_on_host(self, infos: list[ParamInfo]) -> None:
        operands = [Operand(info.name, info.parameter) for info in infos]
        rows, means = first_pass(operands, [True] * len(operands))
        states = [self._state_of(info) for info in infos]
        rows["sensitivity"] = _sensitivities_of(infos, states)
        rows["step"] = [steps_made(info.name, state) for info, state in zip(infos, states, strict=True)]
        check_apart([o.name for o in operands], [o.parameter for o in operands], {SENSITIVITY: rows["sensitivity"]})
        fill_sensitivity(rows, self.rule.sensitivity_beta, self.rule.sensitivity_eps)
        update_rows(rows)
        beta, rest = float(rows["beta"][0]), float(rows["one_minus_beta"][0])
        for info, state, mean in zip(infos, states, means, strict=True):
            state[SENSITIVITY_MEAN].mul_(beta).add_(rest * mean)
            state[STEP] += 1
            self._state[info.path] = state
        self._pending += infos

    @_disable_dynamo
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        here, there = _by_device([] if self.rule.is_silent else self._pending)
        if self._pending and not optimizer.state:
            # Of SGD, say: an empty state would make torch.distributed.checkpoint do a step to see what it looks like.
            optimizer.state[self._pending[0].parameter] = {}
        self._pending = []
        if here:
            self._perturb_on_host(optimizer, here)
        for device, infos in there.items():
            self._begin(device, infos, optimizer).update(before=False)

    def _perturb_on_host(self, optimizer: Optimizer, infos: list[ParamInfo]) -> None:
        lr_of = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        # Sorted by learning rate: one fill per value.
        infos = sorted(infos, key=lambda info: lr_of[id(info.parameter)])
        states = [self._state[info.path] for info in infos]
        rows, found = new_table([info.parameter.numel() for info in infos]), []
        for info in infos:
            check_parameter(info.name, info.parameter)
            found.append(at_hand(info.name, PARAMETER, info.parameter, torch.float32))
        rows["theta"] = [where for _, where in found]
        rows["sensitivity"] = _sensitivities_of(infos, states)
        rows["step"] = [steps_made(info.name, state) for info, state in zip(infos, states, strict=True)]
        identities = [tensor_id(info.path) for info in infos]
        rows["id_low"] = [identity & WORD for identity in identities]
        rows["id_high"] = [identity >> 32 for identity in identities]
        fill_sensitivity(rows, self.rule.sensitivity_beta, self.rule.sensitivity_eps)
        means = np.array([float(state["sensitivity_mean"]) for state in states])
        if self.rule.mean_scope == "model":
            means = np.full(len(rows), model_mean(means, rows["size"]))
        rates = np.array([lr_of[id(info.parameter)] for info in infos])
        for rate in np.unique(rates):
            span = slice(int(np.searchsorted(rates, rate)), int(np.searchsorted(rates, rate, side="right")))
            fill_noise(rows[span], self.rule, float(rate), means[span], self.noise_seed)
        sensitivities = [state["sensitivity"] for state in states]
        if self.spread == "uniform":
            spread_evenly(rows, sensitivities, self.rule)
        elif self.spread == "shuffled":
            sensitivities = [misplaced(s, self.noise_seed, i.path) for s, i in zip(sensitivities, infos, strict=True)]
            flat = [torch.Size((info.parameter.numel(),)) for info in infos]
            rows["sensitivity"] = list(map(_address, infos, repeat(SENSITIVITY), sensitivities, flat))
        update_rows(rows)
        for info, (theta, _) in zip(infos, found, strict=True):
            if theta is not info.parameter:
                info.parameter.detach().copy_(theta)

    def check_refused(self) -> None:
        """Raise if steps have been left out on a GPU since the last call; waits for it. On the CPU the step raises.

        Raises:
            NonFiniteGradient: With the name of the first tensor. Steps that a gradient scaler skips do not count.
        """
        raise_refused(self._device_steps.values())

    def observations(self) -> list[Observation]:
        """Return what the statistics of :mod:`module.sensitivity` are made of; no update is known here."""
        lr_of = {
            id(p): float(group["lr"])
            for group in (self._optimizer.param_groups if self._optimizer else [])
            for p in group["params"]
        }
        return [
            Observation(
                self.rule, lr_of.get(id(info.parameter), 0.0), float(state["sensitivity_mean"]), state["sensitivity"]
            )
            for info in self._perturbed
            if (state := self._state.get(info.path)) is not None
        ]


def _check_owned(optimizer: Optimizer, infos: list[ParamInfo]) -> list[ParamInfo]:
    """Return those that are the optimizer's; others must be frozen."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for info in infos:
        if info.parameter.requires_grad and id(info.parameter) not in owned:
            raise ValueError(
                f"{info.name!r} is to be perturbed, but is not a parameter of the optimizer: pass both the same model "
                "(a layer that another optimizer trains is not for this PATS)"
            )
    return [info for info in infos if id(info.parameter) in owned]


def _address(info: ParamInfo, part: str, tensor: Tensor, shape: torch.Size) -> int:
    return address(info.name, part, tensor, shape, torch.float32, info.parameter.device)


def _sensitivities_of(infos: list[ParamInfo], states: list[State]) -> list[int]:
    """Where they lie; the rest of the states is checked too."""
    found = [addresses(info.name, info.parameter, state, ENTRIES) for info, state in zip(infos, states, strict=True)]
    return [at[ENTRIES.index(SENSITIVITY)] for at in found]


def _by_device(infos: list[ParamInfo]) -> tuple[list[ParamInfo], dict[torch.device, list[ParamInfo]]]:
    """Divide tensors into those of the CPU and those of each GPU."""
    here: list[ParamInfo] = []
    there: dict[torch.device, list[ParamInfo]] = {}
    for info in infos:
        (there.setdefault(info.parameter.device, []) if on_device(info.parameter) else here).append(info)
    return here, there
