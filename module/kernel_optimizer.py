"""The frame of an optimizer whose whole step is one call of a compiled kernel over a table of all tensors."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, overload

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from .choice import Choice, Chosen, flag_of
from .chosen_table import Row, chosen_line, chosen_table
from .kernels.backend import on_device
from .kernels.engine import Engine
from .kernels.guard import check_whole
from .kernels.member import Member, check_parameter
from .kernels.rows import GroupSettings
from .kernels.state import MOMENTS
from .layer_stack import LayerStack
from .loading import prepare_state_dict
from .noise import tensor_id
from .param_index import ParamIndex

log = logging.getLogger(__name__)

Group = dict[str, Any]
_VERBS = {"perturb": "PATS perturbs", "scale": "SAGE scales"}


class KernelOptimizer(Optimizer):
    """Collects tensors, refuses non-finite gradients, keeps float32 state, and calls the kernel once per step.

    A subclass checks its groups (``check_group``) and states their settings (``settings``). Tensors may be treated in
    two ways: a subclass with a ``selection_key`` treats weights and biases of the encoder layers specially, or those of
    the user's choice. A group that sets the key to True or False overrules both, also when it does so later.
    """

    selection_key: ClassVar[str | None] = None
    takes_row_sparse: ClassVar[bool] = True
    """Whether gradients of tensors without a sensitivity may be row-sparse."""
    former_defaults: ClassVar[dict[str, Any]] = {}
    """Values of hyper-parameters that pickles of earlier versions lack."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], chosen: Chosen | None = None) -> None:
        self._choice = None if chosen is None else Choice(str(self.selection_key), chosen)
        self._listed: list[Member] = []
        self._asked: list[Any] | None = None  # what the list follows from
        self._engine = Engine(MOMENTS)
        super().__init__(params.named_parameters() if isinstance(params, nn.Module) else params, defaults)
        if self._choice is not None:
            self._choice.check([name for name, _ in self._named_parameters()])
        for member in self._members():
            if member.identity is not None:
                check_whole(member.name, member.parameter)
        any_chosen = any(m.parameter.requires_grad and m.identity is not None for m in self._members())
        if self.selection_key and not any_chosen:
            warn_that_nothing_is_chosen(type(self).__name__, self.selection_key, stacklevel=4)
        elif self.selection_key:
            log.info("%s", chosen_line(self._verb, *self._chosen_rows()))
        low = [pair for pair in self._named_parameters() if pair[1].dtype in (torch.bfloat16, torch.float16)]
        for name, parameter in low[:1]:
            warnings.warn(
                f"{name!r} is {parameter.dtype}: updates and noise below its resolution are rounded away; keep "
                "parameters in float32 and use torch.autocast for speed",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of copies and pickles; a choice by a function is pickled if the function can be."""
        return {**super().__getstate__(), "_choice": self._choice}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after pickling, copying or loading."""
        self.__dict__.setdefault("_choice", None)
        super().__setstate__(state)
        for key, value in self.former_defaults.items():
            self.defaults.setdefault(key, value)
        for group in self.param_groups:
            for key in self.defaults.keys() - {"differentiable"}:  # which torch adds to the defaults of copies
                group.setdefault(key, self.defaults[key])
        self._listed, self._asked = [], None
        self.__dict__.setdefault("_engine", Engine(MOMENTS)).forget()  # captured graphs use its tables

    def check_group(self, group: Group) -> None:
        """Raise ValueError if a hyper-parameter of a group is out of range."""
        raise NotImplementedError

    def settings(self, group: Group) -> dict[str, Any]:
        """State what a group's tensors share in a step, as :class:`module.kernels.rows.GroupSettings` names it."""
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; see :class:`torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_group(group)
            flag_of(group, self.selection_key or "")
            for name, parameter in named_in_group(group, len(self.param_groups) - 1):
                check_parameter(name, parameter)
        except Exception:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            NonFiniteGradient: If a gradient on the CPU is not finite; nothing has been changed then. On a GPU the host
                does not wait to see: the step is skipped there, and :meth:`check_refused` raises.
            TypeError: If a parameter, gradient or entry of the state is no plain tensor of its dtype; nothing has been
                changed then.
            ValueError: If its shape, device, layout or storage is another than the parameter's, or two share memory;
                nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Everything that can be refused is, before anything is changed.
        groups = [GroupSettings(**self.settings(group)) for group in self.param_groups]
        self._engine.measure(self, self._members(), self.state, groups)
        self._engine.update()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # Asked by torch.amp.GradScaler: it then leaves unscaling and skipping to step(), and need not wait for the GPU.
        return all(on_device(member.parameter) for member in self._members())

    def check_refused(self) -> None:
        """Raise if steps have been refused on a GPU since the last call; waits for it. On the CPU step() raises.

        Raises:
            NonFiniteGradient: With the name of the first tensor. Steps that a gradient scaler skips do not count.
        """
        self._engine.check_refused()

    def _members(self) -> list[Member]:
        """All parameters, selected or not as the groups say now; the same list while they say the same."""
        key = self.selection_key
        asked = [
            ([*map(id, g["params"])], [*(g.get("param_names") or ())], key and g.get(key, ...), g.get("perturb_biases"))
            for g in self.param_groups
        ]
        if self._asked != asked:
            selected = self._select() if key else {}
            self._listed = [
                Member(name, parameter, number, selected.get(id(parameter)), parameter)
                for number, group in enumerate(self.param_groups)
                for name, parameter in named_in_group(group, number)
            ]
            self._asked = asked
        return self._listed

    def _select(self) -> dict[int, int | None]:
        """Per parameter its identity in the noise stream, or None if it is not selected."""
        key = self.selection_key
        if any("param_names" not in group for group in self.param_groups):
            raise ValueError(
                f"{type(self).__name__} chooses tensors by their role and needs names: pass model.named_parameters(), "
                'the model, or groups like {"params": [(name, parameter), ...]}'
            )
        flags = [flag_of(group, key or "") for group in self.param_groups]
        by_role = self._choice is None and None in flags
        index = ParamIndex(self._named_parameters(), needs_layers=by_role)
        selected: dict[int, int | None] = {}
        for group, flag in zip(self.param_groups, flags, strict=True):
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                info, chosen = index[name], flag
                if chosen is None and self._choice is not None:
                    chosen = self._choice(name, parameter)
                elif chosen is None:
                    chosen = info.is_inner(group.get("perturb_biases", True))
                selected[id(parameter)] = tensor_id(info.stream) if chosen else None
        return selected

    def summary(self) -> str:
        """Return a table of the parameters: what they are, and which of them are treated specially."""
        return chosen_table(self._verb, *self._chosen_rows())

    @property
    def _verb(self) -> str:
        return _VERBS.get(self.selection_key or "", f"{type(self).__name__} perturbs")

    def _chosen_rows(self) -> tuple[list[Row], list[LayerStack]]:
        index = ParamIndex(self._named_parameters(), needs_layers=False)
        chosen = {member.name for member in self._members() if member.identity is not None}
        return [(info, info.name in chosen) for info in index], index.stacks

    def _named_parameters(self) -> Iterator[tuple[str, Any]]:
        return (pair for number, group in enumerate(self.param_groups) for pair in named_in_group(group, number))

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; the state keeps its own precision, which torch casts to the parameters'.

        A state of :class:`torch.optim.Adamax`, or of another optimizer of this module, is taken as far as it goes: what
        groups lack stays as it is, and a sensitivity that is missing starts at zero.

        Raises:
            ValueError: If it does not fit these parameters, or is another optimizer's; nothing has been changed then.
            TypeError: As ValueError.
        """
        handle = self.register_load_state_dict_pre_hook(_prepared)  # the last of them: it sees what others return
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()


def _prepared(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, KernelOptimizer)
    return prepare_state_dict(optimizer, state_dict, optimizer.check_group)


def named_in_group(group: Group, number: int) -> Iterator[tuple[str, Any]]:
    """Pairs of name and parameter; parameters given without names are numbered.

    Raises:
        ValueError: If there are more or fewer names than parameters.
    """
    names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
    if len(names) != len(group["params"]):
        raise ValueError(
            f"Group {number} has {len(group['params'])} parameters and {len(names)} names: change both together, or "
            "train with DistributedDataParallel (DeepSpeed's ZeRO and FSDP put flat tensors in the parameters' place)"
        )
    return zip(names, group["params"], strict=True)


def warn_that_nothing_is_chosen(who: str, verb: str, stacklevel: int) -> None:
    """Warn that there is no tensor whose sensitivity counts."""
    warnings.warn(
        f"{who} has nothing to {verb}: every weight and bias of the encoder layers is frozen or excluded: unfreeze a "
        f"layer, or leave {who} out",
        stacklevel=stacklevel,
    )
