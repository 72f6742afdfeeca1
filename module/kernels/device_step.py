"""The host's side of a step on a GPU: tables of addresses and settings, and the launches of :mod:`module.kernels.cuda`.

Nothing here waits for the device but :meth:`DeviceStep.refused`. The functions do not ask what the device is: with
CPU tensors and Triton's interpreter they do the same step, which is how the tests run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise import BLOCK, WORD, mask_threshold
from ..pats_rule import PATSRule
from .device_table import NO_NAME, Column, Draw, Flag, Record, Setting
from .guard import PARAMETER, address, at_hand, check_apart, one_entry
from .mirror import Mirror
from .rows import INFINITY_NORM, MOMENTUM, RULE_NONE, SENSITIVITY, SENSITIVITY_MEAN, STEP
from .state import MOMENTS, TRACKED, State, addresses
from .step import DTYPES, NonFiniteGradient, check_gradient, check_parameter

_REDUCE_CHUNK = 1024  # fixes the order of a tensor's sum
_WARPS = 2  # of a block's program: each thread holds 4 neighbouring entries, 16 bytes, of each quarter


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """What the tensors of a parameter group share."""

    settings: np.ndarray
    """float64 (len(Setting),)."""
    lr: Tensor | None = None
    """The learning rate as a tensor on the device, read there; None: the one in the settings."""
    rule: int = RULE_NONE
    scale: bool = False
    """SAGE's factor on the update."""
    noise: bool = False

    def at(self, lr: float | Tensor) -> DeviceGroup:
        """The same with a learning rate; a tensor on the device is read there, so that a captured graph follows it."""
        there = lr if isinstance(lr, Tensor) and on_device(lr) else None
        settings = self.settings.copy()
        settings[Setting.LR] = float(lr) if there is None else 0.0
        return replace(self, settings=settings, lr=there)


