"""Dropout, residual sum and layer norm behind a linear layer, in one pass on the CPU, in float32.

Legend: n rows, D hidden size.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from module.dropout import NO_DROPOUT, Draw, StreamDropout
from module.kernels.cpu_layers import NORM_CHUNK, norm_backward, norm_forward
from mt_dnn.encoder.cpu_attention import by_one_pass, place
from mt_dnn.encoder.hooks import hooked

# Families whose layers have such outputs (a test each).
_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, draw: Draw) -> Tensor:
        n, d = x.shape
        normed, out, inverse = torch.empty_like(x), torch.empty_like(x), x.new_empty(n)
        mask = torch.empty((n, d), dtype=torch.uint8, device=x.device) if draw.threshold else None
        norm = (d, place(weight, weight.shape), place(normed, x.shape), place(inverse, inverse.shape), _bytes(mask))
        places = (place(tensor, x.shape) for tensor in (x, y, out))
        norm_forward(n, NORM_CHUNK, *norm, *draw.fields, place(bias, weight.shape), eps, *places)
        ctx.save_for_backward(weight, normed, inverse, mask)
        ctx.kept = draw.kept
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, normed, inverse, mask = ctx.saved_tensors
        grad = grad.contiguous()
        n, d = grad.shape
        dy = torch.empty_like(grad)
        dx = dy if mask is None else torch.empty_like(grad)
        sums = grad.new_empty((-(-n // NORM_CHUNK), 2, d))
        norm = (d, place(weight, weight.shape), place(normed, grad.shape), place(inverse, inverse.shape), _bytes(mask))
        places = (place(tensor, grad.shape) for tensor in (grad, dx, dy))
        norm_backward(n, NORM_CHUNK, *norm, ctx.kept, *places, place(sums, sums.shape))
        d_weight, d_bias = sums.sum(0)
        return dx, dy, d_weight, d_bias, None, None


def _bytes(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.numpy().ctypes.data


@_disable_dynamo
def residual_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, draw: Draw) -> Tensor:
    """Layer norm of dropout(x) + y, of any one shape (..., D)."""
    rows, others = (tensor.reshape(-1, tensor.shape[-1]).contiguous() for tensor in (x, y))
    out: Tensor = _ResidualNorm.apply(rows, others, norm.weight, norm.bias, norm.eps, draw)  # type: ignore[no-untyped-call]
    return out.view(x.shape)


def fuse(model: nn.Module) -> None:
    """Make the outputs of a transformers model's layers compute in one pass where that is possible."""
    config: Any = model.config
    if config.model_type not in _FAMILIES:
        return
    for module in model.modules():
        if [name for name, _ in module.named_children()] == ["dense", "LayerNorm", "dropout"]:
            module.forward = partial(_forward, module)


def _forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    dropout, norm = self.dropout, self.LayerNorm
    if not _is_plain(dropout, norm):
        whole: Tensor = type(self).forward(self, hidden_states, input_tensor)
        return whole
    x = self.dense(hidden_states)
    p = dropout.p if dropout.training else 0.0
    trained = torch.is_grad_enabled() and x.requires_grad  # else it saves nothing
    fits = x.shape == input_tensor.shape and norm.normalized_shape == x.shape[-1:]
    one_pass = trained and fits and by_one_pass(x, input_tensor, norm.weight, norm.bias)
    if not one_pass or (p > 0.0 and type(dropout) is nn.Dropout):
        out: Tensor = norm(dropout(x) + input_tensor)
        return out
    return residual_norm(x, input_tensor, norm, dropout.stream.draw(x.numel(), p) if p > 0.0 else NO_DROPOUT)


def _is_plain(dropout: nn.Module, norm: nn.Module) -> bool:
    if type(dropout) not in (nn.Dropout, StreamDropout) or type(norm) is not nn.LayerNorm or norm.bias is None:
        return False
    if not norm.weight.is_contiguous() or not norm.bias.is_contiguous():
        return False
    everywhere = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return not everywhere and not any(hooked(module) or "forward" in vars(module) for module in (dropout, norm))
