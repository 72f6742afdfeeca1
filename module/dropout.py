"""Dropout from a counter-based generator: parallel on the CPU, from a stream of its own that can be resumed.

torch draws CPU dropout masks on one thread. Here they are blocks of the Philox stream of :mod:`module.noise`'s
generator: entry ``j`` of block ``b`` comes from ``Philox4x32-10`` with counter ``((b mod 2**24) << 8 | j mod 256,
b >> 24, 0, 0)``: word ``j >> 9`` of its output, the lower 16 bits for an even ``j >> 8``, else the upper ones. Key: the
64-bit seed. A mask takes the next ``ceil(n / 2048)`` blocks, so the stream's whole state is the number of blocks taken.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .kernels.cpu import DROPOUT_BLOCK, dropout_blocks
from .kernels.threads import for_each_chunk
from .noise import WORD, check_seed

_LEVELS = 1 << 16
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class DropoutStream:
    """Dropout masks for CPU tensors.

    Attributes:
        seed: Of the stream, in [0, 2**64).
        position: Blocks taken so far. Set it back to draw the same masks again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = check_seed(seed)
        self.position = 0

    def factors(self, like: Tensor, p: float) -> Tensor:
        """Draw the factors of a tensor's entries: 0 with probability ``p``, else 1 / (1 - p).

        Args:
            like: Any shape, on the CPU; float32, bfloat16 or float16.
            p: In (0, 1); realised to the nearest 1/65536, and the factor is that of the realised probability.

        Returns:
            A tensor of its shape and dtype.

        Raises:
            TypeError: For another dtype.
            ValueError: For ``p`` out of range.
        """
        if like.dtype not in _BITS:
            raise TypeError(f"Dropout of {like.dtype}: float32, bfloat16 or float16 is needed")
        threshold = round((1.0 - p) * _LEVELS)
        if not 0 < threshold < _LEVELS:
            raise ValueError(
                f"Invalid dropout probability: {p}: 0, or a number in [{1 / _LEVELS}, {1 - 1 / _LEVELS}] is needed"
            )
        bits = _BITS[like.dtype]
        factor = torch.tensor(_LEVELS / threshold, dtype=like.dtype, device="cpu")
        kept = int(factor.view(bits))  # positive, so the sign bit is 0
        blocks = -(-like.numel() // DROPOUT_BLOCK)
        # numpy's own memory: a tensor may be a wrapper of a transform (torch.func), whose memory is not its numbers'.
        words = np.empty(blocks * DROPOUT_BLOCK, np.uint32 if bits == torch.int32 else np.uint16)
        place, low, high = self.position, self.seed & WORD, self.seed >> 32
        for_each_chunk(blocks, lambda a, b: dropout_blocks(place, a, b, low, high, threshold, kept, words))
        self.position += blocks
        return torch.from_numpy(words).view(like.dtype)[: like.numel()].view(like.shape)

    def __call__(self, x: Tensor, p: float) -> Tensor:
        """Drop entries of ``x`` with probability ``p`` in [0, 1)."""
        return x * self.factors(x, p) if p > 0.0 else x


class StreamDropout(nn.Dropout):
    """``nn.Dropout`` whose masks on the CPU come from a stream; elsewhere torch's own generators are parallel."""

    def __init__(self, p: float, stream: DropoutStream) -> None:
        super().__init__(p)
        self.stream = stream

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, unchanged when evaluating."""
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        return self.stream(input, self.p)


def replace_dropout(network: nn.Module, stream: DropoutStream) -> None:
    """Make every ``nn.Dropout`` of a network draw from a stream; probabilities and modes stay."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, StreamDropout(child.p, stream).train(child.training))