class Member:
    """A parameter in a step, with its state."""

    __slots__ = ("addresses", "gradient", "group", "identity", "name", "parameter", "state", "theta")

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        group: int,
        identity: int | None,
        state: State,
        moments: bool = True,
    ) -> None:
        check_parameter(name, parameter)
        gradient = parameter if parameter.grad is None else parameter.grad  # none is needed for the noise alone
        if type(gradient) is Tensor and gradient.layout != torch.strided:
            raise RuntimeError(
                f"The gradient of {name!r} is sparse: on {parameter.device.type} dense gradients are needed "
                "(Embedding(sparse=False))"
            )
        if hasattr(parameter, "unmasked_grad"):
            raise NotImplementedError(
                f"The gradient of {name!r} is masked: on {parameter.device.type} sensitivities cannot be taken of the "
                "whole one yet: use the CPU, or the masking method without PATS and SAGE"
            )
        self.name, self.parameter, self.group, self.state = name, parameter, group, state
        self.identity = identity
        """In the noise stream; None: no sensitivity and no noise."""
        self.theta, theta_at = at_hand(name, PARAMETER, parameter, None)
        check_gradient(name, "gradient", parameter, gradient)
        if gradient.dtype not in DTYPES:
            raise TypeError(f"gradient of {name!r} is {gradient.dtype}: float32, bfloat16 or float16 is needed")
        self.gradient, gradient_at = at_hand(name, "gradient", gradient, None)
        keys = (*(MOMENTS if moments else (STEP,)), *(TRACKED if identity is not None else ()))
        found = dict(zip(keys, addresses(name, parameter, state, keys), strict=True))
        columns = (MOMENTUM, INFINITY_NORM, SENSITIVITY, STEP, SENSITIVITY_MEAN)
        self.addresses = (theta_at, gradient_at, *(found.get(key, 0) for key in columns))

    def write_back(self) -> None:
        """Copy the updated values into a parameter that is not contiguous."""
        if self.theta is not self.parameter:
            self.parameter.detach().copy_(self.theta)

    def row(self, lr: Tensor | None, name: int) -> tuple[int, ...]:
        """The columns of the table, with 0 for the first block."""
        identity = self.identity or 0
        return (
            *self.addresses,
            0 if lr is None else address("lr", PARAMETER, lr, lr.shape, torch.float32, lr.device),
            self.theta.numel(), 0, identity - ((identity >> 63) << 64), self.group, name,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Launch:
    """Blocks that one compiled variant of the kernels takes."""

    first: int
    blocks: int
    group: DeviceGroup
    track: bool
    theta: torch.dtype
    gradient: torch.dtype


class DeviceStep:
    """What the steps of one optimizer on one device keep between calls.

    Args:
        device: The device of every tensor.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._table, self._settings = Mirror(device), Mirror(device)
        self._block_rows: dict[bytes, Tensor] = {}  # by the tensors' sizes; never changed, so graphs may use them
        self._blocks = self._zero = torch.zeros(1, dtype=torch.float32, device=device)
        self._flags = torch.tensor([NO_NAME, 0, 0, NO_NAME], dtype=torch.int32, device=device)
        self._one = torch.ones(1, dtype=torch.float32, device=device)
        self._names: dict[str, int] = {}
        self._scratch: dict[str, Tensor] = {}
        self._grown: list[Tensor] = []  # former scratch, which a captured graph may still use
        self._launches: list[_Launch] = []
        self._lrs: list[Tensor] = []
        self.members: list[Member] = []
        self._aligned = False
        self._grad_scale = self._one

    def begin(self, members: Sequence[Member], groups: Sequence[DeviceGroup], grad_scale: Tensor | None = None) -> None:
        """Bring the tables up to date; addresses are sent only when they have changed.

        Args:
            members: The tensors of the step, none of them empty.
            groups: The parameter groups, as the members number them.
            grad_scale: What gradients are divided by, one entry; None: 1.
        """
        _load_kernels()  # or say now that there are none
        kinds = [(_kind(member, groups[member.group]), i) for i, member in enumerate(members)]
        order = [i for _, i in sorted(kinds)]
        self.members = [members[i] for i in order]
        self._lrs = [self._at_home(group.lr) for group in groups if group.lr is not None]
        lr_of = iter(self._lrs)
        lrs = [None if group.lr is None else next(lr_of) for group in groups]
        rows = np.array([m.row(lrs[m.group], self._number(m.name)) for m in self.members], np.int64)
        states = {c.name.lower(): rows[:, c] for c in (Column.MOMENTUM, Column.INFINITY_NORM, Column.SENSITIVITY)}
        check_apart([m.name for m in self.members], [m.parameter for m in self.members], states)
        blocks = -(-rows[:, Column.SIZE] // BLOCK)
        rows[:, Column.FIRST_BLOCK] = np.cumsum(blocks) - blocks
        self._aligned = not (rows[:, : Column.STEP] % 16).any()
        self._grad_scale = self._one if grad_scale is None else self._at_home(grad_scale)
        self._launches = []
        with _current(self.device):
            self._table.put(rows)
            self._settings.put(np.stack([group.settings for group in groups]))
            self._blocks = self._rows_of_blocks(blocks)
            self._make_room(len(rows), int(blocks.sum()))
        for _, part in groupby(range(len(rows)), key=lambda i: kinds[order[i]][0]):
            span = list(part)
            member, first = self.members[span[0]], int(rows[span[0], Column.FIRST_BLOCK])
            dtypes = member.theta.dtype, member.gradient.dtype
            tracked = member.identity is not None
            self._launches.append(_Launch(first, int(blocks[span].sum()), groups[member.group], tracked, *dtypes))

    def measure(self, found_inf: Tensor | None = None) -> None:
        """Sum |theta g|, look for gradients that are not finite, decide on the step, advance counts and means.

        Args:
            found_inf: Not 0 where a gradient scaler has found the step unfit, one entry; None: 0.
        """
        kernels, table, scratch = _load_kernels(), self._table.tensor, self._scratch
        n = len(self.members)
        with _current(self.device):
            for launch in self._launches:
                kernels.measure_blocks[(launch.blocks,)](
                    table, self._blocks, launch.first, scratch["sums"], self._flags, self._grad_scale,
                    TRACK=launch.track, ALIGNED=self._aligned,
                    THETA=kernels.DTYPES[launch.theta], GRADIENT=kernels.DTYPES[launch.gradient],
                    num_warps=_WARPS, enable_fp_fusion=False,
                )  # fmt: skip
            kernels.reduce_rows[(n,)](table, scratch["sums"], scratch["row_sums"], CHUNK=_REDUCE_CHUNK)
            kernels.advance_rows[(1,)](
                table, self._settings.tensor, scratch["row_sums"], scratch["records"], scratch["draws"], self._flags,
                self._zero if found_inf is None else self._at_home(found_inf), n,
                ROWS=max(256, 1 << (n - 1).bit_length()), num_warps=8, enable_fp_fusion=False,
            )  # fmt: skip

    def update(self, *, before: bool = True, after: bool = True) -> None:
        """Do the step itself, unless the device has decided to skip it.

        Args:
            before: Update sensitivities.
            after: Subtract the noise.
        """
        kernels = _load_kernels()
        with _current(self.device):
            for launch in self._launches:
                group = launch.group
                kernels.update_blocks[(launch.blocks,)](
                    self._table.tensor, self._blocks, launch.first, self._scratch["records"],
                    self._scratch["draws"], self._flags, self._grad_scale,
                    RULE=group.rule, TRACK=launch.track and before, SCALE=launch.track and group.scale,
                    NOISE=launch.track and group.noise and after, ALIGNED=self._aligned,
                    THETA=kernels.DTYPES[launch.theta], GRADIENT=kernels.DTYPES[launch.gradient],
                    num_warps=_WARPS, enable_fp_fusion=False,
                )  # fmt: skip
            for member in self.members:
                member.write_back()
        self.members = []

    def refused(self) -> tuple[int, str | None]:
        """Steps refused since the last call and the name of the first offender; waits for the device."""
        flags = self._flags.tolist()
        count = flags[Flag.REFUSED]
        if not count:
            return 0, None
        self._flags[Flag.REFUSED] = 0
        return count, list(self._names)[flags[Flag.FIRST_BAD]]

    def _rows_of_blocks(self, blocks: np.ndarray) -> Tensor:
        key = blocks.tobytes()
        if key not in self._block_rows:
            rows = torch.from_numpy(np.repeat(np.arange(len(blocks), dtype=np.int32), blocks))
            self._block_rows[key] = rows.to(self.device)
        return self._block_rows[key]

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def _at_home(self, value: Tensor) -> Tensor:
        one_entry("lr or scale", value)
        return value.detach().to(self.device, torch.float32, non_blocking=True)

    def _make_room(self, rows: int, blocks: int) -> None:
        shapes = {
            "sums": ((blocks,), torch.float64),
            "row_sums": ((rows,), torch.float64),
            "records": ((rows, len(Record)), torch.float32),
            "draws": ((rows, len(Draw)), torch.int32),
        }
        for name, (shape, dtype) in shapes.items():
            there = self._scratch.get(name)
            if there is None or there.shape[0] < shape[0]:
                if there is not None:
                    self._grown.append(there)
                self._scratch[name] = torch.zeros(shape, dtype=dtype, device=self.device)


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor is updated by these kernels."""
    return tensor.is_cuda


def raise_refused(steps: Iterable[DeviceStep]) -> None:
    """Raise NonFiniteGradient if any of them has refused a step since the last look; waits for the device."""
    for step in steps:
        count, name = step.refused()
        if name is not None:
            raise NonFiniteGradient(name, count)


def _kind(member: Member, group: DeviceGroup) -> tuple[Any, ...]:
    """Members of one kind share a launch."""
    tracked = member.identity is not None
    dtypes = str(member.theta.dtype), str(member.gradient.dtype)
    return not tracked, *dtypes, group.rule, tracked and group.scale, tracked and group.noise


def new_settings() -> np.ndarray:
    """Settings of a group without a sensitivity, all else 0."""
    settings = np.zeros(len(Setting))
    settings[Setting.SENSITIVITY_EPS] = 1.0
    return settings


def fill_device_sensitivity(settings: np.ndarray, beta: float, eps: float) -> None:
    """Set the columns of the sensitivity's moving average, Equation 2."""
    settings[Setting.BETA], settings[Setting.ONE_MINUS_BETA] = np.float32(beta), np.float32(1.0 - beta)
    settings[Setting.SENSITIVITY_EPS] = eps


def fill_device_rule(settings: np.ndarray, rule: PATSRule, seed: int) -> None:
    """Set the columns of a rule of PATS and of the noise stream."""
    fill_device_sensitivity(settings, rule.sensitivity_beta, rule.sensitivity_eps)
    settings[Setting.NOISE_SCALE], settings[Setting.NOISE_TIMES_LR] = rule.scale, bool(rule.noise_times_lr)
    settings[Setting.UPPER], settings[Setting.LOWER] = rule.limits(1.0)
    settings[Setting.UPPER_TIMES_MEAN] = rule.threshold_mode == "relative"
    settings[Setting.MAX_RATIO] = np.inf if rule.max_ratio is None else rule.max_ratio
    settings[Setting.MODEL_MEAN] = rule.mean_scope == "model"
    settings[Setting.TENSOR_MASK] = rule.mask_scope == "tensor"
    settings[Setting.MASK_THRESHOLD] = mask_threshold(rule.noise_probability)
    settings[Setting.KEY_LOW], settings[Setting.KEY_HIGH] = seed & WORD, seed >> 32


def _load_kernels() -> Any:
    try:
        from . import cuda
    except ImportError as error:
        raise RuntimeError(f"Parameters on CUDA need the package triton ({error}): pip install triton") from error
    return cuda


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
