"""The frame of an optimizer whose whole step is one call of a compiled kernel over a table of all tensors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from .kernels.cpu import update_rows
from .kernels.device_step import DeviceGroup, DeviceStep, Member, on_device, raise_refused
from .kernels.device_table import Setting
from .kernels.guard import check_apart
from .kernels.rows import SENSITIVITY_MEAN, STATE_COLUMNS, STEP
from .kernels.state import MOMENTS, TRACKED, State, addresses, at_home, new_entries, steps_made
from .kernels.step import (
    Operand,
    check_parameter,
    first_pass,
    split_row_sparse,
    warn_about_low_precision,
    warn_that_nothing_is_chosen,
)
from .loading import prepare_state_dict
from .noise import tensor_id
from .param_index import Kind, ParamIndex, encoder_path

Group = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepTable:
    """One step's tensors, row by row."""

    rows: np.ndarray
    states: list[State]
    identities: list[int | None]
    """Identity in the noise stream of selected tensors; None: not selected."""
    means: np.ndarray
    """Mean of |theta g| of selected tensors, float64."""
    spans: list[tuple[Group, slice]]
    """Parameter groups and their rows."""

    def sensitivity_means(self) -> np.ndarray:
        """Mean sensitivity of each selected tensor after the step: the average is linear, so its mean needs no pass."""
        tracked = self.rows["track"].tolist()
        before = [float(s[SENSITIVITY_MEAN]) if there else 0.0 for s, there in zip(self.states, tracked, strict=True)]
        beta, rest = (self.rows[name].astype(np.float64) for name in ("beta", "one_minus_beta"))
        advanced: np.ndarray = np.where(tracked, beta * np.array(before) + rest * self.means, 0.0)
        return advanced

    def advance(self) -> None:
        """Count the step, and keep the means."""
        means = self.sensitivity_means().tolist()
        for state, tracked, mean in zip(self.states, self.rows["track"].tolist(), means, strict=True):
            state[STEP] += 1
            if tracked:
                state[SENSITIVITY_MEAN].fill_(mean)


