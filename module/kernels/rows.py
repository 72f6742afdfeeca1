"""The tables that a step is made of, on every device; each column is declared here, once.

The host states the settings of each parameter group (:class:`GroupSettings`). The step of a tensor needs them worked
out for that tensor: on the CPU :mod:`module.kernels.host_step` expands them into rows of :data:`ROW`; a GPU is sent
``TENSOR`` and ``SETTINGS`` and fills ``RECORD`` and ``DRAW`` itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from operator import attrgetter
from typing import Any

import numpy as np

from ..noise import BLOCK

# Rules of the deterministic update `d`.
RULE_NONE, RULE_MTDNN, RULE_TORCH = 0, 1, 2

TENSOR = np.dtype(
    [
        # Addresses of contiguous arrays of `size` entries, float32 on the CPU; 0 where there is none.
        ("theta", np.int64),
        ("gradient", np.int64),
        ("update_gradient", np.int64),  # what the update takes: the same, but where a mask has left part of it
        ("momentum", np.int64),  # m
        ("infinity_norm", np.int64),  # u
        ("sensitivity", np.int64),  # EMA of |theta g|, the paper's sensitivity indicator
        # Addresses of scalars.
        ("step_at", np.int64),  # float32, updates of this tensor so far
        ("mean_at", np.int64),  # float64, the tensor's mean sensitivity; 0: the tensor has no sensitivity
        ("lr_at", np.int64),  # float32 on a GPU; 0: the settings' value
        ("gradient_stride", np.int64),  # bytes from one entry's gradient to the next: 4, or 0 where one block is all
        ("size", np.int64),
        ("first_block", np.int64),  # number of blocks in the rows before this one
        ("identity", np.int64),  # in the noise stream
        ("group", np.int64),  # row of the settings
        ("name", np.int64),  # number of the tensor's name
    ]
)
_names = TENSOR.names or ()
ARRAYS, SCALARS = _names[:6], _names[6:8]


@dataclass(frozen=True, slots=True)
class EntrySettings:
    """Settings that the update of an entry takes as the group states them."""

    beta1: float = 0.0
    one_minus_beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    weight_decay: float = 0.0
    beta: float = 0.0  # of the sensitivity
    one_minus_beta: float = 0.0
    sensitivity_eps: float = 1.0
    lower: float = 0.0  # perturbed only where mean / (sensitivity + eps) >= lower
    max_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class GroupSettings(EntrySettings):
    """The settings that the tensors of a parameter group share in a step."""

    rule: int = RULE_NONE
    bias_correction: bool = False  # the step size is lr / (1 - beta1^t)
    scale: bool = False  # SAGE's factor on the update
    noise: bool = False  # subtract the noise
    noise_scale: float = 0.0
    noise_times_lr: bool = False
    threshold: float = 0.0  # perturbed only where sensitivity < threshold
    threshold_times_mean: bool = False  # ... which is a multiple of the mean
    model_mean: bool = False  # the mean over the model
    tensor_mask: bool = False  # one mask draw per tensor
    mask_threshold: int = 0  # an entry is perturbed if its 12 mask bits are below it
    key_low: int = 0
    key_high: int = 0
    lr: Any = 0.0  # a number, or a tensor of one; last, see settings_table


AS_STATED = tuple(field.name for field in fields(EntrySettings))
SETTINGS = np.dtype([(field.name, np.float64) for field in fields(GroupSettings)])
RECORD = np.dtype(  # begins as the settings do, so that a GPU copies that part as it stands
    [
        *((name, np.float32) for name in AS_STATED),
        ("step_size", np.float32),  # learning rate, with the bias correction where the rule has one
        ("mean", np.float32),  # mean sensitivity of the tensor, or of the model
        ("amplitude", np.float32),  # noise scale, times the learning rate where the rule says so
        ("upper", np.float32),  # perturbed only where sensitivity < upper
    ]
)
DRAW = np.dtype(
    [
        ("step", np.uint32),  # updates of this tensor, counting this one
        ("mask_threshold", np.int32),
        ("key_low", np.uint32),
        ("key_high", np.uint32),
    ]
)
_TASK = np.dtype(  # of a row on the CPU; on a GPU tensors with other tasks are other launches
    [
        ("track", np.int32),  # 1: update the sensitivity
        ("scale", np.int32),  # 1: SAGE's factor on the update
        ("rule", np.int32),
        ("noise", np.int32),  # 1: subtract the noise
        ("inverse_scale", np.float32),  # of the gradients
    ]
)
ROW = np.dtype([*TENSOR.descr, *RECORD.descr, *DRAW.descr, *_TASK.descr], align=True)


class Flag(IntEnum):
    """The flags that a step on a GPU leaves behind, int32."""

    BAD = 0  # smallest number of a name whose gradient is not finite, in the step under way; NO_NAME: none
    SKIP = 1  # 1: the step under way changes nothing
    REFUSED = 2  # steps refused since the host last looked
    FIRST_BAD = 3  # the name's number of the first of them


NO_NAME = 0x7FFFFFFF

_values = attrgetter(*(name for name in SETTINGS.names or () if name != "lr"))


def settings_table(groups: Sequence[GroupSettings]) -> np.ndarray:
    """Return the settings of groups as a table; learning rates, which may lie on a device, are 0 in it."""
    values = np.array([(*_values(group), 0.0) for group in groups], np.float64)
    table: np.ndarray = values.view(SETTINGS).reshape(len(groups))
    for column in ("beta", "one_minus_beta"):  # means advance by what the entries advance by
        table[column] = table[column].astype(np.float32)
    return table


def new_table(sizes: list[int], kind: np.dtype = ROW) -> np.ndarray:
    """Make an empty table for tensors of these sizes, with the blocks numbered."""
    rows = np.zeros(len(sizes), kind)
    rows["size"] = sizes
    rows["gradient_stride"] = 4
    if "inverse_scale" in (kind.names or ()):
        rows["inverse_scale"] = 1.0
    number_blocks(rows)
    return rows


def number_blocks(rows: np.ndarray) -> None:
    """Number the blocks of a table through, row after row."""
    blocks = -(-rows["size"] // BLOCK)
    rows["first_block"] = np.cumsum(blocks) - blocks


def count_blocks(rows: np.ndarray) -> int:
    """Return the number of blocks of a table."""
    return int(rows["first_block"][-1] + -(-rows["size"][-1] // BLOCK)) if len(rows) else 0
