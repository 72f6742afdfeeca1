"""Attention of a packed batch on CUDA without padding: torch's kernels for examples of any lengths.

Without them attention works on rectangles (:mod:`mt_dnn.encoder.attention`), with copies into and out of their slots.
Legend: n_tokens tokens, H heads, d size of a head.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mt_dnn.encoder.batch import PackedBatch

_Spans = tuple[Tensor, Tensor, int, int]
"""Where the examples' queries begin, and their number, and the same of keys, (B + 1,) int32; most of each."""

_HALF = (torch.bfloat16, torch.float16)
_FLASH_CAPABILITY = (8, 0)  # Ampere
_NO_MASK = 0  # torch's number for attention that is not causal


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, packed: PackedBatch
) -> Tensor | None:
    """Attend without padding, or return None where no kernel takes this call.

    Args:
        query: (1, H, n_tokens, d); or (1, H, B, d), of the examples' first tokens alone.
        key: (1, H, n_tokens, d).
        value: like key.
        dropout: of the attention probabilities, drawn from torch's CUDA generator.
        scaling: of the scores; None is d ** -0.5.
        packed: where each example begins.

    Returns:
        (1, n_tokens or B, H, d), or None.
    """
    d = query.shape[-1]
    if not takes(query.device, d):
        return None
    scale = d**-0.5 if scaling is None else scaling
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # (1, n_tokens, H, d)
    spans = _spans(packed, query.shape[2])
    flash = _flash_kernel(query.device) if dropout == 0.0 and query.dtype in _HALF else None
    if flash is not None:
        out: Tensor = flash(q[0], k[0], v[0], *spans, scale=scale)
        return out[None]
    if torch.compiler.is_compiling():  # torch cannot trace the other kernel's backward pass (seen in 2.13)
        return None
    return _efficient(q, k, v, dropout, scale, spans)


def takes(device: torch.device, head_size: int) -> bool:
    """Whether there is a kernel on a device for heads of a size, but under torch.compile."""
    return _is_cuda(device) and head_size % 8 == 0 and head_size <= 256


def _spans(packed: PackedBatch, queries: int) -> _Spans:
    """Say where the examples begin."""
    starts, longest = packed.cu_seqlens, packed.span or packed.max_seqlen
    if queries == packed.n_tokens:
        return starts, starts, longest, longest
    return torch.arange(len(starts), dtype=starts.dtype, device=starts.device), starts, 1, longest


def _efficient(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float, spans: _Spans) -> Tensor:
    """Memory-efficient attention: every GPU and dtype, with dropout; torch's nested tensors call it in this way.

    Its backward pass is deterministic under ``torch.use_deterministic_algorithms``.
    """
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out: Tensor = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, *spans, dropout, _NO_MASK, differentiable, scale=scale
    )[0]
    return out


@cache
def _flash_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """Return torch's flash attention, which takes half precision and no dropout; None on a GPU before Ampere."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    if torch.cuda.get_device_capability(device) < _FLASH_CAPABILITY:
        return None
    kernel: Callable[..., Any] = varlen_attn
    return kernel if "scale" in inspect.signature(kernel).parameters else _scaled(kernel)


def _scaled(kernel: Callable[..., Any]) -> Callable[..., Tensor]:
    """Give a kernel that always takes d ** -0.5, as torch 2.10's does, a scale."""

    def attend(q: Tensor, *others: Any, scale: float) -> Tensor:
        factor = scale * q.shape[-1] ** 0.5
        out: Tensor = kernel(q if abs(factor - 1.0) < 1e-6 else q * factor, *others)
        return out

    return attend


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
