"""The processes that torchrun started for one Trainer."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run, and which of them this one is; every method is a collective.

    Args:
        rank: Of this process.
        size: Their number; with 1 nothing is sent.
        device: Where tensors are when they are sent: NCCL takes a GPU's alone.
    """

    rank: int
    size: int
    device: torch.device

    def all_reduce(self, tensor: Tensor, operation: Any = None) -> None:
        """Replace a tensor by its sum (or another operation) over the processes."""
        sent = tensor.to(self.device)
        dist.all_reduce(sent, dist.ReduceOp.SUM if operation is None else operation)
        if sent is not tensor:
            tensor.copy_(sent)

    def sum(self, value: int) -> int:
        """Return the sum of the processes' whole numbers."""
        if self.size == 1:
            return value
        box = torch.tensor(value, dtype=torch.int64, device=self.device)
        self.all_reduce(box)
        return int(box)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank; their tensors are on the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def of_first(self, state: Any) -> Any:
        """Return the first process's tensors and plain values; on the others tensors are on the CPU."""
        buffer = io.BytesIO()
        if not self.rank:
            torch.save(state, buffer)
        box: list[Any] = [buffer.getvalue()]
        dist.broadcast_object_list(box, 0)
        return state if not self.rank else torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=True)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of all processes with the first one's."""
        for tensor in tensors:
            sent = tensor.detach().to(self.device).contiguous()
            dist.broadcast(sent, 0)
            tensor.detach().copy_(sent)  # nothing, where it is itself
