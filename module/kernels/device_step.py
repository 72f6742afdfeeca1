"""The host's side of a step on a GPU: tables of addresses and settings, and the launches of :mod:`module.kernels.cuda`.

Nothing here waits for the device but :meth:`DeviceStep.refused`. The functions do not ask what the device is: with
CPU tensors and Triton's interpreter they do the same step, which is how the tests run them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..noise import BLOCK
from .backend import on_device
from .guard import PARAMETER, address, one_entry
from .member import Member, tensor_table
from .mirror import Mirror
from .rows import (
    ARRAYS,
    DRAW,
    NO_NAME,
    RECORD,
    TENSOR,
    Flag,
    GroupSettings,
    count_blocks,
    number_blocks,
    settings_table,
)

_REDUCE_CHUNK = 1024  # fixes the order of a tensor's sum
_WARPS = 2  # of a block's program: each thread holds 4 neighbouring entries, 16 bytes, of each quarter


@dataclass(frozen=True, slots=True)
class _Launch:
    """Blocks that one compiled variant of the kernels takes."""

    first: int
    blocks: int
    group: GroupSettings
    track: bool
    theta: torch.dtype
    gradient: torch.dtype
    masked: bool


class DeviceStep:
    """The tables and scratch memory of one optimizer on one device, kept between its steps.

    Args:
        device: The device of every tensor.
    """

    live = True
    """What is to be left out the device decides."""

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
        self._variants: list[tuple[int, bool, bool]] | None = None  # that the launches are for
        self._launches: list[_Launch] = []
        self._lrs: list[Tensor | None] = []  # kept while the device reads them
        self.members: Sequence[Member] = []
        self._aligned = False
        self._grad_scale = self._one

    def lay_out(self, members: Sequence[Member]) -> None:
        """Make the table of prepared members, none of them empty; two that share memory are refused."""
        _load_kernels()  # or say now that there are none
        self._laid_out = tensor_table(members, TENSOR)
        self._laid_out["name"] = [self._names.setdefault(member.name, len(self._names)) for member in members]
        self._forms = [
            (member.theta.dtype, member.gradient.dtype, member.gradient is not member.update_gradient)
            for member in members
        ]
        self.members, self._variants = members, None

    def point(self, gradients: np.ndarray) -> None:
        """Say where the members' gradients, else as they were, lie now, int64 (members,)."""
        self._laid_out["gradient"] = self._laid_out["update_gradient"] = gradients

    def set(self, groups: Sequence[GroupSettings], grad_scale: Tensor | None = None) -> None:
        """Take the settings of the parameter groups and bring the tables up to date; what has changed is sent.

        A learning rate on a device, and what gradients are divided by, are read there: a captured graph follows them.
        """
        variants = [(group.rule, group.scale, group.noise) for group in groups]
        if variants != self._variants:
            self._variants = variants
            self._sort(groups)
        rows = self._laid_out[self._order]
        number_blocks(rows)
        rates = [self._rate(group.lr) for group in groups]
        self._lrs = [there for there, _, _ in rates]
        rows["lr_at"] = np.array([at for _, at, _ in rates])[rows["group"]]
        settings = settings_table(groups)
        settings["lr"] = [lr for _, _, lr in rates]
        self._aligned = not any((rows[column] % 16).any() for column in ARRAYS)
        self._grad_scale = self._one if grad_scale is None else self._at_home(grad_scale)
        with _current(self.device):
            self._table.put(_plain(rows))
            self._settings.put(_plain(settings))
            self._blocks = self._rows_of_blocks(_blocks(rows))
            self._make_room(len(rows), count_blocks(rows))

    def _sort(self, groups: Sequence[GroupSettings]) -> None:
        """Order the members by the variant of the kernels that they need."""

        def variant(i: int) -> tuple[Any, ...]:
            member, group = self.members[i], groups[self.members[i].group]
            tracked = member.identity is not None
            return not tracked, str(self._forms[i][0]), group.rule, tracked and group.scale, tracked and group.noise

        # The gradients' form divides launches and orders nothing: where there is no gradient any more, the order of the
        # records that were made with it must stay.
        self._order = sorted(range(len(self.members)), key=variant)
        blocks, first = _blocks(self._laid_out), 0
        self._launches = []
        for _, part in groupby(self._order, key=lambda i: (variant(i), self._forms[i])):
            span = list(part)
            member, count = self.members[span[0]], int(blocks[span].sum())
            group, tracked = groups[member.group], member.identity is not None
            self._launches.append(_Launch(first, count, group, tracked, *self._forms[span[0]]))
            first += count

    def _rate(self, lr: Any) -> tuple[Tensor | None, int, float]:
        """A learning rate as a tensor here, where that lies, and as a number where it is no tensor on a device."""
        if not (isinstance(lr, Tensor) and on_device(lr)):
            return None, 0, float(lr)
        there = self._at_home(lr)
        return there, address("lr", PARAMETER, there, there.shape, torch.float32, there.device), 0.0

    def measure(self, found_inf: Tensor | None) -> None:
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

    def update(self, before: bool, after: bool) -> None:
        """Do the step itself, unless the device has decided to skip it; see ``HostStep``."""
        kernels = _load_kernels()
        with _current(self.device):
            for launch in self._launches:
                group = launch.group
                kernels.update_blocks[(launch.blocks,)](
                    self._table.tensor, self._blocks, launch.first, self._scratch["records"],
                    self._scratch["draws"], self._flags, self._grad_scale,
                    RULE=group.rule, TRACK=launch.track and before, SCALE=launch.track and group.scale,
                    NOISE=launch.track and group.noise and after, MASKED=launch.masked, ALIGNED=self._aligned,
                    THETA=kernels.DTYPES[launch.theta], GRADIENT=kernels.DTYPES[launch.gradient],
                    num_warps=_WARPS, enable_fp_fusion=False,
                )  # fmt: skip

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

    def _at_home(self, value: Tensor) -> Tensor:
        one_entry("lr or scale", value)
        return value.detach().to(self.device, torch.float32, non_blocking=True)

    def _make_room(self, rows: int, blocks: int) -> None:
        shapes = {
            "sums": ((blocks,), torch.float64),
            "row_sums": ((rows,), torch.float64),
            "records": ((rows, RECORD.itemsize // 4), torch.float32),
            "draws": ((rows, DRAW.itemsize // 4), torch.int32),
        }
        for name, (shape, dtype) in shapes.items():
            there = self._scratch.get(name)
            if there is None or there.shape[0] < shape[0]:
                if there is not None:
                    self._grown.append(there)
                self._scratch[name] = torch.zeros(shape, dtype=dtype, device=self.device)


def _plain(table: np.ndarray) -> np.ndarray:
    """A table of columns of one type as a matrix."""
    plain: np.ndarray = table.view(table.dtype[0]).reshape(len(table), -1)
    return plain


def _blocks(rows: np.ndarray) -> np.ndarray:
    blocks: np.ndarray = -(-rows["size"] // BLOCK)
    return blocks


def _load_kernels() -> Any:
    try:
        from . import cuda
    except ImportError as error:
        raise RuntimeError(f"Parameters on CUDA need the package triton ({error}): pip install triton") from error
    return cuda


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
