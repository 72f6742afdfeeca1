"""Dropout, residual sum and layer norm behind a linear layer, in one pass on the CPU, in float32.

Legend: n rows, D hidden size.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable

from module.dropout import NO_DROPOUT, Draw, StreamDropout
from module.kernels.cpu_layers import NORM_CHUNK, norm_backward, norm_forward
from mt_dnn.encoder.cpu_attention import by_one_pass, new, place
from mt_dnn.encoder.hooks import every_call_hooked, must_be_called

# Families whose layers have such outputs (a test each).
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        draw: Draw,
        linear: Tensor | None,
        linear_bias: Tensor | None,
    ) -> Tensor:
        product = () if linear is None else (x, linear)
        if linear is not None:
            x = F.linear(x, linear)
        n, d = x.shape
        normed, out, inverse = torch.empty_like(x), torch.empty_like(x), new(n)
        mask = torch.empty((n, d), dtype=torch.uint8, device="cpu") if draw.threshold else None
        norm = (d, place(weight, weight.shape), place(normed, x.shape), place(inverse, inverse.shape), _bytes(mask))
        places = (place(tensor, x.shape) for tensor in (x, y, out))
        biases = (0 if linear_bias is None else place(linear_bias, weight.shape), place(bias, weight.shape))
        norm_forward(n, NORM_CHUNK, *norm, *draw.fields, *biases, eps, *places)
        ctx.save_for_backward(weight, normed, inverse, mask, *product)
        ctx.kept = draw.kept
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, normed, inverse, mask, *product = ctx.saved_tensors
        grad = grad.contiguous()
        n, d = grad.shape
        dy = torch.empty_like(grad)
        dx = dy if mask is None else torch.empty_like(grad)
        sums = new((-(-n // NORM_CHUNK), 3, d))
        norm = (d, place(weight, weight.shape), place(normed, grad.shape), place(inverse, inverse.shape), _bytes(mask))
        places = (place(tensor, grad.shape) for tensor in (grad, dx, dy))
        norm_backward(n, NORM_CHUNK, *norm, ctx.kept, *places, place(sums, sums.shape))
        d_weight, d_bias, d_linear_bias = sums.sum(0)
        if not product:
            return dx, dy, d_weight, d_bias, None, None, None, None
        (x, linear), needed = product, ctx.needs_input_grad
        d_linear = torch.mm(dx.t(), x) if needed[6] else None
        d_x = torch.mm(dx, linear) if needed[0] else None
        return d_x, dy, d_weight, d_bias, None, None, d_linear, d_linear_bias


def _bytes(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.numpy().ctypes.data


@_disable_dynamo
def residual_norm(x: Tensor, y: Tensor, norm: nn.LayerNorm, draw: Draw, dense: nn.Linear | None = None) -> Tensor:
    """Layer norm of dropout(x) + y, (..., D) each; with ``dense`` x (..., F) is its input."""
    rows, others = (tensor.reshape(-1, tensor.shape[-1]).contiguous() for tensor in (x, y))
    linear = (None, None) if dense is None else (weight_of(dense), dense.bias)
    out: Tensor = _ResidualNorm.apply(rows, others, norm.weight, norm.bias, norm.eps, draw, *linear)  # type: ignore[no-untyped-call]
    return out.view(y.shape)


def fuse(model: nn.Module) -> None:
    """Make the outputs of a transformers model's layers compute in one pass where that is possible."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        return
    for module in model.modules():
        if [name for name, _ in module.named_children()] == ["dense", "LayerNorm", "dropout"]:
            module.forward = partial(_forward, module)


def _forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    dropout, norm = self.dropout, self.LayerNorm
    if not _is_plain(dropout, norm):
        whole: Tensor = type(self).forward(self, hidden_states, input_tensor)
        return whole
    p = dropout.p if dropout.training else 0.0
    if _takes_product(self.dense, hidden_states, input_tensor, norm) and (p == 0.0 or type(dropout) is StreamDropout):
        draw = dropout.stream.draw(input_tensor.numel(), p) if p > 0.0 else NO_DROPOUT
        return residual_norm(hidden_states, input_tensor, norm, draw, self.dense)
    x = self.dense(hidden_states)
    trained = torch.is_grad_enabled() and x.requires_grad  # else it saves nothing
    fits = x.shape == input_tensor.shape and norm.normalized_shape == x.shape[-1:]
    one_pass = trained and fits and by_one_pass(x, input_tensor, norm.weight, norm.bias)
    if not one_pass or (p > 0.0 and type(dropout) is nn.Dropout):
        out: Tensor = norm(dropout(x) + input_tensor)
        return out
    return residual_norm(x, input_tensor, norm, dropout.stream.draw(x.numel(), p) if p > 0.0 else NO_DROPOUT)


def is_plain_linear(module: Any) -> bool:
    """Whether a module is a linear layer with a bias, and nothing looks into it or lowers its precision.

    It is torch's own, or one that says which weight a pass uses (``weight_in_use``).
    """
    if type(module) is not nn.Linear and not hasattr(module, "weight_in_use"):
        return False
    if must_be_called(module) or module.bias is None:
        return False
    whole = module.weight.is_contiguous() and module.bias.is_contiguous()
    return whole and not torch.is_autocast_enabled("cpu")


def weight_of(module: Any) -> Tensor:
    """The weight of a linear layer in this pass."""
    weight: Tensor = module.weight if type(module) is nn.Linear else module.weight_in_use()
    return weight


def _takes_product(dense: Any, x: Tensor, y: Tensor, norm: nn.LayerNorm) -> bool:
    """Whether the product before the norm is a plain one, whose bias the norm's pass adds and sums the gradient of."""
    if not is_plain_linear(dense) or not torch.is_grad_enabled():
        return False
    if not (x.requires_grad or dense.weight.requires_grad):
        return False
    fits = (*x.shape[:-1], dense.out_features) == y.shape and norm.normalized_shape == y.shape[-1:]
    return fits and by_one_pass(x, y, dense.weight, dense.bias, norm.weight, norm.bias)


def _is_plain(dropout: nn.Module, norm: nn.Module) -> bool:
    if type(dropout) not in (nn.Dropout, StreamDropout) or type(norm) is not nn.LayerNorm or norm.bias is None:
        return False
    if not norm.weight.is_contiguous() or not norm.bias.is_contiguous():
        return False
    return not every_call_hooked() and not must_be_called(dropout) and not must_be_called(norm)
