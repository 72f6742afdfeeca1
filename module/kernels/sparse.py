"""Row-sparse gradients of an embedding: the rows they touch, and those they leave to momentum and decay."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..noise import BLOCK
from .guard import check, check_plain
from .rows import number_blocks

_ZEROS = np.zeros(BLOCK, np.float32)  # the gradient of untouched rows


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


def split_row_sparse(rows: np.ndarray, touched: Sequence[Tensor | None], thetas: Sequence[Tensor]) -> np.ndarray:
    """Replace each row of a tensor with a row-sparse gradient by rows of its touched and its untouched parts.

    Untouched parts move by momentum and decay: their gradient is a block of zeros. Entries are updated one by one, so
    the result is that of the dense gradient.

    Args:
        rows: The table, ready for :func:`module.kernels.cpu.update_rows`.
        touched: Per row the touched rows of its tensor; None: its gradient is dense.
        thetas: Per row its tensor.
    """
    parts = [
        rows[i : i + 1] if part is None else _parts(rows[i], part, theta)
        for i, (part, theta) in enumerate(zip(touched, thetas, strict=True))
    ]
    table = np.concatenate(parts, dtype=rows.dtype)  # else numpy compares the fields of every two of them
    number_blocks(table)
    return table


def _parts(row: np.ndarray, touched: Tensor, theta: Tensor) -> np.ndarray:
    width = theta[0].numel()
    firsts = touched.numpy() * width  # (R,) first entries
    after = np.concatenate([[0], firsts + width])  # (R + 1,) where the gaps between them start
    gaps = np.concatenate([firsts, [theta.numel()]]) - after
    starts = np.concatenate([firsts, after[gaps > 0]])
    parts = np.repeat(row, len(starts))
    for column in ("theta", "momentum", "infinity_norm"):
        parts[column] += 4 * starts
    n = len(firsts)
    parts["size"][:n], parts["size"][n:] = width, gaps[gaps > 0]
    parts["gradient"][:n] = row["gradient"] + 4 * width * np.arange(n)
    parts["gradient"][n:], parts["gradient_stride"][n:] = _ZEROS.ctypes.data, 0
    parts["update_gradient"] = parts["gradient"]
    return parts[np.argsort(starts)]
