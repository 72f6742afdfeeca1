"""Dropout from a counter-based generator: parallel on the CPU, from a stream of its own that can be resumed.

torch draws CPU dropout masks on one thread. Here they are blocks of the Philox stream of :mod:`module.noise`'s
generator: entry ``j`` of block ``b`` comes from ``Philox4x32-10`` with counter ``((b mod 2**24) << 8 | j mod 256,
b >> 24, 0, 0)``: word ``j >> 9`` of its output, the lower 16 bits for an even ``j >> 8``, else the upper ones. Key: the
64-bit seed. A mask takes the next ``ceil(n / 2048)`` blocks, so the stream's whole state is the number of blocks taken.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from .kernels.cpu_layers import dropout_factors
from .kernels.cpu_stream import DROPOUT_BLOCK
from .noise import WORD, check_seed

_LEVELS = 1 << 16
_CHUNK = 16  # blocks a thread takes at a time
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Draw:
    """A stretch of the stream, for a number of entries.

    Attributes:
        place: Its first block.
        key_low: Of the seed.
        key_high: Of the seed.
        threshold: An entry is kept if its 16 bits are below it; 0: no dropout.
        kept: The factor of the entries that are kept.
    """

    place: int = 0
    key_low: int = 0
    key_high: int = 0
    threshold: int = 0
    kept: float = 1.0

    @property
    def fields(self) -> tuple[int, int, int, int, float]:
        """In the order in which kernels take them."""
        return self.place, self.key_low, self.key_high, self.threshold, self.kept


NO_DROPOUT = Draw()


class DropoutStream:
    """Dropout masks for CPU tensors.

    Attributes:
        seed: Of the stream, in [0, 2**64).
        position: Blocks taken so far. Set it back to draw the same masks again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = check_seed(seed)
        self.position = 0

    def draw(self, entries: int, p: float) -> Draw:
        """Take the stream's next stretch.

        Args:
            entries: To be kept or dropped.
            p: In [0, 1); realised to the nearest 1/65536, and the factor is that of the realised probability.

        Raises:
            ValueError: For ``p`` out of range.
        """
        if p == 0.0:
            return NO_DROPOUT
        threshold = round((1.0 - p) * _LEVELS)
        if not 0 < threshold < _LEVELS:
            raise ValueError(
                f"Invalid dropout probability: {p}: 0, or a number in [{1 / _LEVELS}, {1 - 1 / _LEVELS}] is needed"
            )
        place = self.position
        self.position += -(-entries // DROPOUT_BLOCK)
        return Draw(place, self.seed & WORD, self.seed >> 32, threshold, _LEVELS / threshold)

    @_disable_dynamo
    def factors(self, like: Tensor, p: float) -> Tensor:
        """Draw the factors of a tensor's entries: 0 with probability ``p``, else 1 / (1 - p).

        Args:
            like: Any shape, on the CPU; float32, bfloat16 or float16.
            p: In (0, 1), see ``draw``.

        Returns:
            A tensor of its shape and dtype.

        Raises:
            TypeError: For another dtype.
            ValueError: For ``p`` out of range.
        """
        if like.dtype not in _DTYPES:
            raise TypeError(f"Dropout of {like.dtype}: float32, bfloat16 or float16 is needed")
        if not p > 0.0:
            raise ValueError(f"Invalid dropout probability: {p}: a number above 0 is needed")
        size = like.numel()
        draw = self.draw(size, p)
        # numpy's own memory: a tensor may be a wrapper of a transform (torch.func), whose memory is not its numbers'.
        factors = np.empty(size, np.float32)
        dropout_factors(-(-size // DROPOUT_BLOCK), _CHUNK, *draw.fields, size, factors.ctypes.data)
        return torch.from_numpy(factors).to(like.dtype).view(like.shape)

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
