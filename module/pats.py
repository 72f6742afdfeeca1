"""PATS around any torch optimizer: the same rule and the same noise as PATSAdamax, through step hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from .bert_optim import PATSAdamax
from .choice import Chosen, named_parameters, own_names
from .chosen_table import Row, chosen_line, chosen_table
from .copied_hooks import keep_in_copies, owners, remove_hooks, unwrapped
from .kernel_optimizer import warn_that_nothing_is_chosen
from .kernels.engine import Engine
from .kernels.member import Member
from .kernels.rows import GroupSettings
from .kernels.state import SENSITIVITY, SENSITIVITY_MEAN, STEP
from .layer_stack import LayerStack
from .noise import tensor_id
from .param_index import ParamIndex
from .pats_rule import PATSRule
from .pats_state import STATE_KEY, Loaded, PATSState
from .sensitivity import Observation, numbers

log = logging.getLogger(__name__)


class PATS(PATSState):
    """Perturb parameters according to their sensitivity after each step of an optimizer.

    Before the step the sensitivities are updated from the parameters and gradients; after it the noise is subtracted:
    ``theta <- (theta - eta d) - eta b z`` whatever ``d`` is. On :class:`module.bert_optim.Adamax` the result is that of
    ``PATSAdamax``, bit for bit.

    Example::

        pats = PATS(model, noise_scale=5e-3)
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
        model: The model, or its ``named_parameters()``, in any wrapper. Perturbed are weights and (``perturb_biases``)
            biases of its layers, no norms.
        perturb: Chooses other tensors: a function ``(name, parameter) -> bool``, or globs
            (:class:`module.choice.Choice`). The choice is whole: ``perturb_biases`` then says nothing.
        noise_seed: Seed of the noise stream, in [0, 2**64).
        **switches: Fields of :class:`module.pats_rule.PATSRule`.

    Raises:
        ValueError: If a value is out of range, there are no names, none is in a layer, or a glob matches none.
        TypeError: If there is no such switch.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, nn.Parameter]],
        *,
        perturb: Chosen | None = None,
        noise_seed: int = 0,
        **switches: Any,
    ) -> None:
        rule = PATSRule.of("PATS", switches)
        named = named_parameters(model, "PATS")
        index = ParamIndex(named, needs_layers=perturb is None)
        self._stacks = index.stacks
        super().__init__(index, rule, noise_seed, None if perturb is None else own_names(perturb, named))
        self._engine = self._new_engine()
        self._pending: list[Member] = []

    def _new_engine(self) -> Engine:
        return Engine((STEP,))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of copies and pickles; the optimizer and its parameters are part of it."""
        kept = {key: value for key, value in self.__dict__.items() if key != "_engine"}
        return {**kept, "_pending": [], "_loading": None, "_listed": [], "_asked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after copying or pickling."""
        self.__dict__.update({"_own": None, "_stacks": [], **state})  # pickles of earlier versions lack these
        self._engine = self._new_engine()
        if self._optimizer is not None:
            keep_in_copies(self._optimizer, PATS)

    def attach(self, optimizer: Optimizer, state_key: str | None = STATE_KEY, *, perturb: Chosen | None = None) -> PATS:
        """Hook into an optimizer and return self.

        A parameter group of the optimizer may say ``perturb: bool`` of all its tensors, also later.

        Args:
            optimizer: Its steps are watched and followed by the noise. Wrappers around an optimizer (accelerate's,
                Lightning's) are looked through.
            state_key: Where this object's state stands in the optimizer's state dict; None: it is kept apart.
            perturb: Chooses the tensors, in place of what the constructor has said.

        Raises:
            ValueError: If this object is attached already, the optimizer perturbs by itself and this object would too,
                or has another PATS under this key, or a trainable parameter to be perturbed is not one of the
                optimizer's (asked again at each step: what is frozen now may be trained later).
            TypeError: If it is no optimizer.
        """
        if self._optimizer is not None:
            raise ValueError("This PATS is attached already: call detach() first")
        optimizer = unwrapped(optimizer)
        if isinstance(optimizer, PATSAdamax) and not self.rule.is_silent:
            raise ValueError("PATSAdamax perturbs by itself: attach PATS to another optimizer, or use PATSAdamax alone")
        if state_key is not None and any(other._state_key == state_key for other in owners(optimizer, PATS)):
            raise ValueError("This optimizer has another PATS attached: call its detach() first")
        own = self._own
        if perturb is not None:
            self._own = own_names(perturb, [(info.name, info.parameter) for info in self._infos])
        self._optimizer = optimizer
        try:
            self._members(optimizer)
            if not any(info.parameter.requires_grad for info in self._perturbed):
                warn_that_nothing_is_chosen("PATS", "watch" if self.rule.is_silent else "perturb", stacklevel=3)
            if state_key is not None:
                self.take_over(optimizer, state_key)
        except Exception:
            self._own, self._optimizer = own, None
            self._perturbed = self._chosen()
            raise
        if state_key is not None:
            optimizer.register_state_dict_post_hook(self._save_with)
            optimizer.register_load_state_dict_pre_hook(self._load_with)
            optimizer.register_load_state_dict_post_hook(self._after_loading)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        keep_in_copies(optimizer, PATS)
        self._state_key = state_key
        if any(info.parameter.requires_grad for info in self._perturbed):
            log.info("%s", chosen_line(*self._chosen_rows()))
        return self

    def summary(self) -> str:
        """Return a table of the parameters: what they are, and which of them are perturbed."""
        return chosen_table(*self._chosen_rows())

    def _chosen_rows(self) -> tuple[str, list[Row], list[LayerStack]]:
        perturbed = {info.name for info in self._chosen()}
        rows = [(info, info.name in perturbed) for info in self._infos]
        return "PATS watches" if self.rule.is_silent else "PATS perturbs", rows, self._stacks

    def detach(self) -> None:
        """Leave the optimizer as it was before :meth:`attach`; the state is kept."""
        if self._optimizer is not None:
            remove_hooks(self._optimizer, self, PATS)
        self._optimizer, self._asked = None, None
        self._perturbed = self._chosen()

    def _take(self, loaded: Loaded) -> None:
        super()._take(loaded)
        self._engine.forget()

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
        self._engine.measure(optimizer, self._members(optimizer), self._state, self._settings(optimizer))
        self._engine.update(after=False)
        self._pending = self._engine.live

    @_disable_dynamo
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending, self._pending = self._pending, []
        if pending and not optimizer.state:
            # Of SGD, say: an empty state would make torch.distributed.checkpoint do a step to see what it looks like.
            optimizer.state[pending[0].parameter] = {}
        if pending and not self.rule.is_silent:
            self._engine.again(self._state, self._settings(optimizer))
            self._engine.update(before=False)

    def _settings(self, optimizer: Optimizer) -> list[GroupSettings]:
        stated = self.rule.settings(self.noise_seed)
        return [GroupSettings(**stated, lr=group["lr"]) for group in optimizer.param_groups]

    def _members(self, optimizer: Optimizer) -> list[Member]:
        """The optimizer's parameters that are perturbed, the same list while they are the same; others must be frozen.

        Those without a gradient are looked at too: fully_shard after attach() leaves the watched parameters behind.
        """
        owned = [list(map(id, group["params"])) for group in optimizer.param_groups]
        asked = owned, self._flags(), [info.parameter.requires_grad for info in self._infos]
        if self._asked != asked:
            self._perturbed = self._chosen()
            number_of = {place: number for number, places in enumerate(owned) for place in places}
            for info in self._perturbed:
                if info.parameter.requires_grad and id(info.parameter) not in number_of:
                    raise ValueError(
                        f"{info.name!r} is to be perturbed, but is not a parameter of the optimizer: pass both the "
                        "same model (a layer that another optimizer trains is not for this PATS, nor are flat tensors "
                        "that DeepSpeed's ZeRO or FSDP put in the parameters' place: train with DDP)"
                    )
            self._listed = [
                Member(info.name, info.parameter, number_of[id(info.parameter)], tensor_id(info.stream), info.stream)
                for info in self._perturbed
                if id(info.parameter) in number_of
            ]
            self._asked = asked
        return self._listed

    def check_refused(self) -> None:
        """Raise if steps have been left out on a GPU since the last call; waits for it. On the CPU the step raises.

        Raises:
            NonFiniteGradient: With the name of the first tensor. Steps that a gradient scaler skips do not count.
        """
        self._engine.check_refused()

    def observations(self) -> list[Observation]:
        """Return what the statistics of :mod:`module.sensitivity` are made of; no update is known here."""
        groups = self._optimizer.param_groups if self._optimizer else []
        lr_of = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        tracked = [(info, state) for info in self._perturbed if (state := self._state.get(info.stream)) is not None]
        means = numbers([state[SENSITIVITY_MEAN] for _, state in tracked])
        return [
            Observation(self.rule, lr_of.get(id(info.parameter), 0.0), mean, state[SENSITIVITY])
            for (info, state), mean in zip(tracked, means, strict=True)
        ]
