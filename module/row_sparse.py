"""Word embeddings whose gradient holds only the rows of a batch's tokens, on the CPU.

A batch touches some hundreds of 30,000 rows; filling, measuring, scaling and reading a dense gradient of all of them
costs more than a quarter of a small encoder's step. The gradient is a coalesced sparse tensor here; the optimizers of
:mod:`module.bert_optim` take it and give the dense gradient's result, bit for bit, untouched rows included.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Lookup(torch.autograd.Function):
    """Rows of a table; backward sums the gradients of equal rows in the same order as torch's dense backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = weight.shape, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        touched, places = torch.unique(ids, return_inverse=True)  # (R,), ids.shape
        padding = -1
        if ctx.padding_idx is not None and bool((found := touched == ctx.padding_idx).any()):
            padding = int(found.nonzero())  # its row stays in the gradient, as zeros
        values = torch.ops.aten.embedding_dense_backward(grad, places, len(touched), padding, False)  # (R, E)
        return (
            torch.sparse_coo_tensor(touched[None], values, ctx.shape, is_coalesced=True, check_invariants=False),
            None,
            None,
        )


class RowSparseEmbedding(nn.Embedding):
    """``nn.Embedding`` with row-sparse gradients, on the parameter of a dense one."""

    def __init__(self, dense: nn.Embedding) -> None:
        super().__init__(dense.num_embeddings, dense.embedding_dim, dense.padding_idx, _weight=dense.weight.data)
        self.weight = dense.weight

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape -> (..., E)."""
        rows: Tensor = _Lookup.apply(self.weight, input, self.padding_idx)  # type: ignore[no-untyped-call]
        return rows


def can_be_row_sparse(embedding: nn.Module) -> bool:
    """Whether a module can become a :class:`RowSparseEmbedding`: a plain, trainable table on the CPU."""
    return (
        type(embedding) is nn.Embedding
        and embedding.weight.device.type == "cpu"
        and embedding.weight.requires_grad
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
    )
