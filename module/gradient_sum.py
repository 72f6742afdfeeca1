"""The sum of the gradients of all ranks of a data-parallel run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .clipping import gradient_values

_NONE, _ROWS, _DENSE = range(3)  # kinds of gradients


class AllReduces(Protocol):
    """The processes of a run."""

    def all_reduce(self, tensor: Tensor, operation: Any = ...) -> None:
        """Replace a tensor, on any device, by its sum (or another operation) over them, the same bits on all."""


class GradientSum:
    """Adds up the ranks' gradients of their shares of a step's examples.

    The losses are divided by the examples of the whole step before backward, so the sum is the mean over all of them
    however unevenly they are divided; a rank without an example adds zeros.

    One all-reduce of all gradients after the last backward, and not torch's DistributedDataParallel, because that
    averages inside of every backward (methods here make several and decide which of them count; SAM needs the sum in
    between), weighs ranks and not examples, waits for a backward that a rank without an example never makes, and takes
    no row-sparse gradients. What it would give is communication behind the computation.

    Args:
        ranks: The processes of the run.
        named: The trained parameters, the same on all ranks.
    """

    def __init__(self, ranks: AllReduces, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._ranks, self._named = ranks, named
        self._kinds: dict[Hashable, list[int]] = {}

    def __call__(self, loss: Tensor, step: Hashable = None) -> Tensor:
        """Replace gradients by their sums.

        Args:
            loss: () that travels with them, so that nobody waits for it.
            step: Kind of the step, the same on all ranks: steps of a kind give the same parameters gradients.

        Returns:
            () the sum of the losses.

        Raises:
            RuntimeError: A parameter has a gradient, or a kind of gradient, that none had at the first such step.
        """
        parts = []
        for kind, (_, parameter) in zip(self._agreed_kinds(step), self._named, strict=True):
            if kind == _ROWS:
                parts.append(self._all_rows(parameter))
            elif kind == _DENSE:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parts.append(parameter.grad)
        flat = torch.cat([*(part.reshape(-1) for part in parts), loss.reshape(1)])
        self._ranks.all_reduce(flat)
        sums = torch.split(flat[:-1], [part.numel() for part in parts])
        torch._foreach_copy_(parts, [found.view_as(part) for found, part in zip(sums, parts, strict=True)])
        return flat[-1].clone()

    def _agreed_kinds(self, step: Hashable) -> list[int]:
        """Return the kind of each gradient, agreed on once by the hosts: a rank without an example has none."""
        mine = [_kind(parameter) for _, parameter in self._named]
        if step not in self._kinds:
            kinds = torch.tensor(mine, dtype=torch.int64, device="cpu")
            self._ranks.all_reduce(kinds, dist.ReduceOp.MAX)
            self._kinds[step] = kinds.tolist()
        for (name, _), kind, agreed in zip(self._named, mine, self._kinds[step], strict=True):
            if kind not in (_NONE, agreed):
                raise RuntimeError(
                    f"the gradient of {name!r} is of another kind than in the first step of all processes"
                )
        return self._kinds[step]

    def _all_rows(self, parameter: nn.Parameter) -> Tensor:
        """Give a row-sparse gradient the rows of all ranks; returns its values (R, E), zeros where a row is new."""
        mine = gradient_values(parameter)
        touched = torch.zeros(len(parameter), dtype=torch.uint8, device="cpu")
        if mine is not None:
            assert parameter.grad is not None
            my_rows = parameter.grad.indices()[0]
            touched[my_rows] = 1
        self._ranks.all_reduce(touched, dist.ReduceOp.MAX)
        rows = touched.nonzero()[:, 0]  # (R,) sorted
        values = parameter.new_zeros((len(rows), *parameter.shape[1:]))
        if mine is not None:
            values[torch.searchsorted(rows, my_rows)] = mine
        parameter.grad = torch.sparse_coo_tensor(
            rows[None], values, parameter.shape, is_coalesced=True, check_invariants=False
        )
        return values


def _kind(parameter: nn.Parameter) -> int:
    if parameter.grad is None:
        return _NONE
    return _DENSE if parameter.grad.layout == torch.strided else _ROWS
