"""Row-sparse gradients of an embedding: the rows they touch, and those they leave to momentum and decay."""

import numpy as np
import torch
from torch import Tensor

from ..noise import BLOCK
from .guard import check, check_plain

_ZEROS = np.zeros(BLOCK, np.float32)  # the gradient of untouched rows
_SHORT_REST = 8  # rows
_ROWS_AT_ONCE = 1024


def touched_rows(name: str, parameter: Tensor, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """The touched rows of a sparse gradient, (R,) rising, and their values (R, ...); dense where none is touched."""
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise RuntimeError(f"The gradient of {name!r} is sparse in a way that is not supported: sparse rows are needed")
    if gradient.shape != parameter.shape or gradient.device != parameter.device:
        raise ValueError(
            f"gradient of {name!r} has shape {tuple(gradient.shape)} on {gradient.device}, the parameter "
            f"{tuple(parameter.shape)} on {parameter.device}: call zero_grad() and backward() again"
        )
    if gradient._nnz() == 0:
        return None, torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    gradient = gradient.coalesce()
    touched, values = gradient.indices()[0], gradient.values()
    check_plain(name, "gradient", touched)
    check(name, "gradient", values, torch.Size((len(touched), *parameter.shape[1:])), parameter.device)
    # A tensor made without torch's checks may hold anything there.
    if touched[0] < 0 or touched[-1] >= len(parameter) or not (touched.diff() > 0).all():
        raise ValueError(
            f"gradient of {name!r} has rows that are not rising in [0, {len(parameter)}): make it with "
            "check_invariants=True to see where"
        )
    return touched, values


class RowSparse:
    """An embedding whose gradients are row-sparse: the rows that a step has to go through.

    A row that never had a gradient has no momentum, and after its first step its infinity norm is eps; without weight
    decay a step leaves all of it as it is. Such rows are left out, and keep whatever theta is set to. What torch's
    operations change in the state is noticed; what is written into it through ``.data`` or ``.numpy()`` is not.

    Args:
        theta: (N, ...) on the CPU.
        momentum: (N, ...).
        infinity_norm: (N, ...).
        row: Of the table of tensors, ready for a step.
    """

    def __init__(self, theta: Tensor, momentum: Tensor, infinity_norm: Tensor, row: np.ndarray) -> None:
        self._tensors = theta, momentum, infinity_norm
        self._facts = self._facts_of(row)
        eps, beta2 = np.float32(row["eps"]), np.float32(row["beta2"])
        m, u = (x.reshape(len(x), -1).numpy() for x in (momentum, infinity_norm))
        fit = torch.isfinite(theta.detach().reshape(len(theta), -1)).all(1).numpy()
        # In blocks, or the comparisons would take as much memory as the tensors.
        spans = [slice(i, i + _ROWS_AT_ONCE) for i in range(0, len(m), _ROWS_AT_ONCE)]
        self._quiet = fit & np.concatenate([((m[s] == 0) & (beta2 * u[s] <= eps)).all(1) for s in spans])
        self._at_rest = self._quiet & np.concatenate([(u[s] == eps).all(1) for s in spans])
        if row["weight_decay"] != 0.0 or eps == 0.0:
            self._quiet[:] = self._at_rest[:] = False

    def holds(self, theta: Tensor, momentum: Tensor, infinity_norm: Tensor, row: np.ndarray) -> bool:
        """Whether nothing has changed since the last step, which was made with ``parts``."""
        same = all(a is b for a, b in zip((theta, momentum, infinity_norm), self._tensors, strict=True))
        return same and self._facts_of(row) == self._facts

    def _facts_of(self, row: np.ndarray) -> tuple[float, ...]:
        # A tensor's version counts changes by torch's operations, not the kernels'.
        facts = (float(row[name]) for name in ("eps", "beta2", "weight_decay", "step"))
        return (*facts, *(tensor._version for tensor in self._tensors[1:]))

    def parts(self, row: np.ndarray, touched: Tensor) -> np.ndarray:
        """Rows of the table for a step: one for each touched row of the tensor, one for each stretch of others.

        Args:
            row: Of the tensor in the table, ready for :func:`module.kernels.cpu.update_rows`.
            touched: (R,) rows of the tensor with a gradient, rising.

        Returns:
            Their entries are updated one by one, so the result is that of the dense gradient. Rows without a gradient
            move by momentum and decay: theirs is a block of zeros.
        """
        width, rows = self._tensors[0][0].numel(), touched.numpy()
        starts, ends = self._stretches(rows)
        self._quiet[rows] = False
        self._at_rest = self._quiet.copy()
        self._facts = (*self._facts[:3], self._facts[3] + 1, *self._facts[4:])  # of the next step
        firsts = np.concatenate([rows, starts]) * width
        parts = np.repeat(row, len(firsts))
        for column in ("theta", "momentum", "infinity_norm"):
            parts[column] += 4 * firsts
        n = len(rows)
        parts["size"][:n], parts["size"][n:] = width, (ends - starts) * width
        parts["gradient"][:n] = row["gradient"] + 4 * width * np.arange(n)
        parts["gradient"][n:], parts["gradient_stride"][n:] = _ZEROS.ctypes.data, 0
        parts["update_gradient"] = parts["gradient"]
        return parts[np.argsort(firsts)]

    def _stretches(self, touched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row of each stretch of rows that are neither touched nor at rest, and the row behind its last."""
        moving = np.zeros(len(self._at_rest) + 2, bool)
        moving[1:-1] = ~self._at_rest
        moving[1 + touched] = False
        edges = np.flatnonzero(moving[1:] != moving[:-1])
        starts, ends = edges[::2], edges[1::2]
        if len(starts) == 0:
            return starts, ends
        # A short rest between two costs less to go through than a part of its own.
        before = np.searchsorted(touched, starts)
        apart = (starts[1:] - ends[:-1] > _SHORT_REST) | (before[1:] != before[:-1])
        return starts[np.r_[True, apart]], ends[np.r_[apart, True]]
