"""Forward and backward of a micro-batch as CUDA graphs: one launch for the host instead of a thousand.

A GPU is through with a small batch before the host has launched half of its kernels. A graph repeats what was recorded
once, on the same shapes and in the same memory: batches are filled up to a few sizes, and a new one is copied into the
place of the one that was recorded. What follows (clipping, the method's hooks, the optimizer) is launched as ever.

A graph computes what the same filled batch gives without it, bit for bit, dropout included: torch's generator goes on
from where it stands. So nothing depends on when a graph was recorded, or whether it was, and a run may be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from module.context import Accumulate, MethodContext
from module.kernels.guard import Fingerprint
from mt_dnn.encoder.batch import Batch, PackedBatch
from mt_dnn.encoder.hooks import every_call_hooked, hooked

_Size = tuple[int, int, int]
"""Examples, tokens, and the most of an example."""

_SHARE_OF_MEMORY = 0.25
"""Of the device, for the gradients of all graphs: each has its own."""


class PassGraphs:
    """Takes the place of the plain pass over the micro-batches of a step.

    A size is recorded when it comes for the second time. Whatever is not as it was recorded goes the plain way: batches
    that are not filled, several to a step, hooks on modules.

    Args:
        network: All of whose parameters keep their places.
        context: Of the run, whose methods all have a ``plain_pass``.
        plain: The pass.
    """

    def __init__(self, network: nn.Module, context: MethodContext, plain: Accumulate) -> None:
        self._context, self._plain = context, plain
        self._modules, self._parameters = [*network.modules()], [*network.parameters()]
        self._dropouts = [module for module in self._modules if isinstance(module, nn.Dropout)]
        self._start_anew()

    def __call__(self, batches: Sequence[Batch], weight: float = 1.0) -> Tensor:
        """Add the gradients of a step; see :class:`module.context.Accumulate`."""
        batch = batches[0] if len(batches) == 1 else None
        if weight != 1.0 or not isinstance(batch, PackedBatch) or not self._is_plain(batch):
            return self._plain(batches, weight)
        if not self._places.matches(self._parameters) or self._switches != self._switches_now():
            self._start_anew()
        size = batch.size, batch.n_tokens, batch.span or 0
        graph = self._graphs.get(size)
        if graph is None:
            if size not in self._seen or not self._memory.suffices(len(self._graphs)):
                self._seen.add(size)
                return self._plain(batches, weight)
            graph = self._graphs[size] = self._record(batch)
        return graph(batch)

    def _start_anew(self) -> None:
        """Forget all graphs: they rest on where the parameters lie and on switches that are read on the host."""
        self._places, self._switches = Fingerprint(self._parameters, fixed=True), self._switches_now()
        self._graphs: dict[_Size, _PassGraph] = {}
        self._seen: set[_Size] = set()
        self._memory = _Memory(self._parameters)

    def _switches_now(self) -> list[tuple[float, bool] | bool]:
        """Parameters that are trained, and shares that dropouts drop."""
        trained = [parameter.requires_grad for parameter in self._parameters]
        return [*trained, *((dropout.p, dropout.training) for dropout in self._dropouts)]

    def _is_plain(self, batch: PackedBatch) -> bool:
        """Whether a pass over a batch is one as it is recorded."""
        return (
            batch.filled
            and self._context.examples == batch.size
            and not self._context.model.embedding_hooks
            and not every_call_hooked()
            and not any(map(hooked, self._modules))
            and all(map(_is_fresh, self._parameters))
        )

    def _record(self, batch: PackedBatch) -> _PassGraph:
        with self._context.streams.preserved():
            try:
                return _PassGraph(batch, self._plain, self._parameters, self._memory)
            except RuntimeError as error:
                cause = error.__context__ or error  # what ended the recording, not that it had no end
                raise RuntimeError(f"a pass cannot be recorded ({cause}); use --cuda_graphs false") from error


class _PassGraph:
    """A recorded pass: its inputs, its gradients and its loss lie where they did."""

    def __init__(
        self, batch: PackedBatch, plain: Accumulate, parameters: Sequence[nn.Parameter], memory: _Memory
    ) -> None:
        self._parameters, self._batch = parameters, batch
        # Libraries get what they need on this stream before it is recorded; torch asks for that.
        stream = memory.stream
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            plain([batch])
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        _set(parameters, [None] * len(parameters))
        self._graph = torch.cuda.CUDAGraph()
        # The thread that makes the next batch allocates page-locked memory meanwhile. A recording that fails leaves
        # its stream current: the outer context sets it back.
        recording = torch.cuda.graph(self._graph, pool=memory.pool, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.stream(torch.cuda.current_stream(stream.device)), recording:
            self._loss = plain([batch])
        self._gradients = [parameter.grad for parameter in parameters]
        _set(parameters, [None] * len(parameters))

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Add the gradients of a batch of the same size."""
        take(self._batch, batch)
        self._graph.replay()
        _set(self._parameters, self._gradients)
        return self._loss


class _Memory:
    """A stream, and the memory of all that lives within a pass: the graphs of a run share them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._gradients = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
        self._device = parameters[0].device
        self.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self.pool: Any = torch.cuda.graph_pool_handle()
        torch.cuda.reset_peak_memory_stats(self._device)  # of an earlier run in this process

    def suffices(self, graphs: int) -> bool:
        """Whether there is room for one more graph beside so many.

        The graphs keep the memory of a pass for themselves, and passes that are not recorded need as much again.
        """
        free, total = torch.cuda.mem_get_info(self._device)
        allocated, reserved = torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)
        needed = self._gradients + 2 * (torch.cuda.max_memory_allocated(self._device) - allocated)
        within_share = (graphs + 1) * self._gradients <= _SHARE_OF_MEMORY * total
        return within_share and needed <= free + reserved - allocated


def take(place: PackedBatch, batch: PackedBatch) -> None:
    """Copy what a pass reads of a batch to the place of another of the same size."""
    for there, new in zip(_inputs(place), _inputs(batch), strict=True):
        if there is not new:
            there.copy_(new)


def can_record() -> bool:
    """Whether this torch records passes over any size of batch; before 2.10 draws of large ones overflow a counter."""
    return torch.__version__ >= "2.10"  # compared as versions


def _inputs(batch: PackedBatch) -> list[Tensor]:
    """Tensors that a pass over a batch reads."""
    soft_labels = [] if batch.soft_labels is None else [batch.soft_labels]
    return [
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.labels, batch.first_tokens, batch.cu_seqlens,
        *soft_labels,
    ]  # fmt: skip


def _is_fresh(parameter: Any) -> bool:
    """Whether a parameter has no gradient yet, and nobody waits for one."""
    return parameter.grad is None and not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _set(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