class KernelOptimizer(Optimizer):
    """Collects tensors, refuses non-finite gradients, keeps float32 state, and calls the kernel once per step.

    A subclass checks its groups (``check_group``) and fills the table (``fill``). Tensors may be treated in two ways:
    a subclass with a ``selection_key`` treats weights and biases of the encoder layers specially, or the groups that
    set the key to True.
    """

    selection_key: ClassVar[str | None] = None
    takes_row_sparse: ClassVar[bool] = True
    """Whether gradients of tensors without a sensitivity may be row-sparse."""
    former_defaults: ClassVar[dict[str, Any]] = {}
    """Values of hyper-parameters that pickles of earlier versions lack."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._selected: dict[int, int | None] = {}  # id of a parameter -> its identity if selected
        self._asked: list[Any] | None = None  # what that follows from
        self._device_steps: dict[torch.device, DeviceStep] = {}
        super().__init__(params, defaults)
        selection = self._selection()
        if self.selection_key and not any(p.requires_grad and selection[id(p)] is not None for p in self._parameters()):
            warn_that_nothing_is_chosen(type(self).__name__, self.selection_key, stacklevel=4)
        warn_about_low_precision(self._named_parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after pickling, copying or loading."""
        super().__setstate__(state)
        for key, value in self.former_defaults.items():
            self.defaults.setdefault(key, value)
        for group in self.param_groups:
            for key in self.defaults.keys() - {"differentiable"}:  # which torch adds to the defaults of copies
                group.setdefault(key, self.defaults[key])
        self._asked = None
        self.__dict__.setdefault("_device_steps", {})  # loading keeps them: captured graphs use their tables

    def check_group(self, group: Group) -> None:
        """Raise ValueError if a hyper-parameter of a group is out of range."""
        raise NotImplementedError

    def fill(self, table: StepTable) -> None:
        """Fill in the table's hyper-parameters."""
        raise NotImplementedError

    def device_group(self, group: Group) -> DeviceGroup:
        """Say what :meth:`fill` says of one group to the kernels of a GPU."""
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; see :class:`torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_group(group)
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
        operands, spans = self._operands()
        device_steps = self._begin_on_devices(with_host=bool(operands))
        if operands:
            self._step_on_host(operands, spans)
        for step in device_steps:
            self.state.update((member.parameter, member.state) for member in step.members)
            step.measure(getattr(self, "found_inf", None))
            step.update()
        return loss

    def _step_on_host(self, operands: list[Operand], spans: list[tuple[Group, slice]]) -> None:
        selection = self._selection()
        identities = [selection[id(operand.parameter)] for operand in operands]
        rows, means = first_pass(operands, [identity is not None for identity in identities])
        states = [
            self._state_of(operand.parameter, tracked) for operand, tracked in zip(operands, rows["track"], strict=True)
        ]
        found = [
            addresses(operand.name, operand.parameter, state, MOMENTS if identity is None else (*MOMENTS, *TRACKED))
            for operand, state, identity in zip(operands, states, identities, strict=True)
        ]
        rows["momentum"], rows["infinity_norm"] = np.array([at[1:3] for at in found], np.int64).T
        rows["sensitivity"] = [at[3] if len(at) > 3 else 0 for at in found]
        parts = {key: rows[column] for key, column in STATE_COLUMNS.items()}
        check_apart([o.name for o in operands], [o.parameter for o in operands], parts)
        rows["step"] = [steps_made(o.name, state) + 1 for o, state in zip(operands, states, strict=True)]
        table = StepTable(rows, states, identities, means, spans)
        self.fill(table)
        update_rows(split_row_sparse(rows, operands))
        for operand, state in zip(operands, states, strict=True):
            operand.write_back()
            self.state[operand.parameter] = state
        table.advance()

    def _begin_on_devices(self, with_host: bool) -> list[DeviceStep]:
        selection = self._selection()
        members: dict[torch.device, list[Member]] = {}
        for number, group in enumerate(self.param_groups):
            for name, parameter in named_in_group(group, number):
                if parameter.grad is not None and on_device(parameter) and parameter.numel():
                    identity = selection[id(parameter)]
                    state = self._state_of(parameter, identity is not None)
                    member = Member(name, parameter, number, identity, state)
                    members.setdefault(parameter.device, []).append(member)
        if not members:
            return []
        groups = [self.device_group(group) for group in self.param_groups]
        if len(members) + with_host > 1 and any(group.settings[Setting.MODEL_MEAN] for group in groups):
            raise ValueError("Invalid mean_scope: 'model' with parameters on several devices: 'tensor' is needed there")
        for device, there in members.items():
            if device not in self._device_steps:
                self._device_steps[device] = DeviceStep(device)
            self._device_steps[device].begin(there, groups, getattr(self, "grad_scale", None))
        return [self._device_steps[device] for device in members]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # Asked by torch.amp.GradScaler: it then leaves unscaling and skipping to step(), and need not wait for the GPU.
        return all(on_device(parameter) for parameter in self._parameters())

    def check_refused(self) -> None:
        """Raise if steps have been refused on a GPU since the last call; waits for it. On the CPU step() raises.

        Raises:
            NonFiniteGradient: With the name of the first tensor. Steps that a gradient scaler skips do not count.
        """
        raise_refused(self._device_steps.values())

    def _operands(self) -> tuple[list[Operand], list[tuple[Group, slice]]]:
        operands: list[Operand] = []
        spans: list[tuple[Group, slice]] = []
        for number, group in enumerate(self.param_groups):
            start = len(operands)
            for name, parameter in named_in_group(group, number):
                if parameter.grad is not None and parameter.numel() and not on_device(parameter):
                    operands.append(Operand(name, parameter))
            spans.append((group, slice(start, len(operands))))
        return operands, spans

    def _state_of(self, parameter: Tensor, tracked: bool) -> State:
        """The state for the next step, which the optimizer's own becomes when the step is done."""
        state: State = self.state.get(parameter) or new_entries(parameter, MOMENTS)
        state = at_home(state, parameter.device)
        if tracked and not any(key in state for key in TRACKED):
            state = {**state, **new_entries(parameter, TRACKED)}
        return state

    def _selection(self) -> dict[int, int | None]:
        """Per parameter its identity in the noise stream, or None if it is not selected; as the groups say now."""
        key = self.selection_key
        asked = [
            (list(map(id, group["params"])), key and group.get(key), group.get("perturb_biases"))
            for group in self.param_groups
        ]
        if self._asked != asked:
            self._selected = self._select() if key else {id(p): None for p in self._parameters()}
            self._asked = asked
        return self._selected

    def _select(self) -> dict[int, int | None]:
        key = self.selection_key
        if any("param_names" not in group for group in self.param_groups):
            raise ValueError(
                f"{type(self).__name__} chooses tensors by their role and needs names: pass model.named_parameters(), "
                'or groups like {"params": [(name, parameter), ...]}'
            )
        explicit = {id(p): bool(group[key]) for group in self.param_groups if key in group for p in group["params"]}
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

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

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
    """Pairs of name and parameter; parameters given without names are numbered."""
    names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
    return zip(names, group["params"], strict=True)
